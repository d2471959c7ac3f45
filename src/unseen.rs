//! A destination whose connections nobody shows: what its requests alone tell of idle ages.
//!
//! Behind each request stands the local address of the connection that it was given. Between the end of one exchange and the
//! next request on the same address the connection was idle: so idle ages are known afterwards, and with how the request ended
//! they are evidence. What stays unknown: closes of idle connections, and so any timeout above the limit; and which exchange
//! was the last before a failure, if another filter instance or another worker used the connection. Addresses are kept for one
//! generation at most, so one that the kernel hands out again is seldom mistaken.

use crate::learner::Evidence;
use crate::time::Timestamp;

/// Connections that are remembered, the latest: 64 addresses are some 4 KB.
const CONNECTIONS: usize = 64;

/// How a request ended, as far as the HTTP filter can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a response of the far end's.
    Answered,
    /// The far end closed or reset the connection before the response began.
    Dropped,
    /// In another way, which says nothing: the client went away, a timeout, a retry.
    Unclear,
}

/// The idle connections of one destination on one worker, as far as requests show them.
#[derive(Debug, Default)]
pub struct Unseen {
    /// By local address and host, with the end of the last exchange; the oldest first.
    idle: Vec<(Vec<u8>, Timestamp)>,
}

impl Unseen {
    /// A request that came at `begun` on the connection called `connection` has ended. On HTTP/2 the exchanges of a connection
    /// overlap, and the latest counts.
    pub fn on_ended(
        &mut self,
        connection: &[u8],
        begun: Timestamp,
        ending: Ending,
        now: Timestamp,
    ) -> Option<Evidence> {
        let known = self.idle.iter().position(|(known, _)| known == connection).map(|index| self.idle.remove(index));
        let age = known.filter(|(_, since)| *since <= begun).map(|(_, since)| begun.since(since));
        if ending == Ending::Answered {
            if self.idle.len() >= CONNECTIONS {
                self.idle.remove(0);
            }
            self.idle.push((connection.to_vec(), now));
        }
        match ending {
            Ending::Answered => age.map(|age| Evidence::Succeeded { age }),
            Ending::Dropped => age.map(|age| Evidence::Failed { age }),
            Ending::Unclear => None,
        }
    }

    /// No connection that exists now is used again.
    pub fn forget_all(&mut self) {
        self.idle.clear();
    }
}

/// Reads Envoy's `response.code_details` and the number of attempts: a reset on the first attempt, before the response began.
pub fn ending(code_details: &[u8], attempts: u64) -> Ending {
    const DROPPED: [&[u8]; 2] = [
        b"upstream_reset_before_response_started{connection_termination",
        b"upstream_reset_before_response_started{remote_reset",
    ];
    match code_details {
        _ if attempts != 1 => Ending::Unclear,
        b"via_upstream" => Ending::Answered,
        details if DROPPED.iter().any(|dropped| details.starts_with(dropped)) => Ending::Dropped,
        _ => Ending::Unclear,
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn the_idle_age_is_the_time_between_two_exchanges_on_one_connection() {
        let mut unseen = Unseen::default();
        assert_eq!(unseen.on_ended(b"a", at(0), Ending::Answered, at(10)), None);
        assert_eq!(unseen.on_ended(b"b", at(500), Ending::Answered, at(510)), None);
        let age = Duration::from_millis(990);
        assert_eq!(unseen.on_ended(b"a", at(1_000), Ending::Answered, at(1_020)), Some(Evidence::Succeeded { age }));
        let age = Duration::from_millis(1_980);
        assert_eq!(unseen.on_ended(b"a", at(3_000), Ending::Dropped, at(3_001)), Some(Evidence::Failed { age }));
        assert_eq!(unseen.on_ended(b"a", at(4_000), Ending::Answered, at(4_001)), None, "a new one with that address");
        unseen.forget_all();
        assert_eq!(unseen.on_ended(b"b", at(5_000), Ending::Dropped, at(5_001)), None);
    }

    #[test]
    fn overlapping_exchanges_and_unclear_ends_say_nothing() {
        let mut unseen = Unseen::default();
        unseen.on_ended(b"a", at(0), Ending::Answered, at(100));
        assert_eq!(unseen.on_ended(b"a", at(50), Ending::Answered, at(120)), None);
        assert_eq!(unseen.on_ended(b"a", at(1_000), Ending::Unclear, at(1_001)), None);
        assert_eq!(unseen.on_ended(b"a", at(2_000), Ending::Answered, at(2_001)), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut unseen = Unseen::default();
        for connection in 0..10_000_u64 {
            unseen.on_ended(&connection.to_le_bytes(), at(connection), Ending::Answered, at(connection));
        }
        assert_eq!(unseen.idle.len(), CONNECTIONS);
    }

    #[test]
    fn only_a_reset_of_the_first_attempt_is_a_dropped_connection() {
        assert_eq!(ending(b"via_upstream", 1), Ending::Answered);
        assert_eq!(ending(b"via_upstream", 2), Ending::Unclear);
        let reset = b"upstream_reset_before_response_started{connection_termination}";
        assert_eq!(ending(reset, 1), Ending::Dropped);
        assert_eq!(ending(b"upstream_reset_before_response_started{connection_timeout}", 1), Ending::Unclear);
        assert_eq!(ending(b"downstream_remote_disconnect", 1), Ending::Unclear);
    }
}
