//! The fence: into which pool may this request be put?
//!
//! Envoy's pool can't be asked for its connections, but it can be divided: requests of different *generations* never share a
//! connection. So the fence decides, before Envoy picks a connection, which generation is safe; if none is, it starts a new
//! one. That decision can't lose a race, because whatever the pool does with the request, it does it later and
//! within the generation.
//!
//! A generation that isn't safe now is safe again when its expired connections are closed, a moment later. Until then others
//! take the requests, and its other connections are not lost. A generation is retired when it is empty, when there are too
//! many, and when its connections are suspect.

use std::cmp::Reverse;
use std::time::Duration;

use crate::connection::{Connection, Generation, Order};
use crate::idle_list::IdleList;
use crate::pool::Pool;
use crate::slab::Slab;
use crate::time::Timestamp;

/// Generations beside each other. Each that is blocked keeps some connections from being used; in bursts around the limit
/// three or four are in use.
const MOST_POOLS: usize = 8;

/// The generations of one destination on one worker.
#[derive(Debug)]
pub struct Fence {
    /// Makes this VM's generations differ from those of any VM before it, whose connections may still be in the pool.
    salt: u64,
    latest: Generation,
    /// The oldest first; never empty.
    pools: Vec<Pool>,
    /// Pools out of use, whose idle connections are to be closed as soon as it is certain which are idle.
    doomed: Vec<Pool>,
}

/// How well a pool suits the next request, by the idle age of the connection that it would give. Better ones are greater.
///
/// Pools that are used in turn keep their connections from expiring, and connections that don't expire need not be opened
/// anew. But only while there is traffic for all of them: what has been idle for half of the limit is left to expire, as
/// it would be in a single pool, and the younger a connection, the less is risked with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Preference {
    /// It would open a connection.
    Empty,
    /// It has been idle for long; the younger, the better.
    Old(Reverse<Duration>),
    /// It is in use; whose turn is next has been idle for longest.
    InTurn(Duration),
}

impl Preference {
    fn new(idle_age: Option<Duration>, limit: Duration) -> Self {
        match idle_age {
            None => Self::Empty,
            Some(age) if age.saturating_mul(2) < limit => Self::InTurn(age),
            Some(age) => Self::Old(Reverse(age)),
        }
    }
}

/// How the host is told the generation of a request: ready-made, because every request needs it.
#[derive(Debug, PartialEq, Eq)]
pub struct Steer {
    /// The generation as text.
    pub name: String,
    /// The argument of Envoy's foreign function `set_envoy_filter_state` that makes it a part of the pool's key.
    pub filter_state: Vec<u8>,
}

impl Fence {
    /// One empty generation. `salt` is random.
    pub fn new(salt: u64) -> Self {
        let latest = Generation(1);
        Self { salt, latest, pools: vec![Pool::new(latest, Steer::new(salt, latest))], doomed: Vec::new() }
    }

    /// The generation that was started last.
    pub fn latest(&self) -> Generation {
        self.latest
    }

    /// Whether a request might still be given to this connection.
    pub fn may_use(&self, connection: &Connection) -> bool {
        match connection.order {
            Order::Stacked => self.pools.iter().any(|pool| pool.generation == connection.generation),
            Order::Loose => self.pools.first().is_some_and(|oldest| oldest.generation <= connection.generation),
        }
    }

    /// The pool of a generation, if it is not retired.
    pub fn pool(&mut self, generation: Generation) -> Option<&mut Pool> {
        self.pools.iter_mut().rev().find(|pool| pool.generation == generation)
    }

    /// The pool of a generation, in use or doomed: what happens on its connections is counted in either.
    pub fn any_pool(&mut self, generation: Generation) -> Option<&mut Pool> {
        let of = |pool: &&mut Pool| pool.generation == generation;
        self.pools.iter_mut().rev().find(of).or_else(|| self.doomed.iter_mut().rev().find(of))
    }

    /// A retired pool is kept until its idle connections are closed. Returns the one that is not, because there are too many.
    pub fn doom(&mut self, pool: Pool) -> Option<Pool> {
        let dropped = (self.doomed.len() >= MOST_POOLS).then(|| self.doomed.remove(0));
        self.doomed.push(pool);
        dropped
    }

    /// Whether any are kept like that.
    pub fn has_doomed(&self) -> bool {
        !self.doomed.is_empty()
    }

    /// Those that are kept like that, for whoever closes them or gives them back.
    pub fn take_doomed(&mut self) -> Vec<Pool> {
        std::mem::take(&mut self.doomed)
    }

    /// The pool that was started last.
    pub fn latest_pool(&mut self) -> Option<&mut Pool> {
        self.pool(self.latest)
    }

    /// The idle connections of each generation.
    pub fn stacks(&self) -> impl Iterator<Item = &IdleList> {
        self.pools.iter().map(|pool| &pool.stack)
    }

    /// The safe pool that suits the next request best. `None` if none is safe.
    pub fn choose(&self, connections: &Slab<Connection>, now: Timestamp, limit: Duration) -> Option<Generation> {
        let safe = self.pools.iter().filter(|pool| pool.is_safe(connections, now, limit));
        let preference = |pool: &&Pool| {
            let newest = pool.stack.newest(connections).filter(|_| pool.has_idle());
            let idle_age = newest.and_then(Connection::idle_since).map(|since| now.since(since));
            (Preference::new(idle_age, limit), pool.generation)
        };
        safe.max_by_key(preference).map(|pool| pool.generation)
    }

    /// Starts a generation. Returns the one that is retired because there are too many: its connections are the caller's business.
    pub fn start(&mut self) -> Option<Pool> {
        let retired = (self.pools.len() >= MOST_POOLS).then(|| self.pools.remove(0));
        self.latest = Generation(self.latest.0.saturating_add(1));
        self.pools.push(Pool::new(self.latest, Steer::new(self.salt, self.latest)));
        retired
    }

    /// Takes all generations out of use and starts a new one. Nothing will be put into the returned ones; their connections
    /// are the caller's business.
    pub fn restart(&mut self) -> Vec<Pool> {
        let retired = std::mem::take(&mut self.pools);
        self.start();
        retired
    }

    /// Forgets generations in which nothing is left, but not the latest.
    pub fn forget_the_empty(&mut self) {
        if self.pools.len() < 2 {
            return;
        }
        let latest = self.latest;
        self.pools.retain(|pool| pool.generation == latest || !pool.is_empty());
    }
}

impl Steer {
    /// How to tell the host this generation.
    pub fn new(salt: u64, generation: Generation) -> Self {
        let name = format!("idleguard-{salt:016x}-{}", generation.0);
        // The name of a filter state that is a part of the pool's key, and of nothing else on a plaintext connection
        // (docs/envoy.md, fact 5).
        let filter_state = filter_state_arguments("envoy.network.upstream_server_name", &name);
        Self { name, filter_state }
    }
}

/// `envoy.source.extensions.common.wasm.SetEnvoyFilterStateArguments` with `path` (1), `value` (2) and `span` (3) =
/// `DownstreamRequest` (1), in protobuf's wire format.
fn filter_state_arguments(path: &str, value: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len().saturating_add(value.len()).saturating_add(8));
    for (tag, text) in [(0x0a, path), (0x12, value)] {
        bytes.push(tag);
        debug_assert!(text.len() < 0x80, "a length of one byte");
        bytes.push(u8::try_from(text.len()).unwrap_or(0x7f));
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.extend_from_slice(&[0x18, 0x01]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_differ_within_a_vm_and_between_vms() {
        let mut fence = Fence::new(7);
        let first = Steer::new(7, fence.latest());
        fence.start();
        assert_ne!(first, Steer::new(7, fence.latest()));
        assert_ne!(first, Steer::new(8, Generation(1)));
        assert_eq!(first.name, "idleguard-0000000000000007-1");
    }

    #[test]
    fn there_are_at_most_eight_generations_and_the_oldest_goes_first() {
        let mut fence = Fence::new(7);
        assert!((0..7).all(|_| fence.start().is_none()));
        assert_eq!(fence.start().map(|pool| pool.generation), Some(Generation(1)));
        assert_eq!(fence.restart().len(), 8);
        assert_eq!(fence.latest(), Generation(10));
        fence.start();
        fence.forget_the_empty();
        assert!(fence.pool(Generation(10)).is_none() && fence.pool(Generation(11)).is_some());
    }

    #[test]
    fn pools_in_use_take_turns_and_the_others_are_left_to_expire() {
        let limit = Duration::from_secs(4);
        let ages = [None, Some(3_900), Some(2_000), Some(0), Some(500), Some(1_999)];
        let order = ages.map(|age| Preference::new(age.map(Duration::from_millis), limit));
        assert!(order.is_sorted(), "{order:?}");
    }

    #[test]
    fn the_filter_state_is_a_protobuf_message() {
        let bytes = filter_state_arguments("a.b", "xyz");
        assert_eq!(bytes, b"\x0a\x03a.b\x12\x03xyz\x18\x01");
    }
}
