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
//! [`LIFETIME_GRACE`](crate::connection::LIFETIME_GRACE), which is deep in the stack if there are others, is fenced. HTTP/2 has few connections, and busy ones may never be idle: there a lifetime ends the
//! generation.
//!
//! # Race window
//!
//! - Between our close of a connection and the pool's noticing, the pool may still hand it out. Therefore a closed
//!   connection keeps its (expired) place in the stack until its close must have reached the pool.
//! - A connection whose generation or place isn't certain ([`Order::Loose`]) may be anywhere in the stack: none of them may
//!   have expired, or all generations are retired.
//! - A request that another filter holds back after ours is not covered: the filter must be the last one before the router.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use crate::connection::{CloseCause, Connection, ConnectionKey, ExchangesLeft, Generation, Millis, Order, Phase};
use crate::fence::{Fence, Steer};
use crate::idle_list::IdleList;
use crate::learner::closes::tolerated;
use crate::learner::{Bracket, Evidence, Rules};
use crate::learning::{Learning, News};
use crate::metrics::{DestinationMetric, Tally};
use crate::policy::{LbIdleTimeout, Policy};
use crate::pool::Pool;
use crate::restarts::Restarts;
use crate::slab::Slab;
use crate::time::{Timestamp, millis};
use crate::timers::Timers;
use crate::turns::{TURNS_IN_PIPE, Turn, Turns};
use crate::unseen::{Ending, Unseen};

/// The time from the fence to the reap. A request that was admitted just before the fence is still under way to its
/// connection; 50 ms are too short when a burst stalls the event loop.
pub const REAP_DELAY: Duration = Duration::from_millis(100);

/// Closes in one tick. Envoy needs a tenth of a millisecond for each, and requests wait for those of one tick.
const CLOSES_PER_TICK: usize = 4;

/// Closes in a second of a reap that takes more than one tick, however long a turn of the event loop takes: a quarter of a worker's
/// time. Any faster, and closes make ticks late, and late ticks make for more closes.
const CLOSES_PER_SECOND: usize = 2_000;

/// A reap that would take longer at that rate is quicker: connections must not be opened faster than closed.
const LONGEST_REAP: Duration = Duration::from_secs(5);

/// The same while nobody knows when the far end would close them itself.
const REAP_BLIND: Duration = Duration::from_secs(1);

/// From one tick to the next while more is due than one closes: what waits has its turn in between.
const REAP_PERIOD: Duration = Duration::from_millis(2);

/// Closes at once of connections beside one that failed. A far end that ends so many makes as much work for Envoy itself.
const MOST_SUSPECTS: usize = 512;

/// How long before an expiry it begins to matter how requests end; longer than a turn of the event loop should take.
const DELICATE: Duration = Duration::from_millis(200);

/// So many connections may be opened anew to have one of them watched.
const FEW: usize = 4;

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The generation that it is put into.
    pub generation: Generation,
    /// How to tell the host.
    pub steer: Rc<Steer>,
    /// Whether the pool is divided by our own connections (an internal listener), so that the host call that does it
    /// changes nothing else.
    pub guarded: bool,
    /// Whether it may meet a connection that has been used before, or one that is no better because the far end is being
    /// restarted.
    pub may_be_stale: bool,
    /// Whether Envoy has to open a connection for it, as far as can be told.
    pub opens_connection: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With its response: its connection is back in the pool, or was closed by the far end.
    Answered,
    /// Without: the pool has closed its connection, and the connection filter will hear of it.
    Aborted,
}

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

/// A connection that is to be closed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Which one.
    pub key: ConnectionKey,
    /// Whether it never carried a byte: then it must be asked whether it is connected at all, because a request may be
    /// waiting for it.
    pub unused: bool,
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
    /// How many aborted requests there are whose connection may still be thought busy, by the tick from which on it isn't.
    aborted: VecDeque<(u64, Generation, u32)>,
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

    // === configuration ===

    /// A filter with root context `root` brings its policy. Returns the keys in which it differs from those that
    /// are here already.
    pub fn add_policy(&mut self, root: u32, policy: Policy, is_guard: bool, now: Timestamp) -> Vec<&'static str> {
        let mut differing: Vec<_> = self.policies.iter().flat_map(|(_, other)| policy.differing_keys(other)).collect();
        differing.dedup();
        self.policies.push((root, policy));
        if is_guard {
            self.guards.push(root);
        }
        self.apply_policies(now);
        differing
    }

    /// The filter with root context `root` is gone.
    pub fn remove_policy(&mut self, root: u32, now: Timestamp) {
        self.policies.retain(|(of, _)| *of != root);
        self.guards.retain(|of| *of != root);
        if !self.policies.is_empty() {
            self.apply_policies(now); // the last policy outlives its filter, for the connections that do, too
        }
    }

    /// The lowest limit that a policy sets, by what is known now.
    fn apply_policies(&mut self, now: Timestamp) {
        let learns = |policy: &&Policy| policy.lb_idle_timeout == LbIdleTimeout::Learn;
        let policies = || self.policies.iter().map(|(_, policy)| policy);
        let rules = policies().filter(learns).map(Rules::from).min_by_key(|rules| rules.initial_limit);
        let learnt = rules.map(|rules| self.learning.judge(&rules, now));
        let fixed = policies().filter(|policy| !learns(policy)).map(Policy::idle_limit).min();
        let limit = learnt.into_iter().chain(fixed).min().unwrap_or(self.limit);
        let lowered = limit < self.limit;
        self.limit = limit;
        self.turns.set_period(tick_period(limit));
        if lowered {
            self.requeue_all(now);
        }
    }

    /// Whether a policy leaves the timeout to be learnt.
    pub fn learns(&self) -> bool {
        self.policies.iter().any(|(_, policy)| policy.lb_idle_timeout == LbIdleTimeout::Learn)
    }

    fn observe(&mut self, evidence: Evidence, now: Timestamp) {
        if self.learning.observe(evidence, now) && self.learns() {
            self.apply_policies(now);
        }
    }

    /// Takes in what other workers know, as they stored it, and returns what is to be stored in its place.
    pub fn exchange_knowledge(&mut self, stored: &[u8], now: Timestamp) -> Option<Vec<u8>> {
        let own = self.learning.exchange(stored, now);
        self.apply_policies(now);
        own
    }

    /// The far end's idle timeout, as far as it is known.
    pub fn learned(&self) -> Option<Duration> {
        self.learns().then(|| self.learning.learned()).flatten()
    }

    /// What the log should tell now.
    pub fn take_news(&mut self, now: Timestamp) -> Vec<News> {
        self.learning.take_news(self.limit, self.learns(), now)
    }

    /// Whether the connection filter with root context `root` may send probes: it has not been replaced by another; an HTTP filter divides the pool, so that no request of a user's lands on the connections
    /// without a generation, which are the probe's; and this is a worker, as a request shows. (Envoy's main thread has the
    /// filters, too, but no internal listener that it could connect to.)
    pub fn may_probe(&self, root: u32) -> bool {
        self.guards.contains(&root) && self.has_requests
    }

    /// What probes have found so far.
    pub fn bracket(&self) -> Bracket {
        self.learning.bracket()
    }

    /// The probe found something out.
    pub fn on_probed(&mut self, evidence: Evidence, now: Timestamp) {
        self.observe(evidence, now);
    }

    /// The idle limit in force.
    pub fn idle_limit(&self) -> Duration {
        self.limit
    }

    /// How soon [`tick`](Self::tick) wants to be called again.
    pub fn tick_period(&self) -> Duration {
        if self.reaping.is_some() { REAP_PERIOD } else { self.turns.period() }
    }

    /// Whether a reap goes on in quick ticks.
    pub fn is_reaping(&self) -> bool {
        self.reaping.is_some()
    }

    /// Whether a connection filter shows the connections.
    pub fn is_guarded(&self) -> bool {
        !self.guards.is_empty()
    }

    // === requests ===

    /// Decides for a request which connections it may get, and counts on its being sent at once.
    pub fn admit(&mut self, now: Timestamp) -> Admission {
        self.has_requests = true;
        let guarded = self.is_guarded();
        self.run_timers(now); // a hint may have expired since the last tick, anywhere in a stack
        let chosen = if guarded { self.choose(now) } else { self.young(now) };
        let (open, generation) = (self.open, self.fence.latest());
        let Some(pool) = self.fence.pool(chosen.unwrap_or(generation)) else {
            // Not reached: the latest pool is never retired.
            let steer = Rc::new(Steer::new(0, generation));
            return Admission { generation, steer, guarded: false, may_be_stale: true, opens_connection: false };
        };
        let admission = Admission {
            generation: pool.generation,
            steer: Rc::clone(&pool.steer),
            guarded,
            may_be_stale: chosen.is_some() && (!guarded || open > 0) || self.restarts.is_unsettled(now),
            opens_connection: guarded && !pool.has_idle(),
        };
        pool.on_admitted(now);
        admission
    }

    /// The generation in which no connection within reach has expired; if there is none, a new one is started, for which the
    /// answer is `None`.
    fn choose(&mut self, now: Timestamp) -> Option<Generation> {
        let limit = self.limit;
        let loose_has_expired = self.loose_out_of_use > 0
            || self.loose.oldest(&self.connections).is_some_and(|oldest| oldest.has_expired(now, limit));
        if loose_has_expired {
            self.retire_all(now);
        } else if let Some(generation) = self.fence.choose(&self.connections, now, limit) {
            return Some(generation);
        } else if let Some(retired) = self.fence.start() {
            self.fence_idle(retired, now);
        }
        self.tally.count(DestinationMetric::Fenced);
        None
    }

    /// The same where connections are not seen.
    fn young(&mut self, now: Timestamp) -> Option<Generation> {
        let (limit, latest) = (self.limit, self.fence.latest());
        if self.fence.latest_pool().is_some_and(|pool| pool.is_young(now, limit)) {
            return Some(latest);
        }
        self.retire_all(now);
        self.unseen.forget_all();
        self.tally.count(DestinationMetric::Fenced);
        None
    }

    /// A request of `generation` ended.
    pub fn on_ended(&mut self, generation: Generation, end: End) {
        let is_guarded = self.is_guarded();
        let Some(pool) = self.fence.pool(generation) else { return };
        if !is_guarded {
            pool.end(1);
        } else if end == End::Aborted || !pool.on_ended() {
            let forget_at = self.turns.count().saturating_add(TURNS_IN_PIPE as u64);
            let mut latest = self.aborted.iter_mut().rev().take_while(|(at, ..)| *at == forget_at);
            match latest.find(|(_, of, _)| *of == generation) {
                Some((_, _, count)) => *count = count.saturating_add(1),
                None => self.aborted.push_back((forget_at, generation, 1)),
            }
        }
    }

    /// A request that was admitted at `begun`, where connections are not seen, ended on the connection called `connection`.
    pub fn on_unseen_end(&mut self, connection: &[u8], begun: Timestamp, ending: Ending, now: Timestamp) {
        let Some(evidence) = self.unseen.on_ended(connection, begun, ending, now) else { return };
        match evidence {
            Evidence::Failed { age } => {
                self.tally.count(DestinationMetric::StaleFailures);
                self.learning.on_failure(age);
                self.retire_all(now);
                self.unseen.forget_all();
            }
            Evidence::Succeeded { age } => self.tally.age(DestinationMetric::ReuseIdleAge, age),
            _ => {}
        }
        self.observe(evidence, now);
    }

    /// Whether it matters now how requests of `generation` end: something in the stack has expired, or will soon.
    pub fn is_delicate(&mut self, generation: Generation, now: Timestamp) -> bool {
        let soon = now.after(DELICATE);
        let Some(pool) = self.fence.pool(generation) else { return false };
        pool.out_of_use > 0
            || pool.stack.oldest(&self.connections).is_some_and(|oldest| oldest.has_expired(soon, self.limit))
    }

    /// No connection that exists now will be given to a request.
    fn retire_all(&mut self, now: Timestamp) {
        for pool in self.fence.restart() {
            self.fence_idle(pool, now);
        }
        let loose: Vec<_> = self.loose.from_newest(&self.connections).map(key_of).collect();
        self.fence_listed(loose, now);
    }

    /// The same, because they are dead or dying. Returns those to be closed at once, because a request that fails is
    /// retried within its generation, soon: it must not find another dead one there. Whatever a request that was admitted and
    /// not seen yet may have been given is left to the reap.
    fn retire_suspects(&mut self, now: Timestamp) -> Vec<ConnectionKey> {
        let mut suspects = Vec::new();
        for pool in self.fence.restart() {
            suspects.extend(pool.idle_for_certain(&self.connections).take(MOST_SUSPECTS).map(key_of));
            self.fence_idle(pool, now);
        }
        let loose: Vec<_> = self.loose.from_newest(&self.connections).map(key_of).collect();
        self.fence_listed(loose, now);
        for key in &suspects {
            self.close(*key, CloseCause::Reaped);
        }
        suspects
    }

    /// The idle connections of a retired pool are fenced; the busy ones will be when they become idle.
    fn fence_idle(&mut self, pool: Pool, now: Timestamp) {
        let stacked: Vec<_> = pool.stack.from_newest(&self.connections).map(key_of).collect();
        self.fence_listed(stacked, now);
    }

    /// Takes connections, the newest first, out of their list.
    fn fence_listed(&mut self, keys: Vec<ConnectionKey>, now: Timestamp) {
        for key in keys.into_iter().rev() {
            self.unlink(key);
            let Some(connection) = self.get(key) else { continue };
            match connection.phase {
                Phase::Gone => self.remove(key),
                Phase::Sentinel { .. } | Phase::Closing => {}
                _ => self.fence_one(key, now),
            }
        }
    }

    // === connections ===

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
        let generation = connection.generation;
        if seen.started > 0 && !matches!(connection.phase, Phase::Busy { .. }) {
            self.on_taken(key, now);
        }
        if seen.completed > 0
            && let Some(pool) = self.fence.pool(generation)
        {
            pool.on_answered(seen.completed, now);
        }
        let Some(connection) = self.get(key) else { return };
        let phase = connection.phase;
        if !seen.stacked && connection.order == Order::Stacked {
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
        let generation = connection.generation;
        let all_are_suspect = match connection.phase {
            Phase::Unused => {
                self.set_gone(key);
                self.restarts.on_closed(now)
            }
            Phase::Idle { since } | Phase::Sentinel { since } => {
                let (age, connection_age) = (now.since(since.into()), now.since(connection.opened_at));
                let is_sentinel = matches!(connection.phase, Phase::Sentinel { .. });
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
                self.restarts.on_closed(now)
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
        let suspects = if all_are_suspect && self.has_requests { self.retire_suspects(now) } else { Vec::new() };
        if let Some(pool) = self.fence.pool(generation) {
            pool.before_unseen(now);
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

    // === time ===

    /// Looks at the connections whose time may have come, and returns those that are to be closed now. Constant work if
    /// there is none. May change [`tick_period`](Self::tick_period).
    pub fn tick(&mut self, now: Timestamp) -> Vec<Due> {
        if let Some(turn) = self.turns.tick(now) {
            self.turn = turn;
            self.fence.forget_the_empty();
            self.forget_the_gone();
            self.run_timers(now);
        } else if self.reaping.is_none() {
            return Vec::new();
        }
        // Between two turns a reap goes on with what was settled at the last one.
        if self.turn.may_close { self.due(now) } else { Vec::new() }
    }

    fn run_timers(&mut self, now: Timestamp) {
        while let Some(slot) = self.timers.pop(&mut self.connections, now) {
            self.on_timer(slot, now);
        }
    }

    fn forget_the_gone(&mut self) {
        while let Some((forget_at, key)) = self.gone.front().copied() {
            if forget_at > self.turns.count() {
                break;
            }
            self.gone.pop_front();
            self.forget(key);
        }
        while let Some((forget_at, generation, count)) = self.aborted.front().copied() {
            if forget_at > self.turns.count() {
                break;
            }
            self.aborted.pop_front();
            if let Some(pool) = self.fence.pool(generation) {
                pool.end(count as usize);
            }
        }
    }

    fn on_timer(&mut self, slot: u32, now: Timestamp) {
        let Some(connection) = self.connections.get(slot as usize) else { return };
        match connection.expires_at(self.limit) {
            Some(_) if connection.is_fenced => {} // a sentinel, too
            // Timers count milliseconds.
            Some(at) if at < now.after(Duration::from_millis(1)) => self.fence_one(key_of((slot, connection)), now),
            Some(at) => self.timers.set(&mut self.connections, slot, at, now),
            None => {} // set again when it becomes idle
        }
    }

    fn due(&mut self, now: Timestamp) -> Vec<Due> {
        let delay = if self.has_requests { REAP_DELAY } else { Duration::ZERO };
        let mut due = Vec::new();
        due.extend(self.sentinel_given_up(now));
        self.set_sentinel_aside(now);
        let since_last = self.reaping.take().map(|last| millis(now.since(last)));
        if self.retiring.is_empty() {
            return due;
        }
        let most = since_last.map_or(CLOSES_PER_TICK, |passed| {
            let passed = usize::try_from(passed).unwrap_or(usize::MAX);
            let longest = usize::try_from(millis(self.longest_reap())).unwrap_or(usize::MAX);
            let at_least = CLOSES_PER_SECOND.saturating_mul(passed) / 1_000;
            let in_time = self.retiring.len().saturating_mul(passed).checked_div(longest).unwrap_or(usize::MAX);
            CLOSES_PER_TICK.max(at_least).max(in_time)
        });
        while let Some((fenced_at, key)) = self.retiring.front().copied() {
            let is_settled = !self.has_requests || fenced_at <= self.turn.settled;
            if !is_settled || now.since(fenced_at) < delay {
                break;
            }
            if due.len() >= most {
                self.reaping = Some(now);
                break;
            }
            self.retiring.pop_front();
            let Some(connection) = self.get(key) else { continue };
            let idle_since = match connection.phase {
                Phase::Unused => Some(connection.opened_at),
                Phase::Idle { since } => Some(since.into()),
                _ => None,
            };
            let Some(idle_since) = idle_since.filter(|since| connection.is_fenced && *since <= fenced_at) else {
                continue; // it was used since, and is fenced again when that exchange ends
            };
            let unused = connection.phase == Phase::Unused;
            let cause = if connection.retire_at() <= now || connection.exchanges_left() == Some(0) {
                CloseCause::Retired
            } else {
                CloseCause::Reaped
            };
            if !unused && cause == CloseCause::Reaped && self.wants_sentinel() {
                self.sentinel = Some(key);
                self.update(key, |connection| connection.phase = Phase::Sentinel { since: idle_since.into() });
                continue;
            }
            if !unused {
                self.close(key, cause);
            }
            due.push(Due { key, unused });
        }
        due
    }

    /// How long a reap may take: half of the time after which the far end would do it, all at once.
    fn longest_reap(&self) -> Duration {
        let fixed = self.policies.iter().filter_map(|(_, policy)| match policy.lb_idle_timeout {
            LbIdleTimeout::Fixed(timeout) => Some(timeout),
            LbIdleTimeout::Learn => None,
        });
        let margin = fixed.chain(self.learned()).min().map(|timeout| timeout.saturating_sub(self.limit));
        margin.map_or(REAP_BLIND, |margin| margin.checked_div(2).unwrap_or_default().min(LONGEST_REAP))
    }

    /// Sets a connection aside to be the next sentinel, if it is time for one and none will be fenced anyway: where a few
    /// connections carry all the traffic none is ever idle for long. The one that has been idle for longest is the one that
    /// the pool needs least.
    fn set_sentinel_aside(&mut self, now: Timestamp) {
        if now < self.next_sentinel_at || !self.retiring.is_empty() || !self.has_requests || !self.wants_sentinel() {
            return;
        }
        // Where places aren't known, fencing one connection takes all out of use: only where they are few.
        let loose = (self.loose.len() <= FEW).then_some(&self.loose);
        let is_idle = |connection: &Connection| matches!(connection.phase, Phase::Idle { .. });
        let oldest = self
            .fence
            .stacks()
            .chain(loose)
            .filter_map(|list| {
                list.oldest(&self.connections).filter(|oldest| is_idle(oldest)).zip(list.oldest_key(&self.connections))
            })
            .min_by_key(|(oldest, _)| oldest.idle_since());
        let Some((_, key)) = oldest else { return };
        self.next_sentinel_at = now.after(REAP_DELAY.saturating_mul(4));
        self.fence_one(key, now);
    }

    /// Whether the next connection that is to be reaped is to be watched instead.
    fn wants_sentinel(&mut self) -> bool {
        let is_watched = |connection: &mut Connection| matches!(connection.phase, Phase::Sentinel { .. });
        self.learns() && !self.sentinel.and_then(|key| self.get(key)).is_some_and(is_watched)
    }

    /// The sentinel, if it has been watched for long enough.
    fn sentinel_given_up(&mut self, now: Timestamp) -> Option<Due> {
        let key = self.sentinel?;
        let Phase::Sentinel { since } = self.get(key)?.phase else { return None };
        let longest = self.policies.iter().map(|(_, policy)| policy.sentinel_max).min()?;
        if now.since(since.into()) < longest {
            return None;
        }
        self.close(key, CloseCause::Reaped);
        Some(Due { key, unused: false })
    }

    fn close(&mut self, key: ConnectionKey, cause: CloseCause) {
        self.update(key, |connection| connection.phase = Phase::Closing);
        self.tally.count(match cause {
            CloseCause::Reaped => DestinationMetric::ConnectionsClosedIdle,
            CloseCause::Retired => DestinationMetric::ConnectionsClosedLifetime,
        });
    }

    /// What the host said of a [`Due`] connection that was never used. Returns whether it is to be closed; if it is not
    /// connected, a request may be waiting for it, and whoever connects decides for how long.
    pub fn on_unused(&mut self, key: ConnectionKey, is_connected: bool, now: Timestamp) -> bool {
        let Some(connection) = self.get(key) else { return false };
        if connection.phase != Phase::Unused {
            return false;
        }
        if is_connected {
            self.close(key, CloseCause::Reaped);
        } else {
            self.fence_one(key, now);
        }
        is_connected
    }

    /// How many connections are remembered, closed ones that the pool may not have heard of included.
    pub fn tracked(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is something for [`Tally::take`] or [`take_gauges`](Self::take_gauges).
    pub fn has_counted(&self) -> bool {
        self.reported != (self.open, self.idle) || !self.tally.is_empty()
    }

    /// The changes of [`DestinationMetric::ConnectionsActive`] and [`DestinationMetric::ConnectionsIdle`] since the last call.
    pub fn take_gauges(&mut self) -> (i64, i64) {
        let (open, idle) = std::mem::replace(&mut self.reported, (self.open, self.idle));
        (i64::from(self.open).saturating_sub(i64::from(open)), i64::from(self.idle).saturating_sub(i64::from(idle)))
    }

    // === bookkeeping ===

    fn get(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.connections.get_mut(key.slot as usize).filter(|connection| connection.context == key.context)
    }

    /// The only way to change a connection's phase, order or fence, because counts depend on them.
    fn update(&mut self, key: ConnectionKey, change: impl FnOnce(&mut Connection)) {
        let Some(connection) = self.get(key) else { return };
        let before = Counts::of(connection);
        change(connection);
        let (after, list, generation) = (Counts::of(connection), connection.list, connection.generation);
        for (count, before, after) in
            [(&mut self.idle, before.is_idle, after.is_idle), (&mut self.open, before.is_open, after.is_open)]
        {
            if before != after {
                *count = if after { count.saturating_add(1) } else { count.saturating_sub(1) };
            }
        }
        if (before.busy, before.unused) != (after.busy, after.unused)
            && let Some(pool) = self.fence.pool(generation)
        {
            pool.busy = pool.busy.saturating_sub(before.busy).saturating_add(after.busy);
            pool.unused = pool.unused.saturating_sub(before.unused).saturating_add(after.unused);
        }
        if let Some(list) = list.filter(|_| before.is_out_of_use != after.is_out_of_use) {
            self.count_out_of_use(list, generation, after.is_out_of_use);
        }
    }

    fn count_out_of_use(&mut self, list: Order, generation: Generation, more: bool) {
        let count = match (list, self.fence.pool(generation)) {
            (Order::Stacked, Some(pool)) => &mut pool.out_of_use,
            (Order::Stacked, None) => return, // retired, and taken apart
            (Order::Loose, _) => &mut self.loose_out_of_use,
        };
        *count = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
    }

    fn unlink(&mut self, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        let Some(list) = connection.list else { return };
        let (is_out_of_use, generation) = (connection.is_out_of_use(), connection.generation);
        if is_out_of_use {
            self.count_out_of_use(list, generation, false);
        }
        let mut retired = IdleList::default();
        let list = match (list, self.fence.pool(generation)) {
            (Order::Stacked, Some(pool)) => &mut pool.stack,
            (Order::Stacked, None) => &mut retired,
            (Order::Loose, _) => &mut self.loose,
        };
        list.remove(&mut self.connections, key.slot);
    }

    fn forget(&mut self, key: ConnectionKey) {
        self.unlink(key);
        self.update(key, |connection| connection.phase = Phase::Gone);
        self.remove(key);
    }

    fn remove(&mut self, key: ConnectionKey) {
        if self.get(key).is_some() {
            self.timers.unset(&mut self.connections, key.slot);
            self.connections.try_remove(key.slot as usize);
        }
    }

    /// The limit was lowered: timers may be too late.
    fn requeue_all(&mut self, now: Timestamp) {
        for slot in self.connections.indices() {
            let expires_at = self.connections.get(slot).and_then(|connection| connection.expires_at(self.limit));
            if let (Some(at), Ok(slot)) = (expires_at, u32::try_from(slot)) {
                self.timers.set(&mut self.connections, slot, at, now);
            }
        }
    }
}

/// What of a connection is counted.
struct Counts {
    is_idle: bool,
    is_open: bool,
    is_out_of_use: bool,
    /// Of its pool, if that is known.
    busy: usize,
    unused: usize,
}

impl Counts {
    fn of(connection: &Connection) -> Self {
        let (busy, unused) = match (connection.order, connection.phase) {
            (Order::Stacked, Phase::Busy { in_flight, .. }) => (in_flight.get() as usize, 0),
            (Order::Stacked, Phase::Unused) => (0, 1),
            _ => (0, 0),
        };
        Self {
            is_idle: connection.idle_since().is_some(),
            is_open: connection.phase != Phase::Gone,
            is_out_of_use: connection.is_out_of_use(),
            busy,
            unused,
        }
    }
}

fn key_of((slot, connection): (u32, &Connection)) -> ConnectionKey {
    ConnectionKey { slot, context: connection.context }
}

fn tick_period(limit: Duration) -> Duration {
    limit.checked_div(64).unwrap_or_default().clamp(Duration::from_millis(25), Duration::from_millis(100))
}
