//! The race of `make bench`, without its noise: clients whose silences lie around the idle limit. How many connections does
//! idleguard open, and how many Envoy's own `idle_timeout`?

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use idleguard::time::Timestamp;

use super::envoy::{Envoy, SplitMix64};

const LIMIT: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(25);
/// On one of the benchmark's two workers.
const CLIENTS: usize = 200;
const SECONDS: u64 = 10;
const SEEDS: u64 = 12;

/// What the clients send to.
trait Proxy {
    fn now(&self) -> Timestamp;
    fn request(&mut self);
    fn turn(&mut self, advance: Duration, ticks: bool, latency: Duration);
    fn served(&self) -> usize;
}

impl Proxy for Envoy {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn request(&mut self) {
        Envoy::request(self, true);
    }

    fn turn(&mut self, advance: Duration, ticks: bool, latency: Duration) {
        Envoy::turn(self, advance, ticks, latency);
    }

    fn served(&self) -> usize {
        self.served
    }
}

/// Envoy without idleguard, with `idle_timeout` at the limit. It has no in-process pipe, so its exchanges are shorter.
struct Static {
    now: Timestamp,
    latency: Duration,
    /// Since when, the last one on top.
    idle: Vec<Timestamp>,
    /// Until when.
    busy: Vec<Timestamp>,
    opened: usize,
    served: usize,
}

impl Static {
    fn new(now: Timestamp) -> Self {
        Self { now, latency: Duration::ZERO, idle: Vec::new(), busy: Vec::new(), opened: 0, served: 0 }
    }
}

impl Proxy for Static {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn request(&mut self) {
        let now = self.now;
        self.idle.retain(|since| now.since(*since) < LIMIT);
        self.opened += usize::from(self.idle.pop().is_none());
        self.busy.push(now.after(self.latency));
    }

    fn turn(&mut self, advance: Duration, _ticks: bool, latency: Duration) {
        self.latency = latency;
        self.now = self.now.after(advance);
        let now = self.now;
        let before = self.busy.len();
        self.busy.retain(|until| *until > now);
        let done = before - self.busy.len();
        self.served += done;
        self.idle.extend(std::iter::repeat_n(now, done));
    }

    fn served(&self) -> usize {
        self.served
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clients {
    Steady,
    Bursts,
}

/// How often a turn of the event loop takes long, and for how many milliseconds then, on average.
#[derive(Clone, Copy, Debug)]
struct Stalls(f64, f64);

fn drive(proxy: &mut impl Proxy, clients: Clients, stalls: Stalls, seed: u64) {
    let millis = |millis: f64| Duration::from_secs_f64(millis / 1_000.0);
    let (mut random, mut noise) = (SplitMix64(seed), SplitMix64(!seed));
    let start = proxy.now();
    let mut due = BinaryHeap::new();
    for _ in 0..CLIENTS {
        let first = if clients == Clients::Steady { 340.0 * random.share() } else { 0.0 };
        due.push(Reverse(start.after(millis(first))));
    }
    let mut tick_at = start.after(TICK);
    let (mut served, mut of_burst) = (0, 0);
    while proxy.now().since(start) < Duration::from_secs(SECONDS) {
        while due.peek().is_some_and(|Reverse(at)| *at <= proxy.now()) {
            due.pop();
            proxy.request();
        }
        let stalled = noise.share() < stalls.0;
        let advance = millis(if stalled { -stalls.1 * (1.0 - noise.share()).ln() } else { 0.25 });
        let ticks = proxy.now().after(advance) >= tick_at;
        proxy.turn(advance, ticks, millis(0.2 + 0.4 * random.share()));
        if ticks {
            tick_at = proxy.now().after(TICK);
        }
        let answered = proxy.served() - served;
        served += answered;
        of_burst += answered;
        let begins = match clients {
            Clients::Steady => answered,
            Clients::Bursts if of_burst == CLIENTS => std::mem::take(&mut of_burst),
            Clients::Bursts => 0,
        };
        let silence = 260.0 + 80.0 * random.share();
        for _ in 0..begins {
            let own = if clients == Clients::Steady { 260.0 + 80.0 * random.share() } else { silence };
            due.push(Reverse(proxy.now().after(millis(own))));
        }
    }
}

/// Connections opened per connection that Envoy's `idle_timeout` opens, over all seeds.
fn ratio(clients: Clients, stalls: Stalls) -> f64 {
    let (mut guarded, mut own) = (0_u32, 0_u32);
    for seed in 0..SEEDS {
        let mut envoy = Envoy::new(1_000_000);
        drive(&mut envoy, clients, stalls, seed);
        assert_eq!(envoy.failures, [""; 0], "{clients:?}, {stalls:?}, seed {seed}");
        assert!(envoy.served > 5_000);
        let mut plain = Static::new(envoy.now);
        drive(&mut plain, clients, stalls, seed);
        guarded += u32::try_from(envoy.opened).unwrap();
        own += u32::try_from(plain.opened).unwrap();
    }
    let ratio = f64::from(guarded) / f64::from(own);
    println!("{clients:?}, {stalls:?}: {guarded} connections, and {own} with idle_timeout: {ratio:.2}");
    ratio
}

/// A calm machine, a busy one, and one that is too busy.
const STALLS: [Stalls; 4] = [Stalls(0.0, 0.0), Stalls(0.001, 5.0), Stalls(0.02, 5.0), Stalls(0.01, 15.0)];

#[test]
fn steady_clients_around_the_limit_cost_no_more_connections_than_an_idle_timeout() {
    for stalls in STALLS {
        assert!(ratio(Clients::Steady, stalls) < 1.0);
    }
}

#[test]
fn bursts_around_the_limit_cost_few_more_connections_than_an_idle_timeout() {
    // A burst finds all connections or none, so few bursts decide.
    for stalls in STALLS {
        assert!(ratio(Clients::Bursts, stalls) < 1.25);
    }
}
