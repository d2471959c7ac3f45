//! Requests on their way: between the filter that admits one and the connection that it is seen on, and back.
//!
//! A request that has not ended and whose connection is not busy is in the pipe: it may have been given a connection that
//! looks idle, or its response is on its way back, and its connection is not in Envoy's pool yet. Those can be counted.
//! An aborted request counts for a few turns more: the pool has closed its connection, which is still taken for busy.

use crate::time::Timestamp;

/// The requests of one generation, or of all.
#[derive(Debug, Default)]
pub struct Flow {
    /// Requests that have been admitted and have not ended.
    live: usize,
    /// Exchanges in flight on connections.
    busy: usize,
    /// How many of `live` have been seen answered, at most.
    answered: usize,
    /// When there was last none that is counted as unseen, just before there was one.
    unseen_since: Timestamp,
    /// Whether there were ever more exchanges than requests: somebody else's are among them.
    has_others: bool,
}

impl Flow {
    /// A request is admitted.
    pub fn on_admitted(&mut self, now: Timestamp) {
        self.before_unseen(now);
        self.live = self.live.saturating_add(1);
    }

    /// Responses ended on connections, as the connection filter sees it: their requests will end in a moment.
    pub fn on_answered(&mut self, responses: u32, now: Timestamp) {
        self.before_unseen(now);
        // The route may retry what was answered, too: then no request ends for the first response.
        self.answered = self.answered.saturating_add(responses as usize).min(self.live);
    }

    /// A request ended as if it had been answered. Returns whether it has been: else its connection may still be thought busy,
    /// and would hide a request that was not seen yet.
    pub fn on_ended(&mut self) -> bool {
        let was_answered = self.answered > 0;
        self.answered = self.answered.saturating_sub(1);
        if was_answered {
            self.end(1);
        }
        was_answered
    }

    /// So many requests ended, and their connections are not busy.
    pub fn end(&mut self, requests: usize) {
        self.live = self.live.saturating_sub(requests);
        self.answered = self.answered.min(self.live);
    }

    /// A connection that had so many exchanges in flight has another number now.
    pub fn on_busy(&mut self, before: usize, after: usize) {
        self.busy = self.busy.saturating_sub(before).saturating_add(after);
        if self.busy > self.live {
            self.has_others = true;
        }
    }

    /// What comes now may make a request one that is not seen on its connection.
    pub fn before_unseen(&mut self, now: Timestamp) {
        if self.unseen() == 0 {
            self.unseen_since = now;
        }
    }

    /// Requests that may be under way to a connection, and responses from it, at most.
    pub fn unseen(&self) -> usize {
        self.live.saturating_sub(self.busy)
    }

    /// Since when there has been one.
    pub fn unseen_since(&self) -> Timestamp {
        self.unseen_since
    }

    /// Both; `None` if exchanges are not these requests' alone.
    pub fn known_unseen(&self) -> Option<(usize, Timestamp)> {
        (!self.has_others).then_some((self.unseen(), self.unseen_since))
    }

    /// Whether there is neither a request nor an exchange.
    pub fn is_empty(&self) -> bool {
        self.live == 0 && self.busy == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn a_request_whose_client_went_away_hides_no_other() {
        let mut flow = Flow::default();
        flow.on_admitted(at(0));
        flow.on_busy(0, 1);
        assert!(!flow.on_ended(), "no response was seen, and its connection is thought busy");
        flow.on_admitted(at(1));
        assert_eq!(flow.unseen(), 1);
        flow.on_busy(1, 0);
        flow.end(1);
        assert_eq!(flow.unseen(), 1);
        flow.on_busy(0, 1);
        flow.on_answered(1, at(2));
        flow.on_busy(1, 0);
        assert!(flow.on_ended());
        assert!(flow.is_empty());
    }

    #[test]
    fn what_is_unseen_has_been_since_there_was_none() {
        let mut flow = Flow::default();
        flow.on_admitted(at(1));
        flow.on_busy(0, 1);
        flow.on_admitted(at(2));
        flow.on_admitted(at(3));
        assert_eq!(flow.known_unseen(), Some((2, at(2))));
    }

    #[test]
    fn exchanges_of_others_are_noticed() {
        let mut flow = Flow::default();
        flow.on_busy(0, 1);
        flow.on_admitted(at(1));
        assert_eq!(flow.known_unseen(), None);
    }
}
