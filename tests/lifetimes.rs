//! Lifetimes with injected time: connections that were opened together are retired one after the other, none in use.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, missing_docs)]

use std::collections::BTreeMap;
use std::time::Duration;

use idleguard::config::Section;
use idleguard::connection::{ConnectionKey, Generation};
use idleguard::destination::{Destination, End, Seen};
use idleguard::policy::Policy;
use idleguard::time::Timestamp;

const TICK: Duration = Duration::from_millis(100);

fn seen(started: u32, completed: u32) -> Seen {
    Seen {
        started,
        completed,
        in_flight: started,
        answered: completed > 0,
        stacked: true,
        reusable: true,
        hinted_timeout: None,
        hinted_exchanges: None,
    }
}

fn policy(json: serde_json::Value) -> Policy {
    Policy::from_section(Section::try_new("", json).unwrap()).unwrap()
}

struct Open {
    key: ConnectionKey,
    generation: Generation,
    busy: bool,
}

/// Envoy's pool, which hands out the connection that became idle last, before a [`Destination`].
struct Pool {
    destination: Destination,
    policy: Policy,
    now: Timestamp,
    connections: Vec<Open>,
    stacks: BTreeMap<Generation, Vec<usize>>,
    /// When each of the connections was closed.
    closed: BTreeMap<usize, Timestamp>,
    /// Requests that found the connections that the pool would give them fenced.
    fenced: usize,
}

impl Pool {
    fn new(json: serde_json::Value) -> Self {
        let (policy, now) = (policy(json), Timestamp::from_millis(0));
        let mut destination = Destination::new(1, now);
        destination.add_policy(1, policy.clone(), true, Timestamp::default());
        destination.add_policy(2, policy.clone(), false, Timestamp::default());
        let (connections, stacks, closed) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { destination, policy, now, connections, stacks, closed, fenced: 0 }
    }

    fn begin(&mut self) -> usize {
        let generation = self.destination.admit(self.now).generation;
        if !self.stacks.contains_key(&generation) && !self.stacks.is_empty() {
            self.fenced += 1;
        }
        let index = self.stacks.entry(generation).or_default().pop().unwrap_or_else(|| {
            let index = self.connections.len();
            // Every thousandth once, in no order that the stack would have.
            let chance = (index * 617 % 1_000) as f64 / 1_000.0;
            let context = u32::try_from(index).unwrap();
            let key = self.destination.open(context, b"one", &self.policy, Some(generation), chance, self.now);
            self.connections.push(Open { key, generation, busy: false });
            index
        });
        self.connections[index].busy = true;
        self.destination.on_bytes(self.connections[index].key, &seen(1, 0), &self.policy, self.now);
        index
    }

    fn end(&mut self, index: usize) {
        let Open { key, generation, .. } = self.connections[index];
        let is_last = self.destination.is_last_exchange(key, None, &self.policy, self.now);
        let seen = Seen { reusable: !is_last, ..seen(0, 1) };
        self.destination.on_bytes(key, &seen, &self.policy, self.now);
        self.destination.on_ended(generation, End::Answered);
        self.connections[index].busy = false;
        if is_last {
            self.destination.on_closed(key);
            self.closed.insert(index, self.now);
        } else {
            self.stacks.entry(generation).or_default().push(index);
        }
    }

    fn tick(&mut self) {
        self.now = self.now.after(TICK);
        for due in self.destination.tick(self.now) {
            let index = self.connections.iter().position(|connection| connection.key == due.key).unwrap();
            assert!(!self.connections[index].busy, "connection {index} closed while busy");
            self.destination.on_closed(due.key);
            self.stacks.values_mut().for_each(|stack| stack.retain(|other| *other != index));
            self.closed.insert(index, self.now);
        }
    }

    /// Every second this many requests at once, each taking 300 ms.
    fn seconds(&mut self, seconds: usize, at_once: usize) {
        for _ in 0..seconds {
            let begun: Vec<_> = (0..at_once).map(|_| self.begin()).collect();
            (0..3).for_each(|_| self.tick());
            begun.into_iter().for_each(|index| self.end(index));
            (0..7).for_each(|_| self.tick());
        }
    }

    /// How many of the first thousand were closed in each tenth of the time between `from` and `to`.
    fn closes_by_tenth(&self, from: u64, to: u64) -> Vec<usize> {
        let bounds: Vec<_> =
            (0..=10).map(|tenth| Timestamp::from_millis(1_000 * from + 100 * tenth * (to - from))).collect();
        bounds
            .windows(2)
            .map(|tenth| self.closed.range(..1_000).filter(|(_, at)| (tenth[0]..tenth[1]).contains(at)).count())
            .collect()
    }
}

/// All thousand are in use every second: each is closed by its own last response.
#[test]
fn a_thousand_busy_connections_opened_together_are_retired_over_the_jitter_window() {
    let mut pool = Pool::new(serde_json::json!({
        "lb_idle_timeout": "60s", "max_lifetime": "200s", "lifetime_jitter": "50%"
    }));
    pool.seconds(205, 1_000);
    let spread = pool.closes_by_tenth(100, 201);
    println!("{spread:?}");
    assert_eq!(spread.iter().sum::<usize>(), 1_000);
    assert!(spread.iter().all(|closes| (80..=120).contains(closes)), "{spread:?}");
    assert_eq!(pool.fenced, 0);
}

/// Ten are in use, 990 are idle below them: those are fenced one by one, and the ten don't notice.
#[test]
fn a_thousand_idle_connections_are_retired_over_the_jitter_window_too() {
    let mut pool = Pool::new(serde_json::json!({
        "lb_idle_timeout": "1h", "max_lifetime": "200s", "lifetime_jitter": "50%"
    }));
    pool.seconds(1, 1_000);
    pool.seconds(210, 10);
    let spread = pool.closes_by_tenth(100, 201);
    println!("{spread:?}");
    assert_eq!(spread.iter().sum::<usize>(), 1_000);
    assert!(spread.iter().all(|closes| (80..=120).contains(closes)), "{spread:?}");
    // Now and then the pool would give out one that is just being closed, most of all when hardly any are left.
    assert!(pool.fenced <= 3, "{}", pool.fenced);
}

/// One that waits too long for a last exchange does not live on.
#[test]
fn an_idle_connection_ends_at_its_lifetime_and_the_grace() {
    let mut pool = Pool::new(serde_json::json!({
        "lb_idle_timeout": "1h", "max_lifetime": "60s", "lifetime_jitter": "0%"
    }));
    pool.seconds(1, 1);
    pool.seconds(59, 0);
    assert!(pool.closed.is_empty());
    pool.seconds(6, 0);
    assert_eq!(pool.closed.len(), 1);
}

/// A connection of HTTP/2 may never be idle. It gets no more streams, and is closed when the last one has ended.
#[test]
fn on_http2_a_lifetime_ends_with_the_last_stream() {
    let policy = policy(serde_json::json!({"lb_idle_timeout": "1h", "max_lifetime": "60s", "lifetime_jitter": "0%"}));
    let at = Timestamp::from_millis;
    let mut destination = Destination::new(1, at(0));
    destination.add_policy(1, policy.clone(), true, Timestamp::default());
    destination.add_policy(2, policy.clone(), false, Timestamp::default());
    let first = destination.admit(at(0)).generation;
    let key = destination.open(1, b"one", &policy, Some(first), 0.0, at(0));
    let streams = |in_flight, started| Seen { in_flight, stacked: false, ..seen(started, 0) };
    destination.on_bytes(key, &streams(2, 2), &policy, at(0));
    for second in 1..60 {
        assert_eq!(destination.admit(at(second * 1_000)).generation, first);
        destination.on_bytes(key, &streams(2, 1), &policy, at(second * 1_000));
    }
    destination.on_bytes(key, &streams(2, 0), &policy, at(60_000));
    assert!(destination.admit(at(60_001)).generation > first, "no more streams");
    for tick in 1..600 {
        assert_eq!(destination.tick(at(60_000 + tick * 100)), [], "busy");
    }
    destination.on_bytes(key, &streams(0, 0), &policy, at(120_000));
    let closed: Vec<_> =
        (1..10).flat_map(|tick| destination.tick(at(120_000 + tick * 100))).map(|due| due.key).collect();
    assert_eq!(closed, [key]);
}

/// The hint of a connection in the middle of the stack expires between two ticks, and the worker is late.
#[test]
fn a_hint_that_expires_between_ticks_is_kept() {
    let policy = policy(serde_json::json!({"lb_idle_timeout": "1h"}));
    let at = Timestamp::from_millis;
    let mut destination = Destination::new(1, at(0));
    destination.add_policy(1, policy.clone(), true, Timestamp::default());
    destination.add_policy(2, policy.clone(), false, Timestamp::default());
    let generation = destination.admit(at(0)).generation;
    destination.admit(at(0));
    let keys: Vec<_> =
        (1..=2).map(|context| destination.open(context, b"one", &policy, Some(generation), 0.0, at(0))).collect();
    keys.iter().for_each(|key| destination.on_bytes(*key, &seen(1, 0), &policy, at(0)));
    // The one without a hint became idle first, and lies below.
    for (key, hinted_timeout) in keys.iter().zip([None, Some(Duration::from_secs(5))]) {
        destination.on_bytes(*key, &Seen { hinted_timeout, ..seen(0, 1) }, &policy, at(10));
        destination.on_ended(generation, End::Answered);
    }
    (1..40).for_each(|tick| assert_eq!(destination.tick(at(tick * 100)), []));
    assert_eq!(destination.admit(at(4_009)).generation, generation);
    destination.on_ended(generation, End::Answered);
    assert!(destination.admit(at(4_010)).generation > generation, "the limit of 4 s is over");
}

/// Two that exchange single words look like HTTP at first, and then like an end of it.
#[test]
fn without_an_http_filter_whatever_is_idle_is_reaped() {
    let policy = policy(serde_json::json!({"lb_idle_timeout": "1s"}));
    let at = Timestamp::from_millis;
    let mut destination = Destination::new(1, at(0));
    destination.add_policy(1, policy.clone(), true, Timestamp::default());
    let key = destination.open(1, b"one", &policy, None, 0.0, at(0));
    destination.on_bytes(key, &seen(1, 0), &policy, at(0));
    destination.on_bytes(key, &Seen { reusable: false, stacked: false, ..seen(0, 0) }, &policy, at(100));
    let closed: Vec<_> = (1..13).flat_map(|tick| destination.tick(at(tick * 100))).map(|due| due.key).collect();
    assert_eq!(closed, [key]);
}

/// A destination with so many connections that have been idle since `now`.
fn idle(count: u32, now: Timestamp, policy: &Policy) -> Destination {
    let mut destination = Destination::new(1, now);
    destination.add_policy(1, policy.clone(), true, now);
    destination.add_policy(2, policy.clone(), false, now);
    for context in 1..=count {
        let generation = destination.admit(now).generation;
        let key = destination.open(context, b"one", policy, Some(generation), 0.0, now);
        destination.on_bytes(key, &seen(1, 0), policy, now);
        destination.on_bytes(key, &seen(0, 1), policy, now);
        destination.on_ended(generation, End::Answered);
    }
    destination
}

/// Thousands that are due together are closed a few at a time, in quick ticks.
#[test]
fn a_large_reap_is_spread_over_quick_ticks() {
    let mut now = Timestamp::from_millis(0);
    let mut destination = idle(10_000, now, &policy(serde_json::json!({"lb_idle_timeout": "20s", "margin": "2s"})));
    let slow = destination.tick_period();
    assert!(slow >= Duration::from_millis(25));
    let (mut closes, mut last) = (Vec::new(), now);
    while now < Timestamp::from_millis(23_000) {
        now = now.after(destination.tick_period().saturating_add(Duration::from_millis(1)));
        let due = destination.tick(now);
        if !due.is_empty() {
            last = now;
            closes.push(due.len());
        }
    }
    assert_eq!(closes.iter().sum::<usize>(), 10_000);
    assert!(closes.iter().all(|closes| *closes <= 30), "{closes:?}");
    assert!(last < Timestamp::from_millis(21_500), "limit, settling, delay, and about three seconds: {last:?}");
    assert_eq!(destination.tick_period(), slow);
}

#[test]
fn a_stall_stops_a_reap_until_requests_have_settled() {
    let mut now = Timestamp::from_millis(0);
    let mut destination = idle(100, now, &policy(serde_json::json!({"lb_idle_timeout": "10s"})));
    let slow = destination.tick_period();
    while destination.tick(now).is_empty() {
        now = now.after(slow);
    }
    assert!(destination.tick_period() < slow);
    now = now.after(slow.saturating_mul(3));
    assert_eq!(destination.tick(now), []);
    now = now.after(destination.tick_period());
    assert_eq!(destination.tick(now), [], "not a turn for sure");
    // Then more, by the time in which none was closed: the loop is busy, and what is open must not pile up.
    now = now.after(slow);
    let waits = 100 - 4;
    assert_eq!(destination.tick(now).len(), waits);
}
