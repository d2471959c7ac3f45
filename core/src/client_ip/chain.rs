//! The verified addresses from the peer back to the client, and how headers hold them.

use std::net::IpAddr;

use super::address::push_address;
use super::forwarded::{forwarded, x_forwarded_for};
use super::peer::Peer;
use crate::header_map::Few;

/// What a header holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    XForwardedFor,
    Forwarded,
    Address,
}

/// The verified addresses, the peer's first, if it has one; the client's is the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain(pub(super) Few<IpAddr>);

impl Chain {
    pub(super) fn new(peer: Peer) -> Self {
        match peer {
            Peer::Known(address) => Self([address].into_iter().collect()),
            Peer::Unix | Peer::Unknown => Self(Few::new()),
        }
    }

    /// What is known of a request from its peer and its client alone.
    pub(super) fn between(peer: Peer, client: IpAddr) -> Self {
        let mut chain = Self::new(peer);
        if chain.client() != Some(client) {
            chain.0.push(client);
        }
        chain
    }

    pub(super) fn client(&self) -> Option<IpAddr> {
        self.0.last().copied()
    }

    /// The value of a header of this form.
    pub(super) fn value(&self, form: Form) -> Vec<u8> {
        let mut value = Vec::with_capacity(64);
        let elements = if form == Form::Address { 1 } else { self.0.len() };
        for address in self.0.iter().rev().take(elements) {
            if !value.is_empty() {
                value.extend_from_slice(b", ");
            }
            // IPv6 needs quotes and brackets (RFC 7239 §6).
            let (open, close) = match (form, address) {
                (Form::Forwarded, IpAddr::V4(_)) => ("for=", ""),
                (Form::Forwarded, IpAddr::V6(_)) => ("for=\"[", "]\""),
                (Form::XForwardedFor | Form::Address, _) => ("", ""),
            };
            value.extend_from_slice(open.as_bytes());
            push_address(&mut value, *address);
            value.extend_from_slice(close.as_bytes());
        }
        value
    }

    /// Reads a [`value`](Self::value) of a list. `None`: it is not one that was written for this peer and this client.
    pub(super) fn parse(list: &[u8], form: Form, peer: Peer, client: IpAddr) -> Option<Self> {
        let addresses = match form {
            Form::XForwardedFor => x_forwarded_for(list).collect::<Option<Few<_>>>(),
            Form::Forwarded => forwarded(list).collect(),
            Form::Address => None,
        };
        let chain = Self(addresses?);
        let is_from_peer = match peer {
            Peer::Known(address) => chain.0.first() == Some(&address),
            Peer::Unix | Peer::Unknown => true,
        };
        (is_from_peer && chain.client() == Some(client)).then_some(chain)
    }
}
