//! How old is this connection? Upstream connections by their local address, and since when each is idle.
//!
//! The filter stands in front of Envoy's router, not in the path of the connections. What it sees is the local address of the connection
//! that served a request, at the request's answer, whether the far end's or Envoy's own. An idle age runs from the end of the last
//! exchange on a connection, with none in flight, until the next request is handed to the router.
//!
//! Whatever could make an age longer than it was makes it unknown instead, or shorter:
//!
//! - A request without an answer yet may be on any connection that carries several at a time (HTTP/2). One that was sent after the
//!   connection became idle may have ended that idleness, so the age ends at it. One that was sent before may have been on it all the time:
//!   then the age waits until that request's connection is known ([`Watch::resolve`]).
//! - A local address can be that of two connections, to two hosts. Who asks for an age of [`SHORTEST_AGE`] and more has to say what is at
//!   the other end, and if that is not what it was, the address tells nothing any more.
//! - A connection that has been idle for longer than its cluster's `idle_timeout` is gone, so it is another one with the same address.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroU64;
use std::time::Duration;

use crate::time::{Timestamp, millis};
use crate::timeout::{Evidence, Outcome, SHORTEST_AGE};

/// Connections that one worker watches: as many as the table takes before it would double. A connection above that is not watched: its
/// ages are unknown until others are forgotten.
pub const MAX_CONNECTIONS: usize = 16_384 / 8 * 7;

/// Ages that wait to be known for certain. Above that they are given up.
const MAX_PENDING: usize = 64;

/// What is at the other end of a connection: a number for the cluster's name and the far end's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FarEnd(NonZeroU64);

impl FarEnd {
    /// The far end with this address, reached through this cluster.
    pub fn new(cluster: &[u8], address: &[u8]) -> Self {
        let mut hash = AddressHash::of(cluster);
        hash.add(address);
        Self(NonZeroU64::new(hash.0).unwrap_or(NonZeroU64::MIN))
    }
}

/// Names a connection: its local address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// The connection with this local address.
    pub fn new(local_address: &[u8]) -> Self {
        Self(AddressHash::of(local_address).0)
    }

    /// As a number.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

/// Names a request that has no answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingId(usize);

/// Names a destination on its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationId(pub u16);

impl DestinationId {
    /// Of connections that lead elsewhere: they are known, so that they are asked about once, and nothing follows from them.
    pub const NONE: Self = Self(u16::MAX);
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    idle_since: Timestamp,
    /// `None`: two connections have this local address.
    far_end: Option<FarEnd>,
    /// The cluster's `idle_timeout` in milliseconds, [`u32::MAX`] if it has none.
    idle_timeout: u32,
    in_flight: u16,
    destination: DestinationId,
}

/// With its key and the table's own byte: 33 bytes a place, so 38 bytes for each connection at [`MAX_CONNECTIONS`].
const _: () = assert!(size_of::<(u64, Connection)>() <= 32);

impl Connection {
    fn is_gone(&self, now: Timestamp) -> bool {
        self.in_flight == 0
            && millis(now.since(self.idle_since)) > u64::from(self.idle_timeout)
            && self.idle_timeout != u32::MAX
    }
}

/// What is known of the connection that served a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It has not served before, as far as is known. [`Watch::open`] takes it in.
    New,
    /// It has served before; it was idle for less than [`SHORTEST_AGE`], or it is not known for how long.
    Reused {
        /// Where it leads.
        destination: DestinationId,
        /// For how long, or not much less, if known.
        idle_age: Option<Duration>,
    },
    /// It has served before, and was idle for this long: if the far end is who it was, which [`Watch::confirm`] asks for.
    Aged {
        /// Where it leads.
        destination: DestinationId,
        /// For how long at least.
        idle_age: Duration,
    },
}

/// An age that is not certain yet.
#[derive(Clone, Debug)]
struct Pending {
    destination: DestinationId,
    connection: ConnectionId,
    /// When the connection became idle.
    idle_since: Timestamp,
    evidence: Evidence,
}

/// What [`Watch::confirm`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmed {
    /// The idle age is what it seemed to be.
    Certain,
    /// It will be known when other requests have an answer.
    Later,
    /// It is another connection.
    Not,
}

/// The upstream connections of one worker.
#[derive(Debug, Default)]
pub struct Watch {
    connections: HashMap<u64, Connection, BuildHasherDefault<KeptHash>>,
    /// When each request was sent that has no answer yet. Free places hold `None`.
    waiting: Vec<Option<Timestamp>>,
    free: Vec<usize>,
    pending: Vec<Pending>,
}

impl Watch {
    /// A request is handed to the router.
    pub fn send(&mut self, now: Timestamp) -> WaitingId {
        match self.free.pop() {
            Some(place) => {
                if let Some(waiting) = self.waiting.get_mut(place) {
                    *waiting = Some(now);
                }
                WaitingId(place)
            }
            None => {
                self.waiting.push(Some(now));
                WaitingId(self.waiting.len().saturating_sub(1))
            }
        }
    }

    /// A request has an answer, or has ended without one.
    fn stop_waiting(&mut self, request: WaitingId) -> Option<Timestamp> {
        let sent = self.waiting.get_mut(request.0)?.take()?;
        self.free.push(request.0);
        Some(sent)
    }

    fn oldest_waiting(&self) -> Option<Timestamp> {
        self.waiting.iter().flatten().min().copied()
    }

    /// A request is answered, by whomever, on this connection.
    pub fn answered(&mut self, request: WaitingId, id: ConnectionId) -> Seen {
        let Some(sent) = self.stop_waiting(request) else {
            return Seen::Reused { destination: DestinationId::NONE, idle_age: None };
        };
        self.assign(id, sent);
        let Some(connection) = self.connections.get_mut(&id.0).filter(|connection| !connection.is_gone(sent)) else {
            return Seen::New;
        };
        let Connection { idle_since, destination, far_end, in_flight, .. } = *connection;
        connection.in_flight = in_flight.saturating_add(1);
        if in_flight > 0 || far_end.is_none() {
            return Seen::Reused { destination, idle_age: None };
        }
        let mut idle_age = sent.since(idle_since);
        if idle_age >= SHORTEST_AGE {
            // Any of those who were sent meanwhile may have been on it before this one.
            let ended = self.waiting.iter().flatten().filter(|other| **other >= idle_since).min();
            idle_age = ended.map_or(idle_age, |other| idle_age.min(other.since(idle_since)));
        }
        if idle_age >= SHORTEST_AGE {
            Seen::Aged { destination, idle_age }
        } else {
            Seen::Reused { destination, idle_age: Some(idle_age) }
        }
    }

    /// Takes in a connection that [`answered`](Self::answered) called new. Returns false if there are too many.
    pub fn open(
        &mut self,
        id: ConnectionId,
        destination: DestinationId,
        far_end: FarEnd,
        idle_timeout: Duration,
        now: Timestamp,
    ) -> bool {
        if self.connections.len() >= MAX_CONNECTIONS && !self.connections.contains_key(&id.0) {
            return false;
        }
        let idle_timeout = u32::try_from(millis(idle_timeout)).unwrap_or(u32::MAX);
        let far_end = Some(far_end);
        self.connections.insert(id.0, Connection { idle_since: now, far_end, idle_timeout, in_flight: 1, destination });
        true
    }

    /// Says who is at the other end of a connection with an [age](Seen::Aged), and what came of the request.
    pub fn confirm(&mut self, id: ConnectionId, far_end: FarEnd, evidence: Evidence) -> Confirmed {
        let Some(connection) = self.connections.get_mut(&id.0) else { return Confirmed::Not };
        if connection.far_end != Some(far_end) {
            connection.far_end = None;
            return Confirmed::Not;
        }
        let Connection { idle_since, destination, .. } = *connection;
        if self.oldest_waiting().is_none_or(|oldest| oldest >= idle_since) {
            return Confirmed::Certain;
        }
        if self.pending.len() < MAX_PENDING {
            self.pending.push(Pending { destination, connection: id, idle_since, evidence });
        }
        Confirmed::Later
    }

    /// A request that was sent then is, or was, on this connection: it was not idle all the time.
    fn assign(&mut self, id: ConnectionId, sent: Timestamp) {
        self.pending.retain(|pending| pending.connection != id || sent >= pending.idle_since);
    }

    /// The ages that are certain by now, with their destinations: no request is left that may have been on their connection.
    pub fn resolve(&mut self) -> Vec<(DestinationId, Evidence)> {
        if self.pending.is_empty() {
            return Vec::new();
        }
        let oldest = self.oldest_waiting();
        let is_certain = |pending: &mut Pending| oldest.is_none_or(|oldest| oldest >= pending.idle_since);
        self.pending.extract_if(.., is_certain).map(|pending| (pending.destination, pending.evidence)).collect()
    }

    /// The exchange on a connection has ended.
    pub fn ended(&mut self, id: ConnectionId, now: Timestamp) {
        if let Some(connection) = self.connections.get_mut(&id.0) {
            connection.in_flight = connection.in_flight.saturating_sub(1);
            connection.idle_since = now;
        }
    }

    /// A request has ended without an answer. If it had been given a connection, that was in use until now.
    pub fn ended_unanswered(&mut self, request: WaitingId, id: Option<ConnectionId>, now: Timestamp) {
        let Some(sent) = self.stop_waiting(request) else { return };
        let Some(id) = id else { return };
        self.assign(id, sent);
        if let Some(connection) = self.connections.get_mut(&id.0) {
            connection.idle_since = now;
        }
    }

    /// The connection has broken: whoever has its address next is another one.
    pub fn broken(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id.0) {
            connection.idle_timeout = 0;
        }
    }

    /// Forgets the connections that are gone.
    pub fn forget(&mut self, now: Timestamp) {
        self.connections.retain(|_, connection| !connection.is_gone(now));
    }

    /// How many connections are watched.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }
}

/// Numbers for addresses. Who connects to whom is not a client's to choose, so a hash without a key will do.
struct AddressHash(u64);

impl AddressHash {
    fn of(bytes: &[u8]) -> Self {
        let mut hash = Self(0);
        hash.add(bytes);
        hash
    }

    fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        for (place, byte) in last.iter_mut().zip(rest) {
            *place = *byte;
        }
        self.mix(u64::from_le_bytes(last));
        self.mix(bytes.len() as u64);
    }

    /// The finalizer of MurmurHash3 (Appleby), each time: every bit of the input reaches every bit of the number.
    fn mix(&mut self, word: u64) {
        let mut mixed = self.0.rotate_left(23) ^ word;
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        self.0 = mixed ^ (mixed >> 33);
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct KeptHash(u64);

impl Hasher for KeptHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut hash = AddressHash(self.0);
        hash.add(bytes);
        self.0 = hash.0;
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// What came of a request on a connection, for [`Evidence`].
pub fn outcome(failed: bool, id: ConnectionId) -> Outcome {
    if failed { Outcome::Failed { connection: id.0 } } else { Outcome::Answered }
}

#[cfg(test)]
mod tests;
