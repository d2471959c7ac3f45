//! A look at whether a hold still holds: one connection on the longer lane, left idle for as long as requests failed at, and then used
//! once more. Everybody else stays on the shorter lane meanwhile, so a look costs one request at most.

use std::time::Duration;

use crate::time::Timestamp;

/// Where a look stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The next request opens, or uses, a connection on the longer lane.
    Begin,
    /// That request is under way.
    Opening,
    /// Its connection is idle.
    Idle {
        /// Since when.
        since: Timestamp,
    },
    /// The request that tells is under way.
    Asking,
}

impl Look {
    /// Whether a request that is sent now is to take part in it: go to the longer lane, whose `idle_timeout` is `lane`. The idle age
    /// that failed is `idle_age`.
    pub fn takes(&mut self, idle_age: Duration, lane: Duration, now: Timestamp) -> bool {
        *self = match *self {
            Self::Begin => Self::Opening,
            Self::Idle { since } if now.since(since) >= lane => Self::Opening, // the pool has closed it
            Self::Idle { since } if now.since(since) >= idle_age => Self::Asking,
            Self::Opening | Self::Idle { .. } | Self::Asking => return false,
        };
        true
    }

    /// A request that took part has ended. What it told is evidence like any other's; if the hold outlived it, it told nothing.
    /// Returns whether it was the one that was to tell.
    pub fn on_ended(&mut self, now: Timestamp) -> bool {
        std::mem::replace(self, Self::Idle { since: now }) == Self::Asking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn one_request_opens_and_one_asks_when_the_connection_has_been_idle_for_long_enough() {
        let (age, lane) = (Duration::from_millis(3_000), Duration::from_millis(4_000));
        let mut look = Look::Begin;
        assert!(look.takes(age, lane, at(0)));
        assert!(!look.takes(age, lane, at(1)), "one at a time");
        assert!(!look.on_ended(at(100)));
        assert!(!look.takes(age, lane, at(3_099)));
        assert!(look.takes(age, lane, at(3_100)));
        assert_eq!(look, Look::Asking);
        assert!(!look.takes(age, lane, at(3_200)), "whatever the far end does with it, it is one");
        assert!(look.on_ended(at(18_100)));
    }

    #[test]
    fn a_connection_that_the_pool_has_closed_is_opened_again() {
        let (age, lane) = (Duration::from_millis(3_000), Duration::from_millis(4_000));
        let mut look = Look::Idle { since: at(0) };
        assert!(look.takes(age, lane, at(4_000)));
        assert_eq!(look, Look::Opening);
    }
}
