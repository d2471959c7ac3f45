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
use std::num::NonZeroU32;
use std::ops::Range;
use std::str;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

// === Reading ===

/// Reads `v4`, `v4:port`, `v6`, `[v6]` or `[v6]:port`, with blanks around it. The port and a zone (RFC 4007 §11,
/// `fe80::1%eth0`) are checked and dropped; IPv4-mapped IPv6 (RFC 4291 §2.5.5.2) becomes IPv4.
///
/// `None` for anything else, and for the unspecified addresses `0.0.0.0` and `::`, which are nobody's.
pub fn parse_address(text: &[u8]) -> Option<IpAddr> {
    Some(parse_endpoint(text)?.0)
}

/// Reads an address as [`parse_address`] does, and its port, if it has one.
pub fn parse_endpoint(text: &[u8]) -> Option<(IpAddr, Option<u16>)> {
    let (bits, port) = bare_address(text).or_else(|| zoned_address(text))?;
    Some((bits.into(), port))
}

/// Reads the node identifier of a `forwarded` element (RFC 7239 §6): an address as in [`parse_address`], whose port may
/// also be obfuscated (`203.0.113.5:_x9`).
pub fn parse_node(text: &[u8]) -> Option<IpAddr> {
    parse_address(text).or_else(|| {
        let text = trim_end(text);
        let (address, port) = text.split_at_checked(text.iter().rposition(|byte| *byte == b':')?)?;
        let takes_port = match address {
            [.., b']'] => true,
            [.., b'0'..=b'9'] => !address.contains(&b':'),
            _ => false, // a blank, which would be dropped
        };
        parse_address(address).filter(|_| takes_port && is_obfuscated_port(port))
    })
}

/// An address as a number, IPv4 as the IPv4-mapped IPv6 that it is the same as: comparing is all that a list of ten thousand
/// needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bits(u128);

/// Where IPv4 begins among [`Bits`], and where it ends (`::ffff:0:0/96`).
const V4: (u128, u128) = (0xffff_0000_0000, 0xffff_ffff_ffff);

impl From<IpAddr> for Bits {
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(address) => V4.0 | u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        })
    }
}

impl From<Bits> for IpAddr {
    fn from(Bits(bits): Bits) -> Self {
        match u32::try_from(bits ^ V4.0) {
            Ok(v4) => Self::V4(Ipv4Addr::from_bits(v4)),
            Err(_) => Self::V6(Ipv6Addr::from_bits(bits)),
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

/// The last element of a list, and what stands left of its comma. `None`: it is no address, or one with a zone,
/// capital letters or a blank behind it, or so little stands left of it that [`last_address`] would look beyond;
/// [`parse_address`] knows.
#[inline(always)]
pub fn last_element(list: &[u8]) -> Option<(Element<'_>, Rest<'_>)> {
    let Found { bits, text, before, .. } = last_address(list)?;
    let element = Element { bits, text };
    match before {
        [rest @ .., b','] | [rest @ .., b',', b' '] => Some((element, Some(rest))),
        _ => match trim_end(before) {
            [] => Some((element, None)),
            [rest @ .., b','] => Some((element, Some(rest))),
            _ => None,
        },
    }
}

/// The address that a text ends with.
struct Found<'a> {
    bits: Bits,
    /// Its canonical text, if that is among what was read.
    text: Option<&'a [u8]>,
    port: Option<u16>,
    /// What stands before it; whether that may be, is for the caller to say.
    before: &'a [u8],
}

/// An address without a zone, with nothing but blanks around it, and its port.
#[inline(never)]
fn bare_address(text: &[u8]) -> Option<(Bits, Option<u16>)> {
    let text = trim_blanks(text);
    let mut padded = [b','; LONGEST + 5];
    let added = padded.len().checked_sub(text.len())?;
    padded.get_mut(added..)?.copy_from_slice(text);
    let mut is_lower_case = false;
    loop {
        if let Some(Found { bits, port, before, .. }) = last_address(&padded)
            && before.len() == added
        {
            return Some((bits, port));
        }
        if is_lower_case || !text.iter().any(u8::is_ascii_uppercase) {
            return None;
        }
        padded.make_ascii_lowercase();
        is_lower_case = true;
    }
}

/// The most bytes that an address without a zone can have: brackets, six groups, four octets, a port.
const LONGEST: usize = 53;

/// Reads an address without a zone, without capital letters, and without a blank behind it, from the right, each byte once. The
/// right end is where a list is read from, and what follows an address tells what it is.
#[inline(always)]
fn last_address(text: &[u8]) -> Option<Found<'_>> {
    let mut end = text;
    let (mut port, mut in_brackets) = (None, false);
    let mut digits = Digits::NONE;
    let octets = if ends_in_octet(text) {
        let octets = v4(text)?;
        if !octets.1.ends_with(b":") {
            return v4_alone(octets, text, None);
        }
        Some(octets)
    } else {
        if end.ends_with(b",::1") || end.ends_with(b" ::1") {
            // What sidecars append is too short to be worth more work.
            return Some(Found { bits: Bits(1), text: Some(b"::1"), port: None, before: end.strip_suffix(b"::1")? });
        }
        digits = digits_before(end)?;
        if let Some((number, before)) = port_of(&digits) {
            if !before.ends_with(b"]") {
                return v4_alone(v4(before)?, before, Some(number));
            }
            (port, end, in_brackets) = (Some(number), before, true);
        } else {
            in_brackets = digits.count == 0 && digits.separator == ']';
        }
        if in_brackets {
            end = end.split_last()?.1;
            digits = digits_before(end)?;
        }
        if in_brackets && ends_in_octet(end) {
            let octets = v4(end)?;
            octets.1.strip_suffix(b":")?; // an IPv4 address has no brackets
            Some(octets)
        } else {
            None
        }
    };

    let mut groups = Groups::default();
    let mut before = digits.before;
    if let Some((bits, before_v4)) = octets {
        (groups.low, groups.places) = (u64::from(bits), 32);
        before = before_v4;
        digits.separator = ':';
    } else if digits.count > 0 {
        groups.push(&digits)?;
    } else if !before.ends_with(b"::") {
        return None;
    }
    let mut has_gap = false;
    while digits.separator == ':' && !has_gap {
        digits = digits_before(before.split_last()?.1)?;
        before = digits.before;
        match (digits.count, digits.separator) {
            (0, ':') => {
                before = groups.left_of_gap(before.split_last()?.1)?;
                has_gap = true;
            }
            (0, _) => return None,
            _ => groups.push(&digits)?,
        }
    }
    let (high, low) = (groups.high, groups.low);
    if !has_gap && groups.places < 128 {
        return None;
    }
    if high == 0 && (low == 0 || u128::from(low) == V4.0) {
        return None;
    }
    let text = match octets {
        None if groups.are_canonical && (high != 0 || low >> 32 != 0xffff) => end.get(before.len()..),
        Some((_, before)) if high == 0 && low >> 32 == 0xffff => end.get(before.len()..),
        _ => None,
    };
    if in_brackets {
        before = before.strip_suffix(b"[")?;
    }
    Some(Found { bits: Bits(u128::from(high) << 64 | u128::from(low)), text, port, before })
}

/// An IPv4 address, whose octets were read, without IPv6 around it.
#[inline(always)]
fn v4_alone<'a>((bits, before): (u32, &'a [u8]), through: &'a [u8], port: Option<u16>) -> Option<Found<'a>> {
    let bits = NonZeroU32::new(bits)?;
    let text = through.get(before.len()..);
    Some(Found { bits: Bits(V4.0 | u128::from(bits.get())), text, port, before })
}

/// The groups of an IPv6 address (RFC 4291 §2.2), gathered from the right.
struct Groups {
    high: u64,
    low: u64,
    /// 16 for each group.
    places: u32,
    /// The last one, or 0 for the gap.
    last: u32,
    /// Are they written as RFC 5952 wants them? Also false if several zero groups are written out: which run of them is `::`
    /// is left to [`Text`].
    are_canonical: bool,
}

impl Default for Groups {
    fn default() -> Self {
        Self { high: 0, low: 0, places: 0, last: 1, are_canonical: true }
    }
}

impl Groups {
    /// The next one to the left.
    #[inline(always)]
    fn push(&mut self, group: &Digits<'_>) -> Option<()> {
        let placed = u64::from(group.value).wrapping_shl(self.places);
        match self.places {
            0..64 => self.low |= placed,
            64..128 => self.high |= placed,
            _ => return None,
        }
        self.note(group);
        Some(())
    }

    /// The groups left of the gap, and what stands before them.
    #[inline(always)]
    fn left_of_gap<'a>(&mut self, text: &'a [u8]) -> Option<&'a [u8]> {
        self.are_canonical &= self.last != 0;
        self.last = 0;
        let (mut high, mut low) = (0_u64, 0_u64); // flush left
        let mut digits = digits_before(text)?;
        let mut before = digits.before;
        while digits.count > 0 {
            low = low >> 16 | high << 48;
            high = high >> 16 | u64::from(digits.value) << 48;
            self.note(&digits);
            if digits.separator != ':' {
                break;
            }
            digits = digits_before(before.split_last()?.1)?;
            before = digits.before;
            if digits.count == 0 {
                return None;
            }
        }
        self.high |= high;
        self.low |= low;
        self.are_canonical &= self.places < 112; // canonically no single group is `::`
        (self.places < 128).then_some(before)
    }

    #[inline(always)]
    fn note(&mut self, group: &Digits<'_>) {
        self.places = self.places.wrapping_add(16);
        self.are_canonical &= group.is_canonical & (group.value | self.last != 0);
        self.last = group.value;
    }
}

/// `203.0.113.5`, and what stands before it.
#[inline(always)]
fn v4(text: &[u8]) -> Option<(u32, &[u8])> {
    let (fourth, before) = octet_before(text)?;
    let (third, before) = octet_before(before.strip_suffix(b".")?)?;
    let (second, before) = octet_before(before.strip_suffix(b".")?)?;
    let (first, before) = octet_before(before.strip_suffix(b".")?)?;
    Some((first << 24 | second << 16 | third << 8 | fourth, before))
}

/// Does the text end with a dot and one to three digits?
#[inline(always)]
fn ends_in_octet(text: &[u8]) -> bool {
    let Some([c, b, a, last]) = text.last_chunk() else { return false };
    let is_digit = |byte: &u8| digit(*byte).is_some();
    is_digit(last) && (*a == b'.' || is_digit(a) && (*b == b'.' || is_digit(b) && *c == b'.'))
}

/// An octet without leading zeros, to some readers `010` is 8, and what stands before it; a fourth digit is left to be
/// stumbled over.
#[inline(always)]
fn octet_before(text: &[u8]) -> Option<(u32, &[u8])> {
    let [hundreds, tens, ones] = text.get(text.len().wrapping_sub(3)..)?.first_chunk()?;
    let left_of = |digits| text.get(..text.len().wrapping_sub(digits)).unwrap_or(text);
    let ones = digit(*ones)?;
    let Some(tens) = digit(*tens) else { return Some((ones, left_of(1))) };
    let two = tens.wrapping_mul(10).wrapping_add(ones);
    let Some(hundreds) = digit(*hundreds) else { return (tens > 0).then(|| (two, left_of(2))) };
    let three = hundreds.wrapping_mul(100).wrapping_add(two);
    (100..=255).contains(&three).then(|| (three, left_of(3)))
}

#[inline(always)]
fn digit(byte: u8) -> Option<u32> {
    let digit = u32::from(byte).wrapping_sub(u32::from(b'0'));
    (digit < 10).then_some(digit)
}

/// Up to four hexadecimal digits, in lower case, and what stands before them.
#[derive(Clone, Copy)]
struct Digits<'a> {
    /// Four bits each.
    value: u32,
    count: u32,
    /// No leading zeros.
    is_canonical: bool,
    /// The byte before them.
    separator: char,
    /// All that stands before them.
    before: &'a [u8],
}

/// `None`: the text is shorter than five bytes.
#[inline(always)]
fn digits_before(text: &[u8]) -> Option<Digits<'_>> {
    // One check, where `last_chunk` makes two.
    let [e, d, c, b, a] = text.get(text.len().wrapping_sub(5)..)?.first_chunk()?;
    let digits = |value, count: u32, leading: u32, separator: &u8| {
        let separator = char::from(*separator);
        let before = text.get(..text.len().wrapping_sub(count as usize)).unwrap_or(text);
        Some(Digits { value, count, is_canonical: leading != 0, separator, before })
    };
    let Some(one) = hex_digit(*a) else { return digits(0, 0, 0, a) };
    let Some(two) = hex_digit(*b) else { return digits(one, 1, 1, b) };
    let Some(three) = hex_digit(*c) else { return digits(two << 4 | one, 2, two, c) };
    let Some(four) = hex_digit(*d) else { return digits(three << 8 | two << 4 | one, 3, three, d) };
    digits(four << 12 | three << 8 | two << 4 | one, 4, four, e)
}

impl<'a> Digits<'a> {
    const NONE: Self = Self { value: 0, count: 0, is_canonical: false, separator: ',', before: &[] };

    #[inline(always)]
    fn left_of_separator(&self) -> &'a [u8] {
        self.before.split_last().map_or(self.before, |(_, before)| before)
    }
}

/// The port that those digits end, if they do, and what stands before its colon. IPv6 needs brackets to have one.
#[inline(always)]
fn port_of<'a>(digits: &Digits<'a>) -> Option<(u16, &'a [u8])> {
    let left = digits.left_of_separator();
    let (value, before) = match digits.separator {
        ':' if digits.count > 0 => (digits.value, left),
        '0'..='9' if digits.count == 4 => {
            (u32::from(digits.separator) << 16 & 0xf_0000 | digits.value, left.strip_suffix(b":")?)
        }
        _ => return None,
    };
    if before.ends_with(b"]") || ends_in_octet(before) { Some((port_number(value)?, before)) } else { None }
}

/// The decimal value of hexadecimal digits, if they are decimal ones and a port's.
#[inline(always)]
fn port_number(value: u32) -> Option<u16> {
    // Six more make ten carry into the next digit.
    let carries = (value.wrapping_add(0x66666) ^ value ^ 0x66666) & 0x11_1110;
    if carries != 0 || value > 0x65535 {
        return None;
    }
    let digit = |place: u32| value >> place.wrapping_mul(4) & 15;
    let number = (0..5).rev().fold(0_u32, |number, place| number.wrapping_mul(10).wrapping_add(digit(place)));
    u16::try_from(number).ok()
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

/// An IPv6 address with a zone, with nothing but blanks around it, and its port.
#[cold]
fn zoned_address(text: &[u8]) -> Option<(Bits, Option<u16>)> {
    let text = trim_blanks(text);
    let (address, zone) = text.split_at_checked(text.iter().position(|byte| *byte == b'%')?)?;
    let zone = zone.strip_prefix(b"%")?;
    let length = zone.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"._~-".contains(byte)).count();
    let (address, port) = match (address, zone.split_at_checked(length)?.1) {
        (address, []) => (address, None),
        ([b'[', address @ ..], [b']']) => (address, None),
        ([b'[', address @ ..], [b']', after @ ..]) => {
            let (port, before) = port_of(&digits_before(text)?)?;
            (address, (before.len() == text.len().checked_sub(after.len())?).then_some(Some(port))?)
        }
        _ => return None,
    };
    let is_v6 = address.contains(&b':') && address.iter().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(byte));
    let (bits, second_port) = bare_address(address)?;
    (is_v6 && length > 0 && second_port.is_none()).then_some((bits, port))
}

/// `text` without spaces and tabs at its ends (`OWS`, RFC 9110 §5.6.3).
pub fn trim_blanks(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    trim_end(text)
}

/// `text` without spaces and tabs at its right end.
#[inline(always)]
pub fn trim_end(text: &[u8]) -> &[u8] {
    match text {
        [before @ .., b' ' | b'\t'] => text.get(..trimmed_length(before)).unwrap_or(text),
        _ => text,
    }
}

#[inline(never)]
fn trimmed_length(mut text: &[u8]) -> usize {
    while let [before @ .., b' ' | b'\t'] = text {
        text = before;
    }
    text.len()
}

#[inline(always)]
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

/// The value of each byte as a hexadecimal digit in lower case, 16 if it is none.
#[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "the compiler runs it, and checks")]
const HEX_DIGITS: [u8; 256] = {
    let mut digits = [16; 256];
    let mut digit = 0;
    while digit < 16 {
        let text = b"0123456789abcdef"[digit];
        digits[text as usize] = digit as u8;
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
        // By the standard library: here, and only here, the unspecified addresses and mapped ones as such are wanted.
        let block = match str::from_utf8(address).ok()?.parse().ok()? {
            IpAddr::V4(address) => IpNet::V4(Ipv4Net::new(address, length).ok()?),
            IpAddr::V6(address) => {
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
    /// In order, apart from each other.
    ranges: Vec<BitRange>,
}

/// Addresses from the first to the last, both among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BitRange {
    first: Bits,
    last: Bits,
}

impl BitRange {
    fn contains(&self, bits: Bits) -> bool {
        self.first <= bits && bits <= self.last
    }
}

/// A block, in the form in which it is asked fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbours {
    network: u128,
    mask: u128,
}

impl Neighbours {
    /// Every address.
    pub const ALL: Self = Self { network: 0, mask: 0 };
    /// The unspecified address alone, which no element is.
    pub const NONE: Self = Self { network: 0, mask: u128::MAX };

    /// Is the address among them?
    #[inline(always)]
    pub fn contain(&self, Bits(bits): Bits) -> bool {
        (bits ^ self.network) & self.mask == 0
    }
}

impl Blocks {
    /// Is the address in one of the blocks?
    pub fn contains(&self, address: IpAddr) -> bool {
        self.neighbours(address.into()).is_some()
    }

    /// If the address is in one of the blocks, addresses that are in it, too. The next address of a list is most likely one.
    pub fn neighbours(&self, bits: Bits) -> Option<Neighbours> {
        let after = self.ranges.partition_point(|range| range.first <= bits);
        let range = self.ranges.get(after.checked_sub(1)?).filter(|range| range.contains(bits))?;
        let differing = range.first.0 ^ range.last.0;
        // What `::/0` is without IPv4 is no block.
        let is_block = differing & differing.wrapping_add(1) == 0 && range.first.0 & differing == 0;
        Some(Neighbours { network: bits.0, mask: if is_block { !differing } else { u128::MAX } })
    }

    /// Is there no block at all?
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

impl FromIterator<Cidr> for Blocks {
    fn from_iter<I: IntoIterator<Item = Cidr>>(blocks: I) -> Self {
        let mut sorted = BinaryHeap::new(); // because the code of the standard library's sorting is large
        for Cidr(block) in blocks {
            let (first, last) = (Bits::from(block.network()).0, Bits::from(block.broadcast()).0);
            if matches!(block, IpNet::V6(_)) && first <= V4.0 && V4.1 <= last {
                // A block of IPv6 addresses holds no IPv4.
                sorted.push((first, Reverse(V4.0.saturating_sub(1))));
                sorted.push((V4.1.saturating_add(1), Reverse(last)));
            } else {
                sorted.push((first, Reverse(last)));
            }
        }
        let mut ranges: Vec<BitRange> = Vec::new();
        for (first, Reverse(last)) in sorted.into_sorted_vec() {
            let range = BitRange { first: Bits(first), last: Bits(last) };
            // Blocks lie apart or one inside the other; they never overlap in part.
            if first <= last && ranges.last().is_none_or(|kept| kept.last < range.first) {
                ranges.push(range);
            }
        }
        Self { ranges }
    }
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
            "2001:DB8::G",
            "2001:DB8::5::5",
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
        for node in [
            "203.0.113.5:_",
            "203.0.113.5:x",
            "203.0.113.5:_x/",
            "203.0.113.5 :_x",
            "_hidden",
            "_hidden:_x",
            "unknown:80",
        ] {
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
            for address in &addresses {
                let expected = blocks.iter().any(|block| block.contains(*address));
                prop_assert_eq!(set.contains(*address), expected, "{} in {:?}", address, texts);
                let Some(neighbours) = set.neighbours((*address).into()) else { continue };
                prop_assert!(neighbours.contain((*address).into()));
                for other in addresses.iter().filter(|other| neighbours.contain((**other).into())) {
                    prop_assert!(set.contains(*other), "{} is no neighbour of {} in {:?}", other, address, texts);
                }
            }
        }
    }
}
