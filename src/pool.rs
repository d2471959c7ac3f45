//! One of Envoy's connection pools, as far as its worker shows it: the connections of one generation.
//!
//! Envoy's pool hands out the HTTP/1.1 connection that became idle last (docs/envoy.md, fact 6). The connection filter sees
//! them become idle in the same order, a moment earlier. So a request gets the one on top of our stack, or one further
//! down:
//!
//! - one for each request that was admitted and not seen on its connection yet, since it may have taken one;
//! - one for each response that the connection filter has seen end and the pool has not, since its connection is not back.
//!
//! Both are counted by [`flow`](crate::flow). A
//! connection that has carried nothing yet may or may not be in the pool's stack, because the request that it was opened for
//! may wait for it; so none of those counts. If nothing within that reach has expired, neither has the connection that
//! the request will get. Expired connections further down harm nobody: they stay out of reach, or the pool gets no request
//! until they are closed.

use std::rc::Rc;
use std::time::Duration;

use crate::connection::{Connection, Generation, Phase};
use crate::fence::Steer;
use crate::flow::Flow;
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
    /// Its requests, and the exchanges on connections that are certainly its own.
    pub flow: Flow,
    /// When its first request came.
    started_at: Option<Timestamp>,
}

impl Pool {
    /// A pool without connections.
    pub fn new(generation: Generation, steer: Steer) -> Self {
        let (steer, stack) = (Rc::new(steer), IdleList::default());
        Self { generation, steer, stack, out_of_use: 0, unused: 0, flow: Flow::default(), started_at: None }
    }

    /// A request is put into it.
    pub fn on_admitted(&mut self, now: Timestamp) {
        self.started_at.get_or_insert(now);
        self.flow.on_admitted(now);
    }

    /// The idle connections, from the top of the stack.
    pub fn idle<'a>(&self, connections: &'a Slab<Connection>) -> impl Iterator<Item = (u32, &'a Connection)> {
        let is_idle = |connection: &Connection| matches!(connection.phase, Phase::Idle { .. } | Phase::Sentinel { .. });
        self.stack.from_newest(connections).filter(move |(_, connection)| is_idle(connection))
    }

    /// Those of them to which no request can be under way. `all` is the flow of all
    /// generations: nobody knows whose the exchanges are on connections of uncertain generation, but they are not in the pipe.
    ///
    /// Before the first unseen request or response, the pool had in its stack what we have. From there on it gives the ones on
    /// top, as many as there are unseen requests at most. What has become idle since is not among them: it may not be back in
    /// the pool yet, so that the next request got one further down; or a request waited for it, and it was never on top.
    pub fn idle_for_certain<'a>(
        &self,
        connections: &'a Slab<Connection>,
        all: &Flow,
    ) -> impl Iterator<Item = (u32, &'a Connection)> {
        let own = (self.flow.unseen(), self.flow.unseen_since());
        let (unseen, since) = match all.known_unseen() {
            Some((unseen, since)) => (unseen.min(own.0), since.max(own.1)),
            None => own,
        };
        self.idle(connections)
            .filter(move |(_, connection)| {
                unseen == 0 || connection.idle_since().is_some_and(|idle_since| idle_since < since)
            })
            .skip(unseen)
    }

    /// Whether its first request came less than `limit` ago: then no idle age in it has reached the limit, whatever the pool
    /// does. This needs no knowledge of connections, and costs one reconnect per connection and limit.
    pub fn is_young(&self, now: Timestamp, limit: Duration) -> bool {
        self.started_at.is_none_or(|started_at| now.since(started_at) < limit)
    }

    /// How far down the stack the connection of the next request is at most, counted from 1.
    pub fn reach(&self) -> usize {
        self.flow.unseen().saturating_add(1)
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
        self.stack.is_empty() && self.flow.is_empty()
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
    fn requests_without_a_busy_connection_reach_further_down() {
        let mut pool = Pool::new(Generation(1), Steer::new(7, Generation(1)));
        assert_eq!(pool.reach(), 1);
        (0..3).for_each(|_| pool.on_admitted(at(0)));
        assert_eq!(pool.reach(), 4);
        pool.flow.on_busy(0, 2);
        assert_eq!(pool.reach(), 2);
    }
}
