//! The verified addresses from the peer back to the client, and how headers hold them.

use std::mem;
use std::net::IpAddr;

use super::Form;
use crate::client_ip::address::{Bits, Element, Text, trim_blanks};

/// The verified addresses from the peer back to the client.
pub(super) struct Chain {
    peer: IpAddr,
    pub(super) client: Bits,
    pub(super) text: ChainText,
}

impl Chain {
    pub(super) fn new(peer: IpAddr) -> Self {
        let mut text = ChainText::default();
        text.prepend(peer.into());
        Self { peer, client: peer.into(), text }
    }

    pub(super) fn shorten_to_peer(&mut self) {
        *self = Self::new(self.peer);
    }

    /// The value of a header of this form.
    pub(super) fn value(&self, form: Form) -> Vec<u8> {
        match form {
            Form::XForwardedFor => self.text.as_bytes().to_vec(),
            Form::Forwarded => forwarded_value(self.text.as_bytes()),
            Form::Address => self.client_text().to_vec(),
        }
    }

    /// The client alone.
    fn client_text(&self) -> &[u8] {
        self.text.as_bytes().split(|byte| *byte == b',').next().unwrap_or_default()
    }
}

/// The addresses of a chain as `x-forwarded-for` has them. A list is walked from the right, so the text grows at its front, and
/// no element has to be kept for later.
#[derive(Default)]
pub(super) struct ChainText {
    /// The text fills the end of this, from `start` on, each address with a separator behind it.
    buffer: Vec<u8>,
    start: usize,
}

const SEPARATOR: &[u8; 2] = b", ";

impl ChainText {
    #[inline(always)]
    pub(super) fn prepend(&mut self, element: Element<'_>) {
        match element.text {
            Some(text) => self.prepend_text(text),
            None => self.prepend_text(Text::new(element.address()).as_bytes()),
        }
    }

    #[inline(always)]
    fn prepend_text(&mut self, address: &[u8]) {
        let length = address.len().wrapping_add(SEPARATOR.len()); // no slice is as long as memory
        if self.start < length {
            *self = mem::take(self).grown_by(address);
            return;
        }
        let start = self.start.wrapping_sub(length);
        if let Some(place) = self.buffer.get_mut(start..self.start)
            && let Some((place, separator)) = place.split_last_chunk_mut()
            && place.len() == address.len()
        {
            place.copy_from_slice(address);
            *separator = *SEPARATOR;
            self.start = start;
        }
    }

    /// With twice the room, which is enough for any address. By value, or the fields could not be kept in registers.
    #[cold]
    #[inline(never)]
    fn grown_by(self, address: &[u8]) -> Self {
        let added = self.buffer.len().max(128);
        let mut buffer = vec![0; added];
        buffer.extend_from_slice(&self.buffer);
        let mut grown = Self { buffer, start: self.start.saturating_add(added) };
        grown.prepend_text(address);
        grown
    }

    fn as_bytes(&self) -> &[u8] {
        let end = self.buffer.len().saturating_sub(SEPARATOR.len());
        self.buffer.get(self.start..end).unwrap_or_default()
    }
}

/// The addresses of a chain as `forwarded` elements; IPv6 needs quotes and brackets (RFC 7239 §6).
fn forwarded_value(chain: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(chain.len().saturating_mul(2));
    for address in chain.split(|byte| *byte == b',').map(trim_blanks) {
        if !value.is_empty() {
            value.extend_from_slice(SEPARATOR);
        }
        let (open, close) = if address.contains(&b':') {
            (b"for=\"[".as_slice(), b"]\"".as_slice())
        } else {
            (b"for=".as_slice(), b"".as_slice())
        };
        value.extend_from_slice(open);
        value.extend_from_slice(address);
        value.extend_from_slice(close);
    }
    value
}
