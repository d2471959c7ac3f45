//! Blocks of addresses, and many of them as one set.

use std::fmt;
use std::net::IpAddr;
use std::str;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::address::{canonical, parse_endpoint, trim_blanks};

/// A block of addresses of one family (RFC 4632, RFC 4291 §2.3): `10.0.0.0/8`, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cidr(IpNet);

impl Cidr {
    /// Reads a block or a single address; no zone, no port. Bits beyond the prefix length are ignored, and a block inside
    /// `::ffff:0:0/96` is the IPv4 block.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = str::from_utf8(trim_blanks(text.as_bytes())).ok()?;
        let Some((address, length)) = text.split_once('/') else {
            let (address, port) = parse_endpoint(text.as_bytes())?;
            return (!text.contains('%') && port.is_none()).then(|| Self(IpNet::from(address)));
        };
        // One to three digits, without leading zeros.
        let length = length.parse().ok().filter(|number: &u8| number.to_string() == length)?;
        // By the standard library: here, and only here, the unspecified addresses and mapped ones as such are wanted.
        let block = match address.parse().ok()? {
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
    pub(super) fn preset(name: &str) -> Option<Vec<Self>> {
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
    #[cfg(test)]
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Is it a block of IPv4 addresses?
    pub(super) fn is_v4(&self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }

    /// Does the block hold every address of its family?
    pub(super) fn is_everyone(&self) -> bool {
        self.0.prefix_len() == 0
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", canonical(self.0.addr()), self.0.prefix_len())
    }
}

/// Many blocks as one set: in order, none inside another. Asking it takes a binary search: a CDN publishes hundreds of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks(Vec<IpNet>);

impl Blocks {
    /// Is the address in one of the blocks?
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        // Two blocks lie apart, or one holds the other: only the last one that begins at or before the address can hold it.
        let after = self.0.partition_point(|block| block.network() <= address);
        after.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|block| block.contains(&address))
    }

    /// Is there no block at all?
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Cidr> for Blocks {
    fn from_iter<I: IntoIterator<Item = Cidr>>(blocks: I) -> Self {
        let mut set = Self::default();
        for Cidr(new) in blocks {
            if !set.contains(new.network()) || set.0.iter().any(|block| new.contains(block)) {
                set.0.retain(|block| !new.contains(block));
                set.0.insert(set.0.partition_point(|block| block.network() < new.network()), new);
            }
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::super::address::tests::address;
    use super::*;
    use crate::client_ip::address::parse_address;
    use proptest::prelude::*;

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

    fn block() -> impl Strategy<Value = String> {
        (address(), 0..=128_u8).prop_map(|(address, length)| match address {
            IpAddr::V4(address) => format!("{address}/{}", length % 33),
            IpAddr::V6(_) => format!("{}/{length}", canonical(address)),
        })
    }

    proptest! {
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
            }
        }
    }
}
