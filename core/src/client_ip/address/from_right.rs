//! The last address of a text, read from the right: where a list is read from, and what follows an address tells what it is.

use std::net::IpAddr;
use std::num::NonZeroU32;

use super::{Bits, V4, trim_end};

/// An address that was read, and its canonical text if that is among what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// The address.
    pub bits: Bits,
    /// The canonical text, for whoever writes many addresses that came in this form. `None`: see [`Text`](super::Text).
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
/// capital letters or a blank behind it, or so little stands left of it that `last_address` would look beyond;
/// [`parse_address`](super::parse_address) knows.
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
pub(super) struct Found<'a> {
    pub(super) bits: Bits,
    /// Its canonical text, if that is among what was read.
    text: Option<&'a [u8]>,
    pub(super) port: Option<u16>,
    /// What stands before it; whether that may be, is for the caller to say.
    pub(super) before: &'a [u8],
}

/// Reads an address without a zone, without capital letters, and without a blank behind it, from the right, each byte once. The
/// right end is where a list is read from, and what follows an address tells what it is.
#[inline(always)]
pub(super) fn last_address(text: &[u8]) -> Option<Found<'_>> {
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
    /// is left to [`Text`](super::Text).
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

/// The port that a text ends with, and what stands before its colon.
pub(super) fn last_port(text: &[u8]) -> Option<(u16, &[u8])> {
    port_of(&digits_before(text)?)
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

#[inline(always)]
fn hex_digit(byte: u8) -> Option<u32> {
    match HEX_DIGITS.get(usize::from(byte)) {
        Some(digit) if *digit < 16 => Some(u32::from(*digit)),
        _ => None,
    }
}

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
