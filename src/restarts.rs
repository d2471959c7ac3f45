//! Is the far end being restarted?
//!
//! A timeout closes a connection because nobody used it; a restart closes all of them in one moment, used or not. That
//! changes two answers. Connections beside one that failed are dead, too, so a request that is retried must not find them in
//! the pool. And a fresh connection is no safer than an old one: whatever is being restarted accepts it and then goes. One
//! restart is seldom alone (a deploy goes from one server to the next), so that holds for a while.

use std::time::Duration;

use crate::time::Timestamp;

/// Closes less than this apart are of one moment: a restart's reach us as the network and the event loop let them.
const MOMENT: Duration = Duration::from_millis(100);

/// For how long after a restart another one is expected: servers that drain get 30 s in most deployments (the default of
/// Kubernetes' `terminationGracePeriodSeconds`).
const UNSETTLED: Duration = Duration::from_secs(30);

/// What the far end's latest closes tell.
#[derive(Debug, Default)]
pub struct Restarts {
    /// The last close of a connection that the request on it, if there was one, can't have caused.
    closed_at: Option<Timestamp>,
    /// The last close of a fresh connection before its first response.
    failed_at: Option<Timestamp>,
    /// When two connections last went in one moment.
    seen_at: Option<Timestamp>,
}

impl Restarts {
    /// The far end closed an idle connection, or a reused one before it had answered. Returns whether another one went in the
    /// same moment, so that all are suspect.
    pub fn on_closed(&mut self, now: Timestamp) -> bool {
        let is_another = self.closed_at.replace(now).is_some_and(|at| now.since(at) < MOMENT);
        if is_another {
            self.seen_at = Some(now);
        }
        self.failed_at.take_if(|at| now.since(*at) < MOMENT).is_some() || is_another
    }

    /// The far end closed a fresh connection before it had answered. Returns whether a restart is the reason, as far as can be
    /// told; if it isn't, the request may have been.
    pub fn on_fresh_failed(&mut self, now: Timestamp) -> bool {
        let is_restart = self.is_unsettled(now) || self.closed_at.is_some_and(|at| now.since(at) < MOMENT);
        self.failed_at = (!is_restart).then_some(now);
        is_restart
    }

    /// Whether a fresh connection may end like an old one, because the far end has just been restarted.
    pub fn is_unsettled(&self, now: Timestamp) -> bool {
        self.seen_at.is_some_and(|at| now.since(at) < UNSETTLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn connections_that_go_one_after_the_other_are_no_restart() {
        let mut restarts = Restarts::default();
        for second in 1..10 {
            assert!(!restarts.on_closed(at(second * 1_000)));
        }
        assert!(!restarts.is_unsettled(at(9_001)));
    }

    #[test]
    fn two_that_go_at_once_are_one_and_the_far_end_is_unsettled_for_a_while() {
        let mut restarts = Restarts::default();
        assert!(!restarts.on_closed(at(1_000)));
        assert!(restarts.on_closed(at(1_099)), "the others are suspect");
        assert!(restarts.is_unsettled(at(31_098)));
        assert!(!restarts.is_unsettled(at(31_099)));
        assert!(restarts.on_fresh_failed(at(2_000)));
    }

    #[test]
    fn a_request_that_ends_its_fresh_connection_is_no_restart() {
        let mut restarts = Restarts::default();
        for second in 1..10 {
            assert!(!restarts.on_fresh_failed(at(second * 1_000)));
            assert!(!restarts.on_fresh_failed(at(second * 1_000)));
        }
        assert!(!restarts.is_unsettled(at(9_001)));
        assert!(!restarts.on_closed(at(9_200)), "long after");
    }

    #[test]
    fn whichever_goes_first_a_fresh_one_and_an_idle_one_in_one_moment_make_all_suspect() {
        let mut restarts = Restarts::default();
        assert!(!restarts.on_fresh_failed(at(1_000)));
        assert!(restarts.on_closed(at(1_050)));
        let mut restarts = Restarts::default();
        assert!(!restarts.on_closed(at(1_000)));
        assert!(restarts.on_fresh_failed(at(1_050)));
    }
}
