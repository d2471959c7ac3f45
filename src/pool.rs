//! One of Envoy's connection pools, as far as its worker shows it: the connections of one generation.
//!
//! Envoy's pool hands out the HTTP/1.1 connection that became idle last (docs/envoy.md, fact 6). The connection filter sees
//! them become idle in the same order, a moment earlier. So a request gets the one on top of our stack, or one further
//! down:
//!
//! - one for each request that was admitted and not seen on its connection yet, since it may have taken one;
//! - one for each response that the connection filter has seen end and the pool has not, since its connection is not back.
//!
//! Both are requests that have not ended and whose connection is not busy, and those can be counted. (An aborted request
//! counts for a few turns more: the pool has closed its connection, and the connection filter still takes it for busy.) A
//! connection that has carried nothing yet may or may not be in the pool's stack, because the request that it was opened for
//! may wait for it; so none of those counts. If nothing within that reach has expired, neither has the connection that
//! the request will get. Expired connections further down harm nobody: they stay out of reach, or the pool gets no request
//! until they are closed.

use std::rc::Rc;
use std::time::Duration;

use crate::connection::{Connection, Generation, Phase};
use crate::fence::Steer;
use crate::idle_list::IdleList;
use crate::slab::Slab;
use crate::time::Timestamp;

/// How far down the stack the fence looks before it takes the pool for unsafe.
const DEEPEST_REACH: usize = 1024;

/// The connections of one generation.
#[derive(Debug)]
pub struct Pool {
    /// Its generation.
    pub generation: Generation,
    /// How to put a request into it.
    pub steer: Rc<Steer>,
    /// Idle connections, as the pool stacks them.
    pub stack: IdleList,
    /// How many in `stack` are out of use.
    pub out_of_use: usize,
    /// How many in `stack` have carried nothing yet.
    pub unused: usize,
    /// Exchanges in flight on its connections.
    pub busy: usize,
    /// Requests that have been admitted and have not ended.
    pub live: usize,
    /// How many of them the connection filter has seen answered, at most.
    answered: usize,
    /// When its first request came.
    started_at: Option<Timestamp>,
    /// When there was last none that is counted as unseen, just before there was one.
    unseen_since: Timestamp,
}

impl Pool {
    /// A pool without connections.
    pub fn new(generation: Generation, steer: Steer) -> Self {
        let (steer, stack) = (Rc::new(steer), IdleList::default());
        Self {
            generation,
            steer,
            stack,
            out_of_use: 0,
            unused: 0,
            busy: 0,
            live: 0,
            answered: 0,
            started_at: None,
            unseen_since: Timestamp::default(),
        }
    }

    /// A request is put into it.
    pub fn on_admitted(&mut self, now: Timestamp) {
        self.started_at.get_or_insert(now);
        self.before_unseen(now);
        self.live = self.live.saturating_add(1);
    }

    /// Responses ended on its connections, as the connection filter sees it: their requests will end in a moment.
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

    /// Requests that may be under way to a connection, and responses from it, at most.
    fn unseen(&self) -> usize {
        self.live.saturating_sub(self.busy)
    }

    /// What comes now may make a request one that is not seen on its connection.
    pub fn before_unseen(&mut self, now: Timestamp) {
        if self.unseen() == 0 {
            self.unseen_since = now;
        }
    }

    /// The idle connections, from the top of the stack, to none of which a request can be under way.
    ///
    /// Before the first unseen request or response, the pool had in its stack what we have. From there on it gives the ones on
    /// top, as many as there are unseen requests at most. What has become idle since is not among them: it may not be back in
    /// the pool yet, so that the next request got one further down; or a request waited for it, and it was never on top.
    pub fn idle_for_certain<'a>(
        &self,
        connections: &'a Slab<Connection>,
    ) -> impl Iterator<Item = (u32, &'a Connection)> {
        let unseen_since = if self.unseen() == 0 { None } else { Some(self.unseen_since) };
        self.stack
            .from_newest(connections)
            .filter(|(_, connection)| matches!(connection.phase, Phase::Idle { .. } | Phase::Sentinel { .. }))
            .filter(move |(_, connection)| {
                unseen_since.is_none_or(|start| connection.idle_since().is_some_and(|since| since < start))
            })
            .skip(self.unseen())
    }

    /// Whether its first request came less than `limit` ago: then no idle age in it has reached the limit, whatever the pool
    /// does. This needs no knowledge of connections, and costs one reconnect per connection and limit.
    pub fn is_young(&self, now: Timestamp, limit: Duration) -> bool {
        self.started_at.is_none_or(|started_at| now.since(started_at) < limit)
    }

    /// How far down the stack the connection of the next request is at most, counted from 1.
    pub fn reach(&self) -> usize {
        self.unseen().saturating_add(1)
    }

    /// Whether an idle connection is left for the next request.
    pub fn has_idle(&self) -> bool {
        self.stack.len().saturating_sub(self.unused) >= self.reach()
    }

    /// Whether no connection that the next request could get has expired. `limit` is the destination's idle limit.
    pub fn is_safe(&self, connections: &Slab<Connection>, now: Timestamp, limit: Duration) -> bool {
        // Idle ages grow towards the bottom: nothing has expired if nothing there and nothing out of turn has.
        if self.out_of_use == 0 && !self.stack.oldest(connections).is_some_and(|oldest| oldest.has_expired(now, limit))
        {
            return true;
        }
        let mut left = self.reach();
        for (_, connection) in self.stack.from_newest(connections).take(DEEPEST_REACH) {
            if connection.has_expired(now, limit) {
                return false;
            }
            left = left.saturating_sub(usize::from(connection.phase != Phase::Unused));
            if left == 0 {
                return true;
            }
        }
        self.stack.len() <= DEEPEST_REACH
    }

    /// Whether nothing is known of it that could be lost.
    pub fn is_empty(&self) -> bool {
        self.stack.is_empty() && self.busy == 0 && self.live == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn a_pool_is_young_until_the_limit_after_its_first_request() {
        let limit = Duration::from_millis(300);
        let mut pool = Pool::new(Generation(1), Steer::new(7, Generation(1)));
        assert!(pool.is_young(at(1_000), limit));
        pool.on_admitted(at(1_000));
        pool.on_admitted(at(1_200));
        assert!(pool.is_young(at(1_299), limit));
        assert!(!pool.is_young(at(1_300), limit));
    }

    #[test]
    fn a_request_whose_client_went_away_hides_no_other() {
        let mut pool = Pool::new(Generation(1), Steer::new(7, Generation(1)));
        pool.on_admitted(at(0));
        pool.busy = 1;
        assert!(!pool.on_ended(), "no response was seen, and its connection is thought busy");
        pool.on_admitted(at(1));
        assert_eq!(pool.unseen(), 1);
        pool.busy = 0;
        pool.end(1);
        assert_eq!(pool.unseen(), 1);
        pool.busy = 1;
        pool.on_answered(1, at(2));
        pool.busy = 0;
        assert!(pool.on_ended());
        assert_eq!((pool.unseen(), pool.live), (0, 0));
    }

    #[test]
    fn requests_without_a_busy_connection_reach_further_down() {
        let mut pool = Pool::new(Generation(1), Steer::new(7, Generation(1)));
        assert_eq!(pool.reach(), 1);
        (0..3).for_each(|_| pool.on_admitted(at(0)));
        assert_eq!(pool.reach(), 4);
        pool.busy = 2;
        assert_eq!(pool.reach(), 2);
    }
}
