//! The canonical text of an address (RFC 5952).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::str;

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
