//! The peer: whoever connected to Envoy.

use std::net::IpAddr;

use super::address::{parse_address, parse_endpoint};

/// Who is on the other end of the connection that the request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// This address, port and zone aside.
    Known(IpAddr),
    /// A process of this machine, on a Unix socket. It has no address that could be written.
    Unix,
    /// Nobody told. Nothing is believed, and nothing is claimed.
    Unknown,
}

impl Peer {
    /// The peer as the listener recorded it: an address, mostly with a port; a path or an abstract name for a Unix socket, and
    /// nothing if that has no name.
    pub fn from_filter_state(text: &[u8]) -> Self {
        match text {
            [] | [b'/' | b'@', ..] => Self::Unix,
            _ => parse_address(text).map_or(Self::Unknown, Self::Known),
        }
    }

    /// The peer from the property `source.address`, if that is a transport address. Envoy may have put an element of
    /// `x-forwarded-for` there, which is the client's to choose; it has port 0 then.
    pub fn from_source_address(text: &[u8]) -> Self {
        match text {
            [b'/' | b'@', ..] => Self::Unix,
            _ => match parse_endpoint(text) {
                Some((address, Some(1..))) => Self::Known(address),
                _ => Self::Unknown,
            },
        }
    }
}
