//! Address forms in, canonical text out (RFC 5952).
//!
//! Proxies write addresses in more forms than one: with a port, in brackets, IPv4 inside IPv6. Applications compare
//! texts, so each address leaves in one form only.
//!
//! ```
//! use idleguard_core::client_ip::address::{canonical, parse_address};
//! let address = parse_address(b"[2001:DB8:0::5]:443").unwrap();
//! assert_eq!(canonical(address), "2001:db8::5");
//! assert_eq!(parse_address(b"::ffff:203.0.113.5"), parse_address(b"203.0.113.5:8080"));
//! assert_eq!(parse_address(b"203.0.113.010"), None); // 8 or 10?
//! ```

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str;

/// Reads `v4`, `v4:port`, `v6`, `[v6]` or `[v6]:port`, with blanks around it. The port and a zone (RFC 4007 §11,
/// `fe80::1%eth0`) are checked and dropped; IPv4-mapped IPv6 (RFC 4291 §2.5.5.2) becomes IPv4.
///
/// `None` for anything else, and for the unspecified addresses `0.0.0.0` and `::`, which are nobody's.
pub fn parse_address(text: &[u8]) -> Option<IpAddr> {
    Some(parse_endpoint(text)?.0)
}

/// Reads an address as [`parse_address`] does, and its port, if it has one.
pub fn parse_endpoint(text: &[u8]) -> Option<(IpAddr, Option<u16>)> {
    let (address, port) = split_port(text)?;
    let port = match port {
        None => None,
        Some(port) => Some(parse_port(port)?),
    };
    Some((address, port))
}

/// Reads the node identifier of a `forwarded` element (RFC 7239 §6): an address as in [`parse_address`], whose port may
/// also be obfuscated (`203.0.113.5:_x9`).
pub fn parse_node(text: &[u8]) -> Option<IpAddr> {
    let (address, port) = split_port(text)?;
    port.is_none_or(|port| is_obfuscated_port(port) || parse_port(port).is_some()).then_some(address)
}

/// An address, and what stands behind its colon.
fn split_port(text: &[u8]) -> Option<(IpAddr, Option<&str>)> {
    let text = str::from_utf8(trim_blanks(text)).ok()?;
    let (address, port) = if let Some(inside) = text.strip_prefix('[') {
        let (inside, after) = inside.split_once(']')?;
        let port = if after.is_empty() { None } else { Some(after.strip_prefix(':')?) };
        (IpAddr::V6(parse_v6(inside)?), port)
    } else {
        match text.split_once(':') {
            None => (IpAddr::V4(text.parse().ok()?), None),
            Some((_, after)) if after.contains(':') => (IpAddr::V6(parse_v6(text)?), None),
            Some((address, port)) => (IpAddr::V4(address.parse().ok()?), Some(port)),
        }
    };
    let address = address.to_canonical();
    (!address.is_unspecified()).then_some((address, port))
}

/// An IPv6 address with or without a zone.
fn parse_v6(text: &str) -> Option<Ipv6Addr> {
    let Some((address, zone)) = text.split_once('%') else { return text.parse().ok() };
    let is_zone = !zone.is_empty() && zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte));
    address.parse().ok().filter(|_| is_zone)
}

fn parse_port(digits: &str) -> Option<u16> {
    let is_number = digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

/// `obfport` (RFC 7239 §6).
fn is_obfuscated_port(port: &str) -> bool {
    let name = port.strip_prefix('_').unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// `text` without spaces and tabs at its ends (`OWS`, RFC 9110 §5.6.3).
pub fn trim_blanks(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// The canonical text of an address (RFC 5952 §4): lower case, no leading zeros, the longest run of zero groups as
/// `::`. An IPv4 address inside IPv6 stays hexadecimal.
pub fn canonical(address: IpAddr) -> String {
    let mut text = Vec::new();
    push_address(&mut text, address);
    String::from_utf8(text).unwrap_or_default()
}

/// Appends the canonical text.
pub(super) fn push_address(text: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => push_v4(text, address),
        // A mapped address became IPv4 when it was read; of all others the standard library writes no mixed notation.
        IpAddr::V6(address) => write!(text, "{address}").unwrap_or_default(),
    }
}

/// By hand, because every request has two or three to write, and a formatter costs as much as reading them.
fn push_v4(text: &mut Vec<u8>, address: Ipv4Addr) {
    text.reserve("255.255.255.255".len());
    for (at, octet) in address.octets().into_iter().enumerate() {
        if at > 0 {
            text.push(b'.');
        }
        if octet >= 100 {
            text.push(b'0' | (octet / 100));
        }
        if octet >= 10 {
            text.push(b'0' | (octet / 10 % 10));
        }
        text.push(b'0' | (octet % 10));
    }
}
#[cfg(test)]
pub(super) mod tests {
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
    pub(in super::super) fn address() -> impl Strategy<Value = IpAddr> {
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
            prop_assert!(address.is_ipv4() || !text.contains('.'), "{}", text);
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
