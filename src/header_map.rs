//! The host's serialized header map, read in place; and the other way round.

/// The names and values of a header map as the host hands it over: the number of pairs, the sizes of each name and value,
/// then the bytes of each with a NUL behind (proxy-wasm ABI 0.2.1, `proxy_get_header_map_pairs`; little-endian `u32`).
/// `None` if the bytes are no such map.
///
/// ```
/// let bytes = b"\x01\0\0\0\x01\0\0\0\x02\0\0\0a\0bc\0";
/// assert_eq!(idleguard::header_map::pairs(bytes), Some(vec![(&b"a"[..], &b"bc"[..])]));
/// ```
pub fn pairs(bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let (count, rest) = split_u32(bytes)?;
    let (mut sizes, mut texts) = rest.split_at_checked(count.checked_mul(8)?)?;
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let (name_size, after) = split_u32(sizes)?;
        let (value_size, after) = split_u32(after)?;
        sizes = after;
        let (name, after) = split_text(texts, name_size)?;
        let (value, after) = split_text(after, value_size)?;
        texts = after;
        pairs.push((name, value));
    }
    Some(pairs)
}

/// The same for a map that the host is handed. Names and values are shorter than 4 GiB.
///
/// ```
/// let bytes = idleguard::header_map::serialize(&[("a", "bc")]);
/// assert_eq!(bytes, b"\x01\0\0\0\x01\0\0\0\x02\0\0\0a\0bc\0");
/// ```
pub fn serialize(pairs: &[(&str, &str)]) -> Vec<u8> {
    let size = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    let mut bytes = size(pairs.len()).to_vec();
    for (name, value) in pairs {
        bytes.extend_from_slice(&size(name.len()));
        bytes.extend_from_slice(&size(value.len()));
    }
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
    }
    bytes
}

fn split_u32(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*first)).ok()?, rest))
}

fn split_text(bytes: &[u8], size: usize) -> Option<(&[u8], &[u8])> {
    let (text, rest) = bytes.split_at_checked(size)?;
    Some((text, rest.split_first()?.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_or_boasting_map_is_none() {
        let whole = b"\x02\0\0\0\x01\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0a\0b\0cd\0\0";
        assert_eq!(pairs(whole), Some(vec![(&b"a"[..], &b"b"[..]), (b"cd", b"")]));
        for end in 1..whole.len() {
            assert_eq!(pairs(&whole[..end]), None, "{end}");
        }
        assert_eq!(pairs(b"\xff\xff\xff\xff"), None);
        assert_eq!(pairs(b""), Some(vec![]));
    }
}
