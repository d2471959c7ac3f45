//! Address forms in, canonical text out (RFC 5952); blocks of addresses.
//!
//! Proxies write addresses in more forms than one: with a port, in brackets, IPv4 inside IPv6. Applications compare
//! texts, so each address leaves in one form only. The forms are read here and not by `std`, because a list of 100 KB
//! may hold ten thousand of them: reading and writing one costs about as much as `std` spends on its formatter alone.
//! The tests hold both against `std`.
//!
//! ```
//! use idleguard_core::client_ip::address::{canonical, parse_address};
//! let address = parse_address(b"[2001:DB8:0::5]:443").unwrap();
//! assert_eq!(canonical(address), "2001:db8::5");
//! assert_eq!(parse_address(b"::ffff:203.0.113.5"), parse_address(b"203.0.113.5:8080"));
//! assert_eq!(parse_address(b"203.0.113.010"), None); // 8 or 10?
//! ```

mod blocks;
mod from_right;
mod text;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use self::blocks::{Blocks, Cidr, Neighbours};
pub use self::from_right::{Element, Rest, last_element};
use self::from_right::{Found, last_address, last_port};
pub use self::text::{Text, canonical};

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
            let (port, before) = last_port(text)?;
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

    /// Addresses near each other, with many zero groups, so that blocks hit and runs of zeros occur.
    pub(super) fn address() -> impl Strategy<Value = IpAddr> {
        let group = prop_oneof![3 => Just(0_u16), 1 => any::<u16>(), 1 => 0..16_u16];
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
            (0..1024_u32).prop_map(|bits| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | bits))),
            prop::array::uniform8(group).prop_map(|groups| IpAddr::V6(Ipv6Addr::from(groups)).to_canonical()),
        ]
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

    }
}
