//! The host's serialized header map, read in place; and the other way round.

use smallvec::SmallVec;

/// Mostly so few that they need no memory of their own.
pub type Few<T> = SmallVec<[T; 4]>;

/// The names and values of a header map as the host hands it over: the number of pairs, the sizes of each name and value,
/// then the bytes of each with a NUL behind (proxy-wasm ABI 0.2.1, `proxy_get_header_map_pairs`; little-endian `u32`).
/// `None` if the bytes are no such map.
///
/// ```
/// let bytes = b"\x01\0\0\0\x01\0\0\0\x02\0\0\0a\0bc\0";
/// assert_eq!(idleguard_core::header_map::pairs(bytes), Some(vec![(&b"a"[..], &b"bc"[..])]));
/// ```
pub fn pairs(bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    pairs_where(bytes, |_, _| true).map(Few::into_vec)
}

/// The same, of the pairs whose name has a length and a first byte that are `wanted` (0 for an empty name). A request has
/// twenty headers, and few of them matter.
pub fn pairs_where(bytes: &[u8], wanted: impl Fn(usize, u8) -> bool) -> Option<Few<(&[u8], &[u8])>> {
    if bytes.is_empty() {
        return Some(Few::new());
    }
    let (count, rest) = bytes.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (sizes, texts) = rest.split_at_checked(count.checked_mul(8)?)?;
    let mut pairs = Few::new();
    let mut texts = texts;
    for [a, b, c, d, e, f, g, h] in sizes.as_chunks().0 {
        let name_size = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).ok()?;
        let value_size = usize::try_from(u32::from_le_bytes([*e, *f, *g, *h])).ok()?;
        let value_start = name_size.checked_add(1)?;
        let end = value_start.checked_add(value_size)?;
        if wanted(name_size, *texts.first()?) {
            pairs.push((texts.get(..name_size)?, texts.get(value_start..end)?));
        }
        texts = texts.get(end..)?.split_first()?.1;
    }
    Some(pairs)
}

/// The same for a map that the host is handed. Names and values are shorter than 4 GiB.
///
/// ```
/// let bytes = idleguard_core::header_map::serialize(&[("a", "bc")]);
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

/// `a == b`, eight bytes at a time: in Wasm the compiler's own comparison goes byte by byte.
#[inline]
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    let is_same = |a: &[u8; 8], b: &[u8; 8]| u64::from_ne_bytes(*a) == u64::from_ne_bytes(*b);
    if a.len() != b.len() {
        return false;
    }
    match (a.last_chunk(), b.last_chunk()) {
        // The last words may overlap those before.
        (Some(a_last), Some(b_last)) => {
            is_same(a_last, b_last) && a.as_chunks().0.iter().zip(b.as_chunks().0).all(|(a, b)| is_same(a, b))
        }
        _ => a.iter().zip(b).all(|(a, b)| a == b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts() {
        for length in 0..30 {
            let a: Vec<u8> = (0..length).collect();
            assert!(equal(&a, &a.clone()));
            assert!(!equal(&a, &[a.as_slice(), b"x"].concat()));
            for at in 0..a.len() {
                let mut b = a.clone();
                b[at] ^= 0x20;
                assert!(!equal(&a, &b), "{at} of {length}");
            }
        }
    }

    #[test]
    fn a_cut_or_boasting_map_is_none() {
        let whole = b"\x02\0\0\0\x01\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0a\0b\0cd\0\0";
        assert_eq!(pairs(whole), Some(vec![(&b"a"[..], &b"b"[..]), (b"cd", b"")]));
        for end in 1..whole.len() {
            assert_eq!(pairs(&whole[..end]), None, "{end}");
        }
        assert_eq!(pairs(b"\xff\xff\xff\xff"), None);
        assert_eq!(pairs(b""), Some(vec![]));
        assert_eq!(pairs(b"\x01\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        let cd = Some(smallvec::smallvec![(&b"cd"[..], &b""[..])]);
        assert_eq!(pairs_where(whole, |size, _| size == 2), cd);
        assert_eq!(pairs_where(whole, |_, first| first == b'c'), cd);
        assert_eq!(pairs_where(&whole[..whole.len() - 1], |_, _| false), None, "what is not wanted must be there, too");
    }
}
