//! One destination on one worker: its connections, who may use them, and when they are closed.
//!
//! The HTTP filter and the connection filter of a worker share this. The connection filter shows what happens on every
//! connection; with that, the HTTP filter's question ("into which generation may this request be put?") has an answer that
//! is exact where it matters: see [`pool`](crate::pool) and [`fence`](crate::fence).
//!
//! # Lifetimes
//!
//! A fence is for all connections of a generation, and in a pool that is in use each lifetime would end within its reach. So
//! an HTTP/1.1 connection that is too old may serve one more exchange, and its response tells the pool to close it
//! ([`Destination::is_last_exchange`]); only one that waits longer for it than
//! [`LIFETIME_GRACE`](crate::connection::LIFETIME_GRACE), which is deep in the stack if there are others, is fenced. HTTP/2
//! has few connections, and busy ones may never be idle: there a lifetime ends the generation.
//!
//! # Race window
//!
//! - Between our close of a connection and the pool's noticing, the pool may still hand it out. Therefore a closed
//!   connection keeps its (expired) place in the stack until its close must have reached the pool.
//! - A connection whose generation or place isn't certain ([`Order::Loose`]) may be anywhere in the stack: none of them may
//!   have expired, or all generations are retired.
//! - A request that another filter holds back after ours is not covered: the filter must be the last one before the router.

mod admission;
mod counts;
mod limit;
mod reap;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

pub use self::admission::{Admission, End};
use self::reap::tick_period;
pub use self::reap::{Due, REAP_DELAY};
use crate::connection::{Connection, ConnectionKey, ExchangesLeft, Generation, Millis, Order, Phase};
use crate::fence::Fence;
use crate::flow::Flow;
use crate::idle_list::IdleList;
use crate::learner::Evidence;
use crate::learner::closes::tolerated;
use crate::learning::Learning;
use crate::metrics::{DestinationMetric, Tally};
use crate::policy::Policy;
use crate::restarts::Restarts;
use crate::slab::Slab;
use crate::time::Timestamp;
use crate::timers::Timers;
use crate::turns::{TURNS_IN_PIPE, Turn, Turns};
use crate::unseen::Unseen;

/// What the last bytes on a connection meant, by [`framing`](crate::framing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Exchanges that began.
    pub started: u32,
    /// Exchanges whose response ended.
    pub completed: u32,
    /// Exchanges that are in flight now.
    pub in_flight: u32,
    /// Whether the oldest exchange in flight has seen a byte of its response.
    pub answered: bool,
    /// Whether it is HTTP/1.1, of which the pool hands out the last idle one first.
    pub stacked: bool,
    /// Whether another exchange can follow on the connection.
    pub reusable: bool,
    /// `Keep-Alive: timeout` of a response.
    pub hinted_timeout: Option<Duration>,
    /// `Keep-Alive: max` of a response.
    pub hinted_exchanges: Option<u32>,
}

/// One destination on one worker.
#[derive(Debug)]
pub struct Destination {
    /// The idle limit in force: the lowest of what the filters' policies say.
    limit: Duration,
    /// Policies by the root context that brought them.
    policies: Vec<(u32, Policy)>,
    /// What has been learnt of the far end's idle timeout.
    learning: Learning,
    /// The connections, as far as requests tell of them where no connection filter does.
    unseen: Unseen,
    /// Whether the far end is being restarted.
    restarts: Restarts,
    /// The connection that is watched instead of being closed.
    sentinel: Option<ConnectionKey>,
    /// When the next one is to be set aside, if none is fenced anyway.
    next_sentinel_at: Timestamp,
    /// Root contexts of connection filters: as long as there is one, connections are seen.
    guards: Vec<u32>,
    /// Whether a request was ever admitted. Without an HTTP filter nothing is fenced, and reaping is all there is.
    has_requests: bool,
    /// Which of the cluster's endpoints connections were opened for; the pool keeps a stack for each.
    endpoints: Endpoints,
    fence: Fence,
    /// The requests and exchanges of all generations.
    flow: Flow,
    turns: Turns,
    connections: Slab<Connection>,
    /// Idle connections that may be in any of the pools, and anywhere in its stack.
    loose: IdleList,
    /// How many in `loose` are out of use.
    loose_out_of_use: usize,
    /// When to look at a connection: at a time before which it can't expire.
    timers: Timers,
    /// Fenced connections, in the order in which they were fenced.
    retiring: VecDeque<(Timestamp, ConnectionKey)>,
    /// Closed connections that the pool may not have heard of, with the tick from which on it must have.
    gone: VecDeque<(u64, ConnectionKey)>,
    /// How many aborted requests there are whose connection may still be thought busy, by the tick from which on it isn't;
    /// those of a generation, and once more without one, those of all.
    aborted: VecDeque<(u64, Option<Generation>, u32)>,
    /// What the last turn allows.
    turn: Turn,
    /// While more is due than one tick closes: when connections were closed last.
    reaping: Option<Timestamp>,
    open: u32,
    idle: u32,
    /// What the gauges were when Envoy was last told.
    reported: (u32, u32),
    /// What has been counted.
    pub tally: Tally,
}

#[derive(Debug, PartialEq, Eq)]
enum Endpoints {
    None,
    One(Vec<u8>),
    Several,
}

impl Destination {
    /// A destination without connections. `salt` is random.
    pub fn new(salt: u64, now: Timestamp) -> Self {
        Self {
            limit: Duration::MAX,
            policies: Vec::new(),
            learning: Learning::default(),
            unseen: Unseen::default(),
            restarts: Restarts::default(),
            sentinel: None,
            next_sentinel_at: now,
            guards: Vec::new(),
            has_requests: false,
            endpoints: Endpoints::None,
            fence: Fence::new(salt),
            flow: Flow::default(),
            turns: Turns::new(tick_period(Duration::MAX), now),
            connections: Slab::default(),
            loose: IdleList::default(),
            loose_out_of_use: 0,
            timers: Timers::default(),
            retiring: VecDeque::new(),
            gone: VecDeque::new(),
            aborted: VecDeque::new(),
            turn: Turn { settled: now, may_close: false },
            reaping: None,
            open: 0,
            idle: 0,
            reported: (0, 0),
            tally: Tally::default(),
        }
    }

    /// Whether a connection filter shows the connections.
    pub fn is_guarded(&self) -> bool {
        !self.guards.is_empty()
    }

    /// The pool opened a connection to `endpoint` of the cluster. `for_generation` is the generation of the request that
    /// it was opened for, if that is certain. `chance` is random, from 0.0 to 1.0.
    pub fn open(
        &mut self,
        context: u32,
        endpoint: &[u8],
        policy: &Policy,
        for_generation: Option<Generation>,
        chance: f64,
        now: Timestamp,
    ) -> ConnectionKey {
        self.note_endpoint(endpoint, now);
        let latest = self.fence.latest();
        let lifetime = policy.max_lifetime.map(|lifetime| {
            let share = (policy.lifetime_jitter * chance).clamp(0.0, 1.0);
            Millis::from(lifetime.saturating_sub(lifetime.mul_f64(share)))
        });
        let order = match (for_generation, &self.endpoints) {
            (Some(_), Endpoints::One(_)) => Order::Stacked,
            _ => Order::Loose,
        };
        let connection = Connection {
            generation: for_generation.unwrap_or(latest),
            order,
            phase: Phase::Spent,
            lifetime,
            ..Connection::new(context, now)
        };
        let slot = u32::try_from(self.connections.insert(connection)).unwrap_or(u32::MAX);
        let key = ConnectionKey { slot, context };
        self.tally.count(DestinationMetric::ConnectionsOpened);
        self.open = self.open.saturating_add(1);
        self.become_idle(key, Phase::Unused, now);
        key
    }

    fn note_endpoint(&mut self, endpoint: &[u8], now: Timestamp) {
        match &self.endpoints {
            Endpoints::None => self.endpoints = Endpoints::One(endpoint.to_vec()),
            Endpoints::One(known) if known != endpoint => {
                self.endpoints = Endpoints::Several;
                self.retire_all(now); // what is stacked so far is not one stack
            }
            Endpoints::One(_) | Endpoints::Several => {}
        }
    }

    /// Bytes passed on a connection; `seen` says what they meant. `policy` is that of its filter.
    pub fn on_bytes(&mut self, key: ConnectionKey, seen: &Seen, policy: &Policy, now: Timestamp) {
        let has_grace = self.has_requests && seen.stacked;
        let Some(connection) = self.get(key) else { return };
        if matches!(connection.phase, Phase::Closing | Phase::Gone) {
            return;
        }
        connection.has_grace = has_grace;
        if policy.honor_keep_alive {
            if let Some(timeout) = seen.hinted_timeout {
                connection.hinted_limit = Some(policy.hinted_limit(timeout).into());
            }
            let left = connection.exchanges_left().map(|left| left.saturating_sub(seen.completed));
            connection.exchanges_left = seen.hinted_exchanges.or(left).map(ExchangesLeft::from);
        }
        let (mut phase, order, generation) = (connection.phase, connection.order, connection.generation);
        if seen.started > 0 && !matches!(phase, Phase::Busy { .. }) {
            self.on_taken(key, now);
            let Some(connection) = self.get(key) else { return };
            phase = connection.phase;
        }
        if seen.completed > 0 {
            self.flow.on_answered(seen.completed, now);
            // Of any other connection nobody knows whose response it was.
            if order == Order::Stacked
                && let Some(pool) = self.fence.any_pool(generation)
            {
                pool.flow.on_answered(seen.completed, now);
            }
        }
        if !seen.stacked && order == Order::Stacked {
            self.unlink(key);
            self.update(key, |connection| connection.order = Order::Loose);
        }
        if let Phase::Busy { reused_at_age: Some(age), answered: false, .. } = phase
            && (seen.answered || seen.in_flight == 0)
        {
            self.observe(Evidence::Succeeded { age: age.into() }, now);
        }
        match NonZeroU32::new(seen.in_flight) {
            Some(in_flight) => {
                let reused_at_age = match phase {
                    Phase::Busy { reused_at_age, .. } => reused_at_age,
                    _ => None,
                };
                let busy = Phase::Busy { in_flight, reused_at_age, answered: seen.answered };
                if phase != busy {
                    self.unlink(key);
                    self.update(key, |connection| connection.phase = busy);
                }
            }
            // Without an HTTP filter it is no pool's, and whoever has it may go on using it.
            None if !seen.reusable && self.has_requests => {
                self.unlink(key);
                self.update(key, |connection| connection.phase = Phase::Spent);
            }
            None => self.become_idle(key, Phase::Idle { since: now.into() }, now),
        }
        if !seen.stacked && seen.reusable && seen.in_flight > 0 {
            self.end_generation_of_the_old(key, now);
        }
    }

    /// On HTTP/2 a connection can be busy for ever: when its lifetime is over, no more streams are given to it.
    fn end_generation_of_the_old(&mut self, key: ConnectionKey, now: Timestamp) {
        let Some(connection) = self.connections.get(key.slot as usize) else { return };
        if self.has_requests && connection.retire_at() <= now && self.fence.may_use(connection) {
            self.retire_all(now);
        }
    }

    /// Whether the exchange whose response head is passing is to be the last one of its HTTP/1.1 connection: its lifetime is
    /// over, or its far end wants no more. `hinted` is what that head says. Without an HTTP filter whoever uses the
    /// connection is not Envoy's pool, and is not interfered with.
    pub fn is_last_exchange(
        &mut self,
        key: ConnectionKey,
        hinted: Option<u32>,
        policy: &Policy,
        now: Timestamp,
    ) -> bool {
        let has_requests = self.has_requests;
        let Some(connection) = self.get(key) else { return false };
        let is_served = match hinted {
            Some(left) => left == 0,
            None => connection.exchanges_left() == Some(1),
        };
        let is_over = connection.retire_at() <= now || (policy.honor_keep_alive && is_served);
        has_requests && is_over && matches!(connection.phase, Phase::Busy { .. })
    }

    /// The response that is passing says that its connection will be closed: the pool will do it.
    pub fn on_close_announced(&mut self) {
        self.tally.count(DestinationMetric::ConnectionsClosedLifetime);
    }

    /// The pool gave the connection to a request.
    fn on_taken(&mut self, key: ConnectionKey, now: Timestamp) {
        self.unlink(key);
        let Some(connection) = self.get(key) else { return };
        let reused_at_age = match connection.phase {
            Phase::Idle { since } => Some(now.since(since.into())),
            _ => None,
        };
        if let Some(age) = reused_at_age {
            self.tally.age(DestinationMetric::ReuseIdleAge, age);
        }
        self.update(key, |connection| {
            connection.is_fenced = false;
            let reused_at_age = reused_at_age.map(Millis::from);
            connection.phase = Phase::Busy { in_flight: NonZeroU32::MIN, reused_at_age, answered: false };
        });
    }

    fn become_idle(&mut self, key: ConnectionKey, phase: Phase, now: Timestamp) {
        let limit = self.limit;
        self.unlink(key);
        self.update(key, |connection| {
            connection.phase = phase;
            connection.is_fenced = false;
        });
        let connection = self.connections.get(key.slot as usize).filter(|connection| connection.context == key.context);
        let Some(connection) = connection else { return };
        let (order, generation, expires_at) = (connection.order, connection.generation, connection.expires_at(limit));
        match order {
            Order::Stacked => match self.fence.pool(generation) {
                Some(pool) => pool.stack.push(&mut self.connections, key.slot, order),
                None => return self.fence_one(key, now),
            },
            Order::Loose if self.fence.may_use(connection) => self.loose.push(&mut self.connections, key.slot, order),
            Order::Loose => return self.fence_one(key, now),
        }
        match expires_at {
            Some(at) if at <= now => self.fence_one(key, now),
            Some(at) => self.timers.set(&mut self.connections, key.slot, at, now),
            None => {}
        }
    }

    /// From now on no request gets this connection: it is closed a little later, unless the pool knows better.
    fn fence_one(&mut self, key: ConnectionKey, now: Timestamp) {
        self.update(key, |connection| connection.is_fenced = true);
        self.retiring.push_back((now, key));
    }

    /// The far end closed the connection. Returns others that are to be closed at once.
    pub fn on_far_end_close(&mut self, key: ConnectionKey, now: Timestamp) -> Vec<ConnectionKey> {
        let Some(connection) = self.get(key) else { return Vec::new() };
        let (generation, phase, opened_at) = (connection.generation, connection.phase, connection.opened_at);
        // A connection of a generation that is out of use tells nothing of those that are in use: they are younger.
        let is_in_use =
            self.connections.get(key.slot as usize).is_some_and(|connection| self.fence.may_use(connection));
        let all_are_suspect = match phase {
            Phase::Unused => {
                self.set_gone(key);
                self.restarts.on_closed(now) && self.endpoints != Endpoints::Several
            }
            Phase::Idle { since } | Phase::Sentinel { since } => {
                let (age, connection_age) = (now.since(since.into()), now.since(opened_at));
                let is_sentinel = matches!(phase, Phase::Sentinel { .. });
                self.tally.count(DestinationMetric::ConnectionsClosedByPeerIdle);
                self.tally.age(DestinationMetric::PeerCloseIdleAge, age);
                self.set_gone(key);
                self.observe(Evidence::Closed { age, connection_age, is_sentinel }, now);
                if is_sentinel {
                    // While the known timeout holds, a pause now and then costs little time to see it change.
                    let holds = |timeout: &Duration| age <= tolerated(*timeout);
                    let pause = self.learning.learned().filter(holds).and_then(|timeout| timeout.checked_div(4));
                    self.next_sentinel_at = now.after(pause.unwrap_or_default());
                }
                self.restarts.on_closed(now) && self.endpoints != Endpoints::Several
            }
            Phase::Busy { reused_at_age: Some(age), answered: false, .. } => {
                let age = Duration::from(age);
                self.tally.count(DestinationMetric::StaleFailures);
                self.learning.on_failure(age);
                self.observe(Evidence::Failed { age }, now);
                self.restarts.on_closed(now);
                // Beside it in the pool lie connections of the same idle age: they are dead, too.
                true
            }
            Phase::Busy { answered: false, .. } => self.restarts.on_fresh_failed(now),
            Phase::Busy { .. } | Phase::Spent | Phase::Closing | Phase::Gone => false,
        };
        // Before the failed one is no longer busy: its own retry has been given nothing yet.
        let mut suspects = self.close_doomed();
        if all_are_suspect && self.has_requests && is_in_use {
            suspects.extend(self.retire_suspects(now));
        }
        self.flow.before_unseen(now);
        if let Some(pool) = self.fence.any_pool(generation) {
            pool.flow.before_unseen(now);
        }
        self.update(key, |connection| {
            if matches!(connection.phase, Phase::Busy { .. }) {
                connection.phase = Phase::Spent;
            }
        });
        suspects
    }

    /// The connection is closed, whoever did it, and its context is gone.
    pub fn on_closed(&mut self, key: ConnectionKey) {
        match self.get(key).map(|connection| connection.phase) {
            // The pool closed it itself.
            Some(Phase::Unused | Phase::Idle { .. } | Phase::Sentinel { .. } | Phase::Busy { .. } | Phase::Spent) => {
                self.forget(key);
            }
            Some(Phase::Closing) => self.set_gone(key),
            Some(Phase::Gone) | None => {}
        }
    }

    /// The connection is closed as far as we know; it keeps its place in the stack until the pool must know, too.
    fn set_gone(&mut self, key: ConnectionKey) {
        self.update(key, |connection| connection.phase = Phase::Gone);
        if self.get(key).is_some_and(|connection| connection.list.is_some()) {
            let forget_at = self.turns.count().saturating_add(TURNS_IN_PIPE as u64);
            self.gone.push_back((forget_at, key));
        } else {
            self.forget(key);
        }
    }
}
