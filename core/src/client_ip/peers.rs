//! Peers by small numbers, so that a connection can be marked with the number of its peer.
//!
//! To hand over an address costs a host twelve thousand instructions; to say whether there is a mark, three. Behind a load balancer there are
//! few peers, and each has many requests on a connection. A number is written, and asked for, bit by bit: a mark that is there is a one. A
//! connection without any mark reads as 0, which is nobody's number.
//!
//! ```
//! use idleguard_core::client_ip::peers::Peers;
//!
//! let lb = [10, 0, 0, 2].into();
//! let mut peers = Peers::default();
//! assert_eq!(peers.bits(), 0);
//! assert_eq!(peers.number(lb), Some(1));
//! assert_eq!((peers.bits(), peers.get(1)), (1, Some(lb)));
//! ```

use std::net::IpAddr;

/// Bits of a number.
pub const BITS: usize = 3;

/// Peers that have a number: all numbers but 0.
const MOST: usize = (1 << BITS) - 1;

/// The peers that have a number.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// The first one's number is 1.
    known: Vec<IpAddr>,
    /// Peers that had to be asked for since there were too many.
    strangers: u64,
}

impl Peers {
    /// How many bits the highest number has: what is to be asked for. 0 also where there are too many peers, so that asking is in vain
    /// as often as not.
    pub fn bits(&self) -> usize {
        if self.strangers > 0 { 0 } else { usize::BITS.saturating_sub(self.known.len().leading_zeros()) as usize }
    }

    /// The peer with this number.
    pub fn get(&self, number: usize) -> Option<IpAddr> {
        self.known.get(number.checked_sub(1)?).copied()
    }

    /// The number of a peer, a new one if need be; `None` if there are too many.
    pub fn number(&mut self, peer: IpAddr) -> Option<usize> {
        let place = self.known.iter().position(|known| *known == peer);
        if place.is_none() && (self.known.len() >= MOST || self.strangers > 0) {
            self.strangers = self.strangers.saturating_add(1);
            return None;
        }
        if place.is_none() {
            self.known.push(peer);
        }
        Some(place.unwrap_or(self.known.len().saturating_sub(1)).saturating_add(1))
    }

    /// How many requests came from peers without a number, since there were too many.
    pub fn strangers(&self) -> u64 {
        self.strangers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_number_leads_back_to_its_peer() {
        let mut peers = Peers::default();
        for last in 1..=7 {
            let number = peers.number(peer(last)).expect("there is room");
            assert_eq!(peers.get(number), Some(peer(last)));
            assert_eq!(peers.number(peer(last)), Some(number), "the second time");
            assert!(number < 1 << peers.bits(), "{number} has more than {} bits", peers.bits());
        }
    }

    #[test]
    fn a_connection_without_marks_has_no_peer() {
        let mut peers = Peers::default();
        peers.number(peer(1));
        assert_eq!(peers.get(0), None);
        assert_eq!(peers.get(2), None);
    }

    #[test]
    fn only_the_bits_that_numbers_have_are_asked_for() {
        let mut peers = Peers::default();
        let bits = (1..=7).map(|last| {
            peers.number(peer(last));
            peers.bits()
        });
        assert_eq!(bits.collect::<Vec<_>>(), [1, 2, 2, 3, 3, 3, 3]);
    }

    #[test]
    fn with_too_many_peers_nothing_is_asked_for_any_more() {
        let mut peers = Peers::default();
        for last in 1..=8 {
            let _ = peers.number(peer(last));
        }
        assert_eq!((peers.bits(), peers.strangers()), (0, 1));
    }
}
