//! Address forms in, canonical text out (RFC 5952); blocks of addresses.
//!
//! Proxies write addresses in more forms than one: with a port, in brackets, IPv4 inside IPv6. Applications compare
//! texts, so each address leaves in one form only. The forms are read here and not by `std`, because a list of 100 KB
//! may hold ten thousand of them: reading and writing one costs about as much as `std` spends on its formatter alone.
//! The tests hold both against `std`.
//!
//! ```
//! use idleguard::address::{canonical, parse_address};
//! let address = parse_address(b"[2001:DB8:0::5]:443").unwrap();
//! assert_eq!(canonical(address), "2001:db8::5");
//! assert_eq!(parse_address(b"::ffff:203.0.113.5"), parse_address(b"203.0.113.5:8080"));
//! assert_eq!(parse_address(b"203.0.113.010"), None); // 8 or 10?
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::str;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

// === Reading ===

/// Reads `v4`, `v4:port`, `v6`, `[v6]` or `[v6]:port`, with blanks around it. The port and a zone (RFC 4007 §11,
/// `fe80::1%eth0`) are checked and dropped; IPv4-mapped IPv6 (RFC 4291 §2.5.5.2) becomes IPv4.
///
/// `None` for anything else, and for the unspecified addresses `0.0.0.0` and `::`, which are nobody's.
pub fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let (address, after) = split(text)?;
    (after.is_empty() || port(after).is_some()).then_some(address)
}

/// An address as a number: comparing is all that a list of ten thousand needs, and [`IpAddr`] would turn its bytes each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// [`Ipv4Addr::to_bits`].
    V4(u32),
    /// [`Ipv6Addr::to_bits`].
    V6(u128),
}

impl From<IpAddr> for Bits {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6(address.to_bits()),
        }
    }
}

impl From<Bits> for IpAddr {
    fn from(bits: Bits) -> Self {
        match bits {
            Bits::V4(bits) => Self::V4(Ipv4Addr::from_bits(bits)),
            Bits::V6(bits) => Self::V6(Ipv6Addr::from_bits(bits)),
        }
    }
}

/// An address that was read, and its canonical text if that is among what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// The address.
    pub bits: Bits,
    /// The canonical text, for whoever writes many addresses that came in this form. `None`: see [`Text`].
    pub text: Option<&'a [u8]>,
}

impl Element<'_> {
    /// The address.
    pub fn address(&self) -> IpAddr {
        self.bits.into()
    }
}

impl From<IpAddr> for Element<'_> {
    fn from(address: IpAddr) -> Self {
        Self { bits: address.into(), text: None }
    }
}

/// What stands left of an element's comma; `None` if there is no comma.
pub type Rest<'a> = Option<&'a [u8]>;

/// What stands left of the comma that `before`, the text before an element, ends with. `None`: something else is there.
#[inline(always)]
fn rest(before: &[u8]) -> Option<Rest<'_>> {
    match trim_end(before) {
        [] => Some(None),
        [rest @ .., b','] => Some(Some(rest)),
        _ => None,
    }
}

/// The last element of a list, and what stands left of its comma. This reads
/// the usual forms in one pass from the right: canonical text, also in brackets, with a port, or as IPv4-mapped IPv6. `None`
/// is anything else, for [`parse_address`] to judge.
#[inline(always)]
pub fn last_element(list: &[u8]) -> Option<(Element<'_>, Rest<'_>)> {
    let list = trim_end(list);
    let (element, before) = match ending(list) {
        Ending::V4 => last_v4(list)?,
        Ending::Port => last_with_port(list)?,
        Ending::Other => last_v6(list)?,
    };
    Some((element, rest(before)?))
}

/// In which of the usual forms an element can be, by its last few bytes: a form that is tried in vain costs as much as the
/// one that fits.
enum Ending {
    /// `.5`.
    V4,
    /// `.5:80`, `]:80` or `]`.
    Port,
    /// None of these.
    Other,
}

#[inline(always)]
fn ending(list: &[u8]) -> Ending {
    let (mut digits, mut rest) = (0_u32, list);
    while let [before @ .., b'0'..=b'9'] = rest
        && digits < 6
    {
        rest = before;
        digits = digits.wrapping_add(1);
    }
    match rest {
        [.., b'.'] => Ending::V4,
        [.., b']'] if digits == 0 => Ending::Port,
        [.., b']' | b'.', b':']
        | [.., b'.', b'0'..=b'9', b':']
        | [.., b'.', b'0'..=b'9', b'0'..=b'9', b':']
        | [.., b'.', b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', b':'] => Ending::Port,
        _ => Ending::Other,
    }
}

/// As [`last_element`], where that is an IPv4 address without a port: its bits, its text, and what stands left of its comma.
/// Lists of nothing else are common, and this path is half as long.
#[inline(always)]
pub fn last_plain_v4(list: &[u8]) -> Option<(u32, &[u8], Rest<'_>)> {
    match last_v4(list)? {
        (Element { bits: Bits::V4(bits), text: Some(text) }, before) => Some((bits, text, rest(before)?)),
        _ => None,
    }
}

/// The canonical text between what stands before it and what follows it.
#[inline(always)]
fn between<'a>(text: &'a [u8], before: &[u8]) -> Option<&'a [u8]> {
    text.get(before.len()..)
}

/// `203.0.113.5` or `::ffff:203.0.113.5`, and what stands before.
#[inline(always)]
fn last_v4(text: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (fourth, before) = octet_before(text)?;
    let (third, before) = octet_before(before.strip_suffix(b".")?)?;
    let (second, before) = octet_before(before.strip_suffix(b".")?)?;
    let (first, before) = octet_before(before.strip_suffix(b".")?)?;
    let bits = first << 24 | second << 16 | third << 8 | fourth;
    let element = Element { bits: Bits::V4(bits), text: Some(between(text, before)?) };
    (bits != 0).then_some((element, before.strip_suffix(b"::ffff:").unwrap_or(before)))
}

/// An octet without leading zeros; a fourth digit is left to be stumbled over.
#[inline(always)]
fn octet_before(text: &[u8]) -> Option<(u32, &[u8])> {
    let (ones, rest) = last_digit(text)?;
    let Some((tens, before)) = last_digit(rest) else { return Some((ones, rest)) };
    let two = tens.wrapping_mul(10).wrapping_add(ones);
    let Some((hundreds, rest)) = last_digit(before) else { return (tens > 0).then_some((two, before)) };
    let three = hundreds.wrapping_mul(100).wrapping_add(two);
    (100..=255).contains(&three).then_some((three, rest))
}

#[inline(always)]
fn last_digit(text: &[u8]) -> Option<(u32, &[u8])> {
    let (byte, before) = text.split_last()?;
    Some((digit(*byte)?, before))
}

/// `203.0.113.5:80`, `[2001:db8::5]` or `[2001:db8::5]:80`, and what stands before.
fn last_with_port(text: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let colon = text.iter().rev().take(6).position(|byte| digit(*byte).is_none())?;
    let (address, after) = text.split_at_checked(text.len().checked_sub(colon)?.checked_sub(1)?)?;
    let inside = match (address, after) {
        (inside, [b']']) => inside,
        (address, after) => {
            port(after)?;
            match address {
                [inside @ .., b']'] => inside,
                address => {
                    let (element, before) = last_v4(address)?;
                    // A mapped address has no port without its brackets.
                    return (between(address, before) == element.text).then_some((element, before));
                }
            }
        }
    };
    let (element, before) = last_v6(inside).or_else(|| last_mapped(inside))?;
    Some((element, before.strip_suffix(b"[")?))
}

/// `::ffff:203.0.113.5`, and what stands before.
fn last_mapped(text: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (element, before) = last_v4(text)?;
    (between(text, before) != element.text).then_some((element, before))
}

/// A canonical IPv6 address, and what stands before. No IPv4 inside, and of several runs of zero groups only one may be
/// longer than a group: for others the question which one is `::` is left to [`Text`].
#[inline]
fn last_v6(text: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (mut high, mut low, mut groups) = (0_u64, 0_u64, 0_u32);
    let mut follows_zero = false;
    let mut rest = text;
    let mut has_gap = false;
    loop {
        if let [before @ .., b':', b':'] = rest {
            if follows_zero {
                return None;
            }
            rest = before;
            has_gap = true;
            break;
        }
        if groups > 0 {
            match rest {
                [before @ .., b':'] => rest = before,
                _ => break,
            }
        }
        let (group, before) = group_before(rest)?;
        if group == 0 && follows_zero {
            return None;
        }
        follows_zero = group == 0;
        rest = before;
        match groups {
            0..4 => low |= group << groups.wrapping_mul(16),
            4..8 => high |= group << groups.wrapping_sub(4).wrapping_mul(16),
            _ => return None,
        }
        groups = groups.wrapping_add(1);
    }
    if has_gap {
        // The groups left of the gap, flush left.
        let (mut left_high, mut left_low) = (0_u64, 0_u64);
        let mut follows_zero = true;
        let mut next = group_before(rest);
        while let Some((group, before)) = next {
            if group == 0 && follows_zero {
                return None;
            }
            follows_zero = group == 0;
            left_low = left_low >> 16 | left_high << 48;
            left_high = left_high >> 16 | group << 48;
            groups = groups.wrapping_add(1);
            rest = before;
            next = match rest {
                [before @ .., b':'] => Some(group_before(before)?),
                _ => None,
            };
        }
        if groups > 6 || rest.last() == Some(&b':') {
            return None;
        }
        high |= left_high;
        low |= left_low;
    } else if groups != 8 {
        return None;
    }
    if high == 0 && (low == 0 || low >> 32 == 0xffff) {
        return None; // unspecified, or IPv4-mapped
    }
    let bits = Bits::V6(u128::from(high) << 64 | u128::from(low));
    Some((Element { bits, text: Some(between(text, rest)?) }, rest))
}

/// One to four lower-case hexadecimal digits without leading zeros.
#[inline(always)]
fn group_before(text: &[u8]) -> Option<(u64, &[u8])> {
    let (byte, mut rest) = text.split_last()?;
    let mut group = lower_hex_digit(*byte)?;
    let mut last = 1;
    let mut shift = 4_u32;
    while shift < 16
        && let Some((byte, before)) = rest.split_last()
        && let Some(digit) = lower_hex_digit(*byte)
    {
        group |= digit << shift;
        last = digit;
        shift = shift.wrapping_add(4);
        rest = before;
    }
    (last > 0).then_some((group, rest))
}

#[inline(always)]
fn lower_hex_digit(byte: u8) -> Option<u64> {
    match HEX_DIGITS.get(usize::from(byte)) {
        Some(digit) if *digit < 16 && !byte.is_ascii_uppercase() => Some(u64::from(*digit)),
        _ => None,
    }
}

/// Reads an address as [`parse_address`] does, and its port, if it has one.
pub fn parse_endpoint(text: &[u8]) -> Option<(IpAddr, Option<u16>)> {
    let (address, after) = split(text)?;
    match after {
        [] => Some((address, None)),
        after => Some((address, Some(port(after)?))),
    }
}

/// Reads the node identifier of a `forwarded` element (RFC 7239 §6): an address as in [`parse_address`], whose port may
/// also be obfuscated (`203.0.113.5:_x9`).
pub fn parse_node(text: &[u8]) -> Option<IpAddr> {
    let (address, after) = split(text)?;
    (after.is_empty() || port(after).is_some() || is_obfuscated_port(after)).then_some(address)
}

/// `text` without spaces and tabs at its ends (`OWS`, RFC 9110 §5.6.3).
pub fn trim_blanks(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    trim_end(text)
}

#[inline(always)]
fn trim_end(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// The address, and what follows it: nothing, or something that should be a port with its colon.
fn split(text: &[u8]) -> Option<(IpAddr, &[u8])> {
    let text = trim_blanks(text);
    let (address, after) = match text {
        [b'[', inside @ ..] => {
            let end = inside.iter().position(|byte| *byte == b']')?;
            let (inside, after) = inside.split_at_checked(end)?;
            (without_zone(inside)?, after.strip_prefix(b"]")?)
        }
        _ => match leading_v4(text) {
            Some((address, after)) => (IpAddr::V4(address), after),
            None => (without_zone(text)?, [].as_slice()),
        },
    };
    (!address.is_unspecified()).then_some((address, after))
}

/// An IPv6 address with or without a zone; IPv4 if it is mapped.
fn without_zone(text: &[u8]) -> Option<IpAddr> {
    let address = match text.iter().position(|byte| *byte == b'%') {
        None => text,
        Some(at) => {
            let (address, zone) = text.split_at_checked(at)?;
            let zone = zone.strip_prefix(b"%")?;
            let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._~-".contains(byte);
            if zone.is_empty() || !zone.iter().all(allowed) {
                return None;
            }
            address
        }
    };
    v6(address).map(|address| address.to_canonical())
}

/// `:` and a port number of 1 to 5 digits.
fn port(after: &[u8]) -> Option<u16> {
    match after {
        [b':', digits @ ..] if (1..=5).contains(&digits.len()) => {
            let port =
                digits.iter().try_fold(0_u32, |port, byte| Some(port.wrapping_mul(10).wrapping_add(digit(*byte)?)));
            u16::try_from(port?).ok()
        }
        _ => None,
    }
}

/// `:` and an obfuscated port (`obfport`, RFC 7239 §6).
fn is_obfuscated_port(after: &[u8]) -> bool {
    match after {
        [b':', b'_', name @ ..] => {
            !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
        }
        _ => false,
    }
}

/// The IPv4 address that `text` begins with, and the rest. Four decimal octets, none with a leading zero: to some
/// readers `010` is 8.
fn leading_v4(text: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    let (mut address, mut octet, mut digits, mut dots) = (0_u32, 0_u32, 0_u32, 0_u32);
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        if let Some(digit) = digit(*byte) {
            octet = octet.wrapping_mul(10).wrapping_add(digit);
            digits = digits.wrapping_add(1);
        } else if *byte == b'.' && dots < 3 && is_octet(octet, digits) {
            address = address << 8 | octet;
            dots = dots.wrapping_add(1);
            (octet, digits) = (0, 0);
        } else {
            break;
        }
        rest = after;
    }
    (dots == 3 && is_octet(octet, digits)).then(|| (Ipv4Addr::from_bits(address << 8 | octet), rest))
}

/// Is a number of that many digits an octet? Too many of them may have overflowed it, so their count decides.
fn is_octet(number: u32, digits: u32) -> bool {
    match digits {
        1 => true,
        2 => number >= 10,
        3 => (100..=255).contains(&number),
        _ => false,
    }
}

/// The forms of RFC 4291 §2.2: eight groups, `::` once for one zero group or more, IPv4 in place of the last two.
fn v6(text: &[u8]) -> Option<Ipv6Addr> {
    let mut bits = 0_u128;
    let mut groups = 0_u32;
    let mut before_gap = None; // the groups left of the `::`, at their place, and how many they are
    let mut rest = text;
    if let [b':', b':', after @ ..] = rest {
        before_gap = Some((0, 0));
        rest = after;
    }
    while !(rest.is_empty() && before_gap.is_some_and(|(_, before)| before == groups)) {
        let (group, after) = leading_group(rest)?;
        if let [b'.', ..] = after {
            let (address, []) = leading_v4(rest)? else { return None };
            bits = bits << 32 | u128::from(address.to_bits());
            groups = groups.wrapping_add(2);
            break;
        }
        bits = bits << 16 | u128::from(group);
        groups = groups.wrapping_add(1);
        rest = match after {
            _ if groups > 8 => return None,
            [] => break,
            [b':', b':', after @ ..] if before_gap.is_none() => {
                before_gap = Some((bits.checked_shl(128_u32.checked_sub(groups.wrapping_mul(16))?)?, groups));
                bits = 0;
                after
            }
            [b':', after @ ..] => after,
            _ => return None,
        };
    }
    match before_gap {
        None if groups == 8 => Some(Ipv6Addr::from_bits(bits)),
        Some((before, _)) if groups < 8 => Some(Ipv6Addr::from_bits(before | bits)),
        _ => None,
    }
}

/// One to four hexadecimal digits.
fn leading_group(text: &[u8]) -> Option<(u32, &[u8])> {
    let (first, mut rest) = text.split_first()?;
    let mut group = hex_digit(*first)?;
    while let Some((byte, after)) = rest.split_first()
        && let Some(digit) = hex_digit(*byte)
    {
        group = group << 4 | digit;
        rest = after;
        if group > 0xffff {
            return None;
        }
    }
    // Leading zeros don't show in the value, so the digits are counted, too.
    (text.len().wrapping_sub(rest.len()) <= 4).then_some((group, rest))
}

fn digit(byte: u8) -> Option<u32> {
    let digit = u32::from(byte).wrapping_sub(u32::from(b'0'));
    (digit < 10).then_some(digit)
}

fn hex_digit(byte: u8) -> Option<u32> {
    match HEX_DIGITS.get(usize::from(byte)) {
        Some(digit) if *digit < 16 => Some(u32::from(*digit)),
        _ => None,
    }
}

/// The decimal text of each octet, flush right, and its length.
#[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "the compiler runs it, and checks")]
const OCTETS: [[u8; 4]; 256] = {
    let mut texts = [[0; 4]; 256];
    let mut octet = 0;
    while octet < 256 {
        let digits = if octet > 99 {
            3
        } else if octet > 9 {
            2
        } else {
            1
        };
        texts[octet] = [b'0' | (octet / 100) as u8, b'0' | (octet / 10 % 10) as u8, b'0' | (octet % 10) as u8, digits];
        octet += 1;
    }
    texts
};

/// The value of each byte as a hexadecimal digit, 16 if it is none.
#[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "the compiler runs it, and checks")]
const HEX_DIGITS: [u8; 256] = {
    let mut digits = [16; 256];
    let mut digit = 0;
    while digit < 16 {
        let text = b"0123456789abcdef"[digit];
        digits[text as usize] = digit as u8;
        digits[text.to_ascii_uppercase() as usize] = digit as u8;
        digit += 1;
    }
    digits
};

// === Writing ===

/// The canonical text of an address (RFC 5952 §4): lower case, no leading zeros, the longest run of zero groups as
/// `::`. An IPv4 address inside IPv6 stays hexadecimal.
pub fn canonical(address: IpAddr) -> String {
    str::from_utf8(Text::new(address).as_bytes()).unwrap_or_default().to_owned()
}

/// The canonical text of an address, as [`canonical`] makes it, without an allocation.
#[derive(Clone, Debug)]
pub struct Text {
    /// Written from the end: that is how digits come out.
    bytes: [u8; LONGEST_TEXT],
    start: usize,
    end: usize,
}

/// Eight groups of four digits.
const LONGEST_TEXT: usize = 39;

impl Text {
    /// The text of `address`.
    pub fn new(address: IpAddr) -> Self {
        let mut text = Self { bytes: [0; LONGEST_TEXT], start: LONGEST_TEXT, end: LONGEST_TEXT };
        match address {
            IpAddr::V4(address) => text.push_v4(address),
            IpAddr::V6(address) => text.push_v6(address),
        }
        text
    }

    /// The text as bytes, all ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) {
        self.start = self.start.saturating_sub(1);
        if let Some(place) = self.bytes.get_mut(self.start) {
            *place = byte;
        }
    }

    fn push_v4(&mut self, address: Ipv4Addr) {
        for octet in address.octets().into_iter().rev() {
            let [first, second, third, digits] = OCTETS.get(usize::from(octet)).copied().unwrap_or_default();
            // Four bytes at once, of which the surplus is overwritten by the next.
            let end = self.start;
            if let Some(place) = self.bytes.get_mut(end.saturating_sub(4)..end) {
                place.copy_from_slice(&[first, second, third, b'.']);
            }
            self.start = end.saturating_sub(usize::from(digits)).saturating_sub(1);
        }
        self.end = self.end.saturating_sub(1); // the dot behind the last octet
    }

    fn push_v6(&mut self, address: Ipv6Addr) {
        let groups = address.segments();
        let gap = longest_zeros(&groups);
        let mut follows_group = false;
        for (at, group) in groups.into_iter().enumerate().rev() {
            if gap.contains(&at) {
                if at == gap.start {
                    self.push(b':');
                    self.push(b':');
                }
                follows_group = false;
                continue;
            }
            if follows_group {
                self.push(b':');
            }
            self.push_group(group);
            follows_group = true;
        }
    }

    fn push_group(&mut self, mut group: u16) {
        loop {
            let [_, low] = (group & 0x0f).to_be_bytes();
            self.push(if low < 10 { b'0' | low } else { b'`' | low.wrapping_sub(9) });
            group >>= 4;
            if group == 0 {
                break;
            }
        }
    }
}

/// The longest run of two zero groups or more, the first of equals (RFC 5952 §4.2); an empty range if there is none.
fn longest_zeros(groups: &[u16; 8]) -> Range<usize> {
    let mut longest = 0..0;
    let mut start = 0;
    for (at, group) in groups.iter().enumerate() {
        let end = at.saturating_add(1);
        if *group != 0 {
            start = end;
        } else if end.saturating_sub(start) > longest.len().max(1) {
            longest = start..end;
        }
    }
    longest
}

// === Blocks ===

/// A block of addresses of one family (RFC 4632, RFC 4291 §2.3): `10.0.0.0/8`, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr(IpNet);

impl Cidr {
    /// Reads a block or a single address; no zone, no port. Bits beyond the prefix length are ignored, and a block inside
    /// `::ffff:0:0/96` is the IPv4 block.
    pub fn parse(text: &str) -> Option<Self> {
        let text = trim_blanks(text.as_bytes());
        let Some(slash) = text.iter().position(|byte| *byte == b'/') else {
            let zone = text.contains(&b'%');
            let (address, port) = parse_endpoint(text)?;
            return (!zone && port.is_none()).then(|| Self(IpNet::from(address)));
        };
        let (address, length) = text.split_at_checked(slash)?;
        let length = prefix_length(length.strip_prefix(b"/")?)?;
        let block = match leading_v4(address) {
            Some((address, [])) => IpNet::V4(Ipv4Net::new(address, length).ok()?),
            Some(_) => return None,
            None => {
                let address = v6(address)?;
                let block = Ipv6Net::new(address, length).ok()?;
                match (address.to_ipv4_mapped(), length.checked_sub(96)) {
                    (Some(address), Some(length)) => IpNet::V4(Ipv4Net::new(address, length).ok()?),
                    _ => IpNet::V6(block),
                }
            }
        };
        Some(Self(block.trunc()))
    }

    /// The blocks behind a name that may stand in their place: `"private"` (RFC 1918, RFC 4193, RFC 6598, loopback,
    /// link-local) or `"loopback"`.
    pub fn preset(name: &str) -> Option<Vec<Self>> {
        let blocks: &[&str] = match name {
            "private" => &[
                "10.0.0.0/8",
                "172.16.0.0/12",
                "192.168.0.0/16",
                "100.64.0.0/10",
                "169.254.0.0/16",
                "127.0.0.0/8",
                "fc00::/7",
                "fe80::/10",
                "::1",
            ],
            "loopback" => &["127.0.0.0/8", "::1"],
            _ => return None,
        };
        Some(blocks.iter().filter_map(|block| Self::parse(block)).collect())
    }

    /// Is the address in this block? Never, if it is of the other family.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Is it a block of IPv4 addresses?
    pub fn is_v4(&self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }

    /// Does the block hold every address of its family?
    pub fn is_everyone(&self) -> bool {
        self.0.prefix_len() == 0
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", canonical(self.0.addr()), self.0.prefix_len())
    }
}

/// One to three digits, without leading zeros.
fn prefix_length(digits: &[u8]) -> Option<u8> {
    let text = str::from_utf8(digits).ok()?;
    text.parse().ok().filter(|length: &u8| length.to_string() == text)
}

/// Many blocks as one set. Asking it takes a binary search: a CDN publishes hundreds of blocks, and every element of a
/// list asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Blocks {
    /// Is the address in one of the blocks?
    #[inline(always)]
    pub fn contains(&self, address: impl Into<Bits>) -> bool {
        match address.into() {
            Bits::V4(bits) => covers(&self.v4, bits),
            Bits::V6(bits) => covers(&self.v6, bits),
        }
    }

    /// Is there no block at all?
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl FromIterator<Cidr> for Blocks {
    fn from_iter<I: IntoIterator<Item = Cidr>>(blocks: I) -> Self {
        let mut all = Self::default();
        for Cidr(block) in blocks {
            match block {
                IpNet::V4(block) => all.v4.push((block.network().to_bits(), block.broadcast().to_bits())),
                IpNet::V6(block) => all.v6.push((block.network().to_bits(), block.broadcast().to_bits())),
            }
        }
        drop_covered(&mut all.v4);
        drop_covered(&mut all.v6);
        all
    }
}

/// Sorts ranges and drops those inside others. Blocks lie apart or one inside the other; they never overlap in part.
fn drop_covered<T: Ord + Copy>(ranges: &mut Vec<(T, T)>) {
    // A heap, because the code of the standard library's sorting is large.
    let sorted =
        ranges.drain(..).map(|(first, last)| (first, Reverse(last))).collect::<BinaryHeap<_>>().into_sorted_vec();
    ranges.extend(sorted.into_iter().map(|(first, Reverse(last))| (first, last)));
    ranges.dedup_by(|(first, _), (_, kept)| first <= kept);
}

#[inline(always)]
fn covers<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let covered = |(first, last): &(T, T)| *first <= address && address <= *last;
    if ranges.len() <= 4 {
        return ranges.iter().any(covered);
    }
    let at = ranges.partition_point(|(first, _)| *first <= address);
    at.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(covered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text_of(text: &str) -> Option<String> {
        parse_address(text.as_bytes()).map(canonical)
    }

    #[test]
    fn every_form_of_an_address_becomes_its_canonical_text() {
        for (text, canonical) in [
            ("203.0.113.5", "203.0.113.5"),
            (" \t203.0.113.5\t ", "203.0.113.5"),
            ("0.0.0.1", "0.0.0.1"),
            ("255.255.255.255", "255.255.255.255"),
            ("203.0.113.5:0", "203.0.113.5"),
            ("203.0.113.5:65535", "203.0.113.5"),
            ("203.0.113.5:00080", "203.0.113.5"),
            ("2001:DB8::5", "2001:db8::5"),
            ("[2001:db8::5]", "2001:db8::5"),
            ("[2001:db8::5]:443", "2001:db8::5"),
            ("2001:db8::5:443", "2001:db8::5:443"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%25en.0_~-]:1", "fe80::1"),
            ("::1", "::1"),
            ("1::", "1::"),
            ("1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"),
            ("::2:3:4:5:6:7:8", "0:2:3:4:5:6:7:8"),
            ("2001:0:0:1:0:0:0:5", "2001:0:0:1::5"),
            ("2001:db8:0:0:1:0:0:5", "2001:db8::1:0:0:5"),
            ("2001:db8::1:1:1:1:5", "2001:db8:0:1:1:1:1:5"),
            ("::ffff:203.0.113.5", "203.0.113.5"),
            ("[::FFFF:cb00:7105%eth0]:443", "203.0.113.5"),
            ("::10.0.0.1", "::a00:1"),
            ("64:ff9b::10.0.0.1", "64:ff9b::a00:1"),
            ("1:2:3:4:5:6:10.0.0.1", "1:2:3:4:5:6:a00:1"),
            ("abcd:ef01:2345:6789:abcd:ef01:2345:6789", "abcd:ef01:2345:6789:abcd:ef01:2345:6789"),
        ] {
            assert_eq!(text_of(text).as_deref(), Some(canonical), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_no_address() {
        for text in [
            "",
            " ",
            "unknown",
            "_hidden",
            "203.0.113",
            "203.0.113.5.6",
            "203.0.113.",
            ".203.0.113.5",
            "203.0.113.05",
            "203.0.113.00",
            "203.0.113.256",
            "203.0.113.1000",
            "203.0.113. 5",
            "0xcb.0.113.5",
            "+1.2.3.4",
            "3405803781",
            "203.0.113.5:",
            "203.0.113.5:65536",
            "203.0.113.5:000080",
            "203.0.113.5:-1",
            "203.0.113.5:+1",
            "203.0.113.5:8:8",
            "203.0.113.5:_x",
            "203.0.113.5 80",
            "203.0.113.5%eth0",
            "203.0.113.5/32",
            "[203.0.113.5]",
            "[203.0.113.5]:80",
            "0.0.0.0",
            "0.0.0.0:80",
            "::",
            "[::]:80",
            "::%eth0",
            "::ffff:0.0.0.0",
            "2001:db8::5%",
            "2001:db8::5%a/b",
            "2001:db8::5%a%b",
            "[2001:db8::5]%eth0",
            "[2001:db8::5",
            "2001:db8::5]",
            "[[2001:db8::5]]",
            "[2001:db8::5]443",
            "[2001:db8::5]:",
            "[2001:db8::5] :80",
            "[ 2001:db8::5]",
            "[]",
            ":",
            ":::",
            ":1",
            "1:",
            "1::2::3",
            "1:::2",
            ":1:2:3:4:5:6:7",
            "1:2:3:4:5:6:7",
            "1:2:3:4:5:6:7:",
            "1:2:3:4:5:6:7:8:9",
            "1:2:3:4::5:6:7:8",
            "1:2:3:4:5:6:7:8::",
            "2001:db8::12345",
            "2001:db8::g",
            "::ffff:203.0.113.05",
            "::ffff:203.0.113",
            "::ffff:203.0.113.5.6",
            "::203.0.113.5:1",
            "1:2:3:4:5:6:7:10.0.0.1",
            "1.2.3.4::",
            "::1\u{a0}",
        ] {
            assert_eq!(text_of(text), None, "{text:?}");
        }
        assert_eq!(parse_address(b"203.0.113.5\xff"), None);
        assert_eq!(parse_address(b"203.0.113.5\0"), None);
    }

    #[test]
    fn only_a_node_may_have_an_obfuscated_port() {
        let address = parse_address(b"203.0.113.5");
        for node in ["203.0.113.5:_x9", "203.0.113.5:_a.b_c-d", "203.0.113.5:80", "203.0.113.5"] {
            assert_eq!(parse_node(node.as_bytes()), address, "{node}");
        }
        assert_eq!(parse_node(b"[2001:db8::5]:_x"), parse_address(b"2001:db8::5"));
        for node in ["203.0.113.5:_", "203.0.113.5:x", "203.0.113.5:_x/", "_hidden", "_hidden:_x", "unknown:80"] {
            assert_eq!(parse_node(node.as_bytes()), None, "{node}");
        }
    }

    #[test]
    fn an_endpoint_tells_an_absent_port_from_port_zero() {
        let port = |text: &str| parse_endpoint(text.as_bytes()).map(|(_, port)| port);
        assert_eq!(port("10.0.0.1"), Some(None));
        assert_eq!(port("10.0.0.1:0"), Some(Some(0)));
        assert_eq!(port("[::1]:443"), Some(Some(443)));
        assert_eq!(port("10.0.0.1:x"), None);
    }

    #[test]
    fn a_block_holds_addresses_of_its_own_family() {
        for (block, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.9.8.7/8", "10.0.0.0", "9.255.255.255"),
            ("172.16.0.0/12", "172.31.255.255", "172.32.0.0"),
            ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("10.0.0.1/32", "10.0.0.1", "10.0.0.0"),
            ("0.0.0.0/0", "203.0.113.5", "2001:db8::5"),
            ("::/0", "2001:db8::5", "203.0.113.5"),
            ("2001:db8:8000::/33", "2001:db8:ffff::1", "2001:db8:7fff::1"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.0"),
            ("::ffff:0:0/96", "203.0.113.5", "::1"),
            ("::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("::ffff:10.0.0.0/90", "::fffe:0:1", "10.0.0.1"),
            ("[2001:db8::1]", "2001:db8::1", "2001:db8::2"),
            (" 10.0.0.0/8\t", "10.0.0.1", "11.0.0.1"),
        ] {
            let set: Blocks = Cidr::parse(block).into_iter().collect();
            for (text, expected) in [(inside, true), (outside, false)] {
                let address = parse_address(text.as_bytes()).unwrap();
                assert_eq!(Cidr::parse(block).unwrap().contains(address), expected, "{text} in {block}");
                assert_eq!(set.contains(address), expected, "{text} in {block}, as a set");
            }
        }
    }

    #[test]
    fn a_block_has_neither_zone_nor_port_nor_an_odd_length() {
        for text in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0 /8",
            "10.0.0.1:80",
            "10.0.0.1:80/32",
            "10.0/8",
            "010.0.0.0/8",
            "::/129",
            "fe80::%eth0/10",
            "fe80::1%eth0",
            "[fe80::1%eth0]",
            "[::1]:80",
            "[::1]/128",
            "0.0.0.0",
            "::",
            "localhost",
        ] {
            assert_eq!(Cidr::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_block_is_written_canonically() {
        for (given, written) in
            [("10.9.8.7/8", "10.0.0.0/8"), ("::FFFF:10.0.0.0/104", "10.0.0.0/8"), ("::1", "::1/128"), ("::/0", "::/0")]
        {
            assert_eq!(Cidr::parse(given).unwrap().to_string(), written);
        }
    }

    #[test]
    fn presets_hold_what_their_names_say() {
        let private: Blocks = Cidr::preset("private").unwrap().into_iter().collect();
        let loopback: Blocks = Cidr::preset("loopback").unwrap().into_iter().collect();
        for (address, is_private, is_loopback) in [
            ("127.0.0.1", true, true),
            ("::1", true, true),
            ("10.0.0.1", true, false),
            ("172.16.0.0", true, false),
            ("172.31.255.255", true, false),
            ("192.168.255.255", true, false),
            ("100.64.0.0", true, false),
            ("100.127.255.255", true, false),
            ("169.254.169.254", true, false),
            ("fc00::", true, false),
            ("fdff::1", true, false),
            ("fe80::1", true, false),
            ("febf::1", true, false),
            ("9.255.255.255", false, false),
            ("172.32.0.0", false, false),
            ("192.169.0.0", false, false),
            ("100.128.0.0", false, false),
            ("128.0.0.0", false, false),
            ("fec0::1", false, false),
            ("2001:db8::1", false, false),
            ("::2", false, false),
        ] {
            let parsed = parse_address(address.as_bytes()).unwrap();
            assert_eq!((private.contains(parsed), loopback.contains(parsed)), (is_private, is_loopback), "{address}");
        }
        assert_eq!(Cidr::preset("privat"), None);
    }

    /// Addresses near each other, with many zero groups, so that blocks hit and runs of zeros occur.
    fn address() -> impl Strategy<Value = IpAddr> {
        let group = prop_oneof![3 => Just(0_u16), 1 => any::<u16>(), 1 => 0..16_u16];
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
            (0..1024_u32).prop_map(|bits| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | bits))),
            prop::array::uniform8(group).prop_map(|groups| IpAddr::V6(Ipv6Addr::from(groups)).to_canonical()),
        ]
    }

    fn block() -> impl Strategy<Value = String> {
        (address(), 0..=128_u8).prop_map(|(address, length)| match address {
            IpAddr::V4(address) => format!("{address}/{}", length % 33),
            IpAddr::V6(_) => format!("{}/{length}", canonical(address)),
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_itself(address in address()) {
            let text = canonical(address);
            prop_assert_eq!(text.parse::<IpAddr>().unwrap(), address);
            let expected = Some(address).filter(|address| !address.is_unspecified());
            prop_assert_eq!(parse_address(text.as_bytes()), expected);
            if let IpAddr::V6(v6) = address && v6.to_ipv4().is_none() {
                prop_assert_eq!(text, v6.to_string()); // only with IPv4 inside does std write it otherwise
            }
        }

        #[test]
        fn bare_forms_are_those_that_std_reads(text in "[0-9a-fA-F:.]{0,24}|[0-9]{1,3}(\\.[0-9]{1,3}){3}|(::)?([0-9a-f]{0,4}:{1,2}){1,8}([0-9a-f]{1,4}|1\\.2\\.3\\.4)?") {
            let std = text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
            let has_port = text.contains('.') && text.parse::<std::net::SocketAddrV4>().is_ok();
            prop_assume!(!has_port);
            prop_assert_eq!(parse_address(text.as_bytes()), std.filter(|address| !address.is_unspecified()), "{}", text);
        }

        #[test]
        fn any_bytes_are_an_address_or_not(text in prop::collection::vec(any::<u8>(), 0..40)) {
            for address in [parse_address(&text), parse_node(&text)].into_iter().flatten() {
                prop_assert_eq!(parse_address(canonical(address).as_bytes()), Some(address));
            }
        }

        #[test]
        fn a_set_of_blocks_holds_what_one_of_them_holds(
            texts in prop::collection::vec(block(), 0..6),
            addresses in prop::collection::vec(address(), 1..8),
        ) {
            let blocks: Vec<Cidr> = texts.iter().filter_map(|text| Cidr::parse(text)).collect();
            prop_assert_eq!(blocks.len(), texts.len());
            let set: Blocks = blocks.iter().copied().collect();
            for address in addresses {
                let expected = blocks.iter().any(|block| block.contains(address));
                prop_assert_eq!(set.contains(address), expected, "{} in {:?}", address, texts);
            }
        }
    }
}
