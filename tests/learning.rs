//! The learner against simulated far ends, ten thousand of them: how the destination uses it, at the level of idle periods.
//!
//! A connection below the idle limit may be used again after a random gap. At the limit it is reaped 100 ms later, except
//! for one sentinel a worker, which is watched until the far end closes it or `sentinel_max` has passed. Requests that
//! follow each other within half a second say nothing to the learner; a thousand of them a second are left out, and
//! what remains of busy traffic are its idle periods.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation, missing_docs)]
#![allow(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use idleguard::learner::{Belief, Evidence, Learner, Rules, SHORTEST_AGE, Verdict};
use idleguard::policy::Margin;
use idleguard::shared;
use idleguard::time::Timestamp;

const RULES: Rules = Rules { initial_limit: Duration::from_secs(4), margin: Margin::Share(0.1) };
const SENTINEL_MAX: Duration = Duration::from_secs(2 * 3600);
const REAP_DELAY: Duration = Duration::from_millis(100);
const FOREVER: Duration = Duration::from_secs(1 << 30);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn up_to(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.share())
    }

    /// From `low` to `high`, each order of magnitude as likely as the next.
    fn between(&mut self, low: Duration, high: Duration) -> Duration {
        low.mul_f64((high.as_secs_f64() / low.as_secs_f64()).powf(self.share()))
    }

    fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.share()).ln())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Pooled,
    Sentinel,
}

#[derive(Clone, Debug)]
struct Connection {
    worker: usize,
    role: Role,
    opened: Timestamp,
    since: Timestamp,
    /// When the next request wants it.
    use_at: Timestamp,
    node: usize,
    /// How much later than its timeout the far end acts, and we see it.
    delay: Duration,
    exchanges: u32,
}

/// What the far end does.
#[derive(Clone, Debug)]
struct FarEnd {
    /// Idle timeouts of its nodes; a connection lands on either.
    timeouts: Vec<Duration>,
    /// Whether a drop is seen as FIN or RST.
    is_visible: bool,
    /// The share of the timeout by which drops are late.
    jitter: f64,
    /// The age at which a connection is closed, idle or not.
    lifetime: Option<Duration>,
    /// The mean time between moments at which everything is closed, over `restart_takes`.
    restarts: Option<Duration>,
    restart_takes: Duration,
    /// The share of connections that are closed right after a response.
    closes_at_once: f64,
}

impl FarEnd {
    fn new(timeout: Duration) -> Self {
        Self {
            timeouts: vec![timeout],
            is_visible: true,
            jitter: 0.005,
            lifetime: None,
            restarts: None,
            restart_takes: Duration::ZERO,
            closes_at_once: 0.0,
        }
    }
}

struct Simulation {
    random: Random,
    far_end: FarEnd,
    learners: Vec<Learner>,
    verdicts: Vec<Verdict>,
    connections: Vec<Connection>,
    has_sentinel: Vec<bool>,
    shared: Vec<u8>,
    is_shared: bool,
    now: Timestamp,
    mean_gap: Duration,
    restart_at: Timestamp,
    /// Moments at which a timeout of the far end was seen.
    seen: Vec<Timestamp>,
    /// Requests that met a dropped connection.
    failures: Vec<(Timestamp, Duration)>,
    /// When the limit was last found above the timeout, and how many moments had shown it by then.
    verdict_log: Vec<(Timestamp, Verdict)>,
}

impl Simulation {
    fn new(seed: u64, far_end: FarEnd, workers: usize, connections: usize, mean_gap: Duration) -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let verdict = Learner::default().verdict(&RULES, now);
        let mut simulation = Self {
            random: Random(seed),
            far_end,
            learners: vec![Learner::default(); workers],
            verdicts: vec![verdict; workers],
            connections: Vec::new(),
            has_sentinel: vec![false; workers],
            shared: Vec::new(),
            is_shared: workers > 1,
            now,
            mean_gap,
            restart_at: now,
            seen: Vec::new(),
            failures: Vec::new(),
            verdict_log: Vec::new(),
        };
        for index in 0..connections.max(workers) {
            let connection = simulation.fresh(index % workers, now.after(simulation_offset(seed, index)));
            simulation.connections.push(connection);
        }
        simulation.plan_restart();
        simulation
    }

    /// A connection that was opened for a request; sometimes more follow, so that it is older than its idle age.
    fn fresh(&mut self, worker: usize, at: Timestamp) -> Connection {
        let busy = if self.random.share() < 0.5 { self.random.up_to(self.mean_gap) } else { Duration::ZERO };
        let since = at.after(Duration::from_millis(5) + busy);
        let mut connection = Connection {
            worker,
            role: Role::Pooled,
            opened: at,
            since,
            use_at: since,
            node: self.random.next() as usize % self.far_end.timeouts.len(),
            delay: Duration::ZERO,
            exchanges: 1,
        };
        self.idle(&mut connection, since);
        connection
    }

    fn idle(&mut self, connection: &mut Connection, since: Timestamp) {
        connection.since = since;
        connection.use_at = since.after(self.random.exponential(self.mean_gap));
        let timeout = self.far_end.timeouts[connection.node].min(Duration::from_secs(100_000));
        connection.delay = self.random.up_to(timeout.mul_f64(self.far_end.jitter) + Duration::from_millis(10));
    }

    fn plan_restart(&mut self) {
        self.restart_at = match self.far_end.restarts {
            Some(mean) => self.now.after(mean.mul_f64(0.5 + self.random.share())),
            None => Timestamp::from_nanos(u64::MAX),
        };
    }

    /// When the far end drops a connection, if it stays idle, and whether its idle timeout is why.
    fn drop_at(&self, connection: &Connection) -> (Timestamp, bool) {
        let idle = connection.since.after(self.far_end.timeouts[connection.node] + connection.delay);
        let old = self.far_end.lifetime.map_or(Timestamp::from_nanos(u64::MAX), |lifetime| {
            connection.opened.after(lifetime).max(connection.since)
        });
        (idle.min(old), idle <= old)
    }

    fn wake_at(&self, connection: &Connection) -> Timestamp {
        let (drop_at, _) = self.drop_at(connection);
        let drop_at = if self.far_end.is_visible { drop_at } else { Timestamp::from_nanos(u64::MAX) };
        let limit = self.verdicts[connection.worker].limit;
        match connection.role {
            Role::Sentinel => drop_at.min(connection.since.after(SENTINEL_MAX)),
            Role::Pooled => drop_at.min(connection.use_at).min(connection.since.after(limit)),
        }
        .max(self.now)
    }

    fn step(&mut self) {
        let (index, at) = self
            .connections
            .iter()
            .enumerate()
            .map(|(index, connection)| (index, self.wake_at(connection)))
            .min_by_key(|(_, at)| *at)
            .unwrap();
        if self.restart_at <= at {
            self.now = self.restart_at.max(self.now);
            self.restart();
            return;
        }
        self.now = at;
        let mut connection = self.connections[index].clone();
        let (age, worker) = (at.since(connection.since), connection.worker);
        let (drop_at, by_timeout) = self.drop_at(&connection);
        if self.far_end.is_visible && drop_at <= at {
            self.on_close(&connection, by_timeout);
            self.replace(index);
            return;
        }
        match connection.role {
            Role::Sentinel => self.replace(index), // given up
            Role::Pooled if age >= self.verdicts[worker].limit => {
                if self.has_sentinel[worker] {
                    self.replace_after(index, REAP_DELAY);
                } else {
                    self.has_sentinel[worker] = true;
                    connection.role = Role::Sentinel;
                    let next = self.fresh(worker, at);
                    self.connections[index] = connection;
                    self.connections.push(next);
                }
            }
            Role::Pooled => {
                if drop_at <= at {
                    self.failures.push((at, age));
                    self.observe(worker, Evidence::Failed { age });
                    self.replace(index);
                } else {
                    self.observe(worker, Evidence::Succeeded { age });
                    connection.exchanges += 1;
                    self.idle(&mut connection, at.after(Duration::from_millis(5)));
                    self.connections[index] = connection;
                    if self.random.share() < self.far_end.closes_at_once {
                        let age = self.random.up_to(Duration::from_millis(50));
                        let connection_age = at.since(self.connections[index].opened) + age;
                        self.observe(worker, Evidence::Closed { age, connection_age, is_sentinel: false });
                        self.replace(index);
                    }
                }
            }
        }
    }

    fn on_close(&mut self, connection: &Connection, by_timeout: bool) {
        let evidence = Evidence::Closed {
            age: self.now.since(connection.since),
            connection_age: self.now.since(connection.opened),
            is_sentinel: connection.role == Role::Sentinel,
        };
        if by_timeout && self.seen.last().is_none_or(|last| self.now.since(*last) >= Duration::from_millis(500)) {
            self.seen.push(self.now);
        }
        self.observe(connection.worker, evidence);
    }

    fn restart(&mut self) {
        let start = self.now;
        let mut order: Vec<(Duration, usize)> = Vec::new();
        for index in 0..self.connections.len() {
            let spread = self.far_end.restart_takes + Duration::from_millis(20);
            order.push((self.random.up_to(spread), index));
        }
        order.sort_unstable();
        for (after, index) in order {
            self.now = start.after(after);
            let connection = self.connections[index].clone();
            // A request that comes in this moment finds its connection gone.
            if connection.role == Role::Pooled && self.random.share() < 0.1 {
                self.observe(connection.worker, Evidence::Failed { age: self.now.since(connection.since) });
            } else {
                self.on_close(&connection, false);
            }
            if connection.role == Role::Pooled {
                self.connections[index] = self.fresh(connection.worker, self.now);
            } else {
                self.connections[index].since = Timestamp::from_nanos(0); // removed below
            }
        }
        self.has_sentinel.fill(false);
        self.connections.retain(|connection| connection.role == Role::Pooled);
        self.plan_restart();
    }

    fn replace(&mut self, index: usize) {
        self.replace_after(index, Duration::ZERO);
    }

    fn replace_after(&mut self, index: usize, delay: Duration) {
        let Connection { worker, role, .. } = self.connections[index];
        if role == Role::Sentinel {
            self.has_sentinel[worker] = false;
            self.connections.swap_remove(index);
        } else {
            let pause = self.random.exponential(self.mean_gap.mul_f64(0.2));
            self.connections[index] = self.fresh(worker, self.now.after(delay + pause));
        }
    }

    fn observe(&mut self, worker: usize, evidence: Evidence) {
        if !self.learners[worker].observe(evidence, self.now) {
            return;
        }
        if self.is_shared {
            if let Some(theirs) = shared::decode(&self.shared) {
                self.learners[worker].merge(&theirs, self.now);
            }
            self.shared = shared::encode(&self.learners[worker]);
        }
        let known = self.verdicts[worker];
        let is_below = matches!(evidence, Evidence::Succeeded { age } if age < known.belief.timeout());
        if is_below && known.belief.learned().is_some() && known.at_most.is_none() && !self.is_shared {
            return; // nothing that the verdict depends on
        }
        let verdict = self.learners[worker].verdict(&RULES, self.now);
        self.verdicts[worker] = verdict;
        self.verdict_log.push((self.now, verdict));
    }

    fn run_until(&mut self, is_done: impl Fn(&Self) -> bool, steps: usize) {
        for _ in 0..steps {
            if is_done(self) {
                return;
            }
            self.step();
        }
    }

    fn highest_limit(&self) -> Duration {
        self.verdict_log.iter().map(|(_, verdict)| verdict.limit).max().unwrap_or(RULES.initial_limit)
    }

    fn learned(&self) -> Option<Duration> {
        self.verdicts[0].belief.learned()
    }
}

/// Workers' connections don't begin in one moment.
fn simulation_offset(seed: u64, index: usize) -> Duration {
    Random(seed ^ (index as u64) << 32).up_to(Duration::from_secs(3))
}

fn is_within(got: Option<Duration>, want: Duration, percent: f64) -> bool {
    got.is_some_and(|got| (got.as_secs_f64() / want.as_secs_f64() - 1.0).abs() <= percent / 100.0)
}

/// A far end with one timeout from 1 s to 1 h, and anything from a request a minute to thousands a second.
fn plain(seed: u64) -> (Simulation, Duration) {
    let mut random = Random(seed.wrapping_mul(77));
    let timeout = random.between(Duration::from_secs(1), Duration::from_secs(3600));
    // Requests may come at any rate: of busier traffic only the idle periods that are long enough to matter are played.
    let shortest = (timeout / 10).max(Duration::from_millis(800));
    let mean_gap = random.between(shortest, shortest.max(Duration::from_secs(60)));
    let connections = 1 + (random.share() * 8.0) as usize;
    (Simulation::new(seed, FarEnd::new(timeout), 1, connections, mean_gap), timeout)
}

#[test]
fn after_five_closes_the_timeout_is_known_within_three_per_cent() {
    let (seeds, mut wrong) = (10_000, Vec::new());
    for seed in 0..seeds {
        let (mut simulation, timeout) = plain(seed);
        simulation.run_until(|simulation| simulation.seen.len() >= 5, 20_000);
        if simulation.seen.len() >= 5 && !is_within(simulation.learned(), timeout, 3.0) {
            wrong.push((seed, timeout, simulation.verdicts[0]));
        }
        // Without noise a belief is never above the timeout's latest drop, and from the safe start on no request fails.
        if timeout > RULES.initial_limit {
            assert!(simulation.highest_limit() <= timeout, "seed {seed}: {:?}", simulation.highest_limit());
            assert_eq!(simulation.failures, [], "seed {seed}");
        }
    }
    assert!(wrong.len() as u64 * 100 <= seeds, "{} wrong: {:?}", wrong.len(), wrong.first());
}

#[test]
fn a_timeout_below_the_safe_start_is_respected_from_the_third_moment_on() {
    for seed in 0..1_000 {
        let mut random = Random(seed ^ 0xabc);
        let timeout = random.between(Duration::from_secs(1), Duration::from_millis(3_900));
        let mut simulation = Simulation::new(seed, FarEnd::new(timeout), 1, 5, Duration::from_secs(2));
        simulation.run_until(|simulation| simulation.seen.len() >= 20, 20_000);
        let third = simulation.seen[2];
        for (at, verdict) in &simulation.verdict_log {
            assert!(*at <= third || verdict.limit < timeout, "seed {seed}: {verdict:?} of {timeout:?}");
        }
    }
}

#[test]
fn a_silent_far_end_fails_requests_only_until_the_limit_has_halved_below_its_timeout() {
    for seed in 0..1_000 {
        let mut random = Random(seed ^ 0xdef);
        let timeout = random.between(Duration::from_secs(1), Duration::from_secs(20));
        let mut far_end = FarEnd::new(timeout);
        far_end.is_visible = false;
        let mut simulation = Simulation::new(seed, far_end, 1, 6, Duration::from_secs(3));
        simulation.run_until(|_| false, 2_000);
        let most = if timeout > RULES.initial_limit {
            0
        } else if timeout.as_secs_f64() >= 2.0 {
            1
        } else {
            2
        };
        assert!(simulation.failures.len() <= most, "seed {seed}: {timeout:?} {:?}", simulation.failures);
        assert_eq!(simulation.learned(), None, "nothing was seen that says how long it is");
    }
}

#[test]
fn a_lowered_timeout_is_respected_from_the_third_moment_on_and_a_raised_one_is_learnt_by_sentinels() {
    for seed in 0..1_000 {
        let mut random = Random(seed ^ 0x123);
        let high = random.between(Duration::from_secs(6), Duration::from_secs(600));
        let low = high.mul_f64(0.3 + 0.5 * random.share());
        let mut simulation = Simulation::new(seed, FarEnd::new(high), 2, 6, (high / 4).max(Duration::from_secs(5)));
        simulation.run_until(|simulation| simulation.seen.len() >= 10, 50_000);
        assert!(is_within(simulation.learned(), high, 3.0), "seed {seed}: {:?}", simulation.verdicts[0]);

        simulation.far_end.timeouts = vec![low];
        let before = simulation.seen.len();
        // What idled for longer than the new timeout is dropped at once, at any idle age: noise, before three closes tell.
        simulation.run_until(|simulation| simulation.seen.len() >= before + 14, 50_000);
        for learner in 0..2 {
            assert!(simulation.verdicts[learner].limit < low, "seed {seed}: {:?}", simulation.verdicts);
        }

        simulation.far_end.timeouts = vec![high];
        let before = simulation.seen.len();
        simulation.run_until(|simulation| simulation.seen.len() >= before + 14, 100_000);
        assert!(is_within(simulation.learned(), high, 3.0), "seed {seed}: {:?}", simulation.verdicts[0]);
    }
}

#[test]
fn one_close_below_the_known_timeout_lowers_the_limit_until_that_has_shown_again() {
    let mut learner = Learner::default();
    let mut closed = |seconds: u64, at: u64| {
        let age = Duration::from_secs(seconds);
        let now = Timestamp::from_millis(at * 1_000);
        learner.observe(Evidence::Closed { age, connection_age: age, is_sentinel: true }, now);
        let verdict = learner.verdict(&RULES, now);
        (verdict.belief.learned().map(|timeout| timeout.as_secs()), verdict.limit.as_secs())
    };
    assert_eq!(closed(60, 100), (None, 4));
    for close in 2..=6 {
        assert_eq!(closed(60, close * 100), (Some(60), 54));
    }
    assert_eq!(closed(20, 700), (Some(60), 18), "nothing is learnt, and nothing is risked");
    assert_eq!(closed(60, 800), (Some(60), 18));
    assert_eq!(closed(60, 900), (Some(60), 54));
}

/// Runs a far end without an idle timeout through noise; returns in how many seeds anything was believed at the end.
fn believers(seeds: u64, minutes: u64, make: impl Fn(&mut Random) -> (FarEnd, usize, Duration)) -> u64 {
    let mut believers = 0;
    for seed in 0..seeds {
        let mut random = Random(seed ^ 0x5eed);
        let (far_end, connections, mean_gap) = make(&mut random);
        let mut simulation = Simulation::new(seed, far_end, 1, connections, mean_gap);
        let until = simulation.now.after(Duration::from_secs(60 * minutes));
        simulation.run_until(|simulation| simulation.now >= until, 20_000);
        believers += u64::from(simulation.learned().is_some());
    }
    believers
}

#[test]
fn a_far_end_that_restarts_teaches_nothing() {
    let wrong = believers(2_000, 1, |random| {
        let mut far_end = FarEnd::new(FOREVER);
        far_end.restarts = Some(Duration::from_secs(3));
        (far_end, 20 + (random.share() * 20.0) as usize, Duration::from_secs(6))
    });
    // Chance agreement is harmless (the far end keeps connections up to there), but must be rare.
    assert!(wrong <= 10, "{wrong} of 2000");
}

#[test]
fn a_deploy_that_drains_over_seconds_teaches_nothing() {
    let wrong = believers(2_000, 20, |random| {
        let mut far_end = FarEnd::new(FOREVER);
        far_end.restarts = Some(Duration::from_secs(120));
        far_end.restart_takes = random.up_to(Duration::from_secs(5));
        (far_end, 10, Duration::from_secs(5))
    });
    assert!(wrong <= 30, "{wrong} of 2000");
}

#[test]
fn a_network_blip_in_between_changes_nothing() {
    for seed in 0..1_000 {
        let mut far_end = FarEnd::new(Duration::from_secs(30));
        far_end.restarts = Some(Duration::from_secs(200));
        let mut simulation = Simulation::new(seed, far_end, 1, 8, Duration::from_secs(5));
        simulation.run_until(|simulation| simulation.seen.len() >= 12, 20_000);
        assert!(
            is_within(simulation.learned(), Duration::from_secs(30), 3.0),
            "seed {seed}: {:?}",
            simulation.verdicts
        );
        assert!(simulation.highest_limit() <= Duration::from_secs(30));
    }
}

#[test]
fn a_backend_that_closes_after_every_response_teaches_no_timeout_of_zero() {
    for seed in 0..1_000 {
        let mut far_end = FarEnd::new(Duration::from_secs(60));
        far_end.closes_at_once = if seed % 2 == 0 { 1.0 } else { 0.5 };
        let mut simulation = Simulation::new(seed, far_end, 1, 6, Duration::from_secs(4));
        simulation.run_until(|simulation| simulation.seen.len() >= 5, 5_000);
        for (_, verdict) in &simulation.verdict_log {
            assert!(verdict.limit >= RULES.initial_limit, "seed {seed}: {verdict:?}");
        }
    }
}

#[test]
fn a_lifetime_cap_teaches_nothing_below_the_safe_start() {
    let cap = Duration::from_secs(60);
    let mut believers = 0;
    for seed in 0..2_000 {
        let mut far_end = FarEnd::new(FOREVER);
        far_end.lifetime = Some(cap);
        let mut simulation = Simulation::new(seed, far_end, 1, 6, Duration::from_secs(8));
        let until = simulation.now.after(Duration::from_secs(1_800));
        simulation.run_until(|simulation| simulation.now >= until, 20_000);
        believers += u64::from(simulation.learned().is_some_and(|timeout| timeout < cap.mul_f64(0.85)));
    }
    assert!(believers <= 20, "{believers} of 2000");
}

#[test]
fn of_two_nodes_the_smaller_timeout_wins() {
    let (mut above, mut total) = (Duration::ZERO, Duration::ZERO);
    for seed in 0..1_000 {
        let mut far_end = FarEnd::new(Duration::from_secs(10));
        far_end.timeouts.push(Duration::from_secs(20));
        let mut simulation = Simulation::new(seed, far_end, 1, 8, Duration::from_secs(5));
        simulation.run_until(|simulation| simulation.seen.len() >= 60, 20_000);
        let settled = simulation.seen[12];
        for pair in simulation.verdict_log.windows(2).filter(|pair| pair[0].0 >= settled) {
            let time = pair[1].0.since(pair[0].0);
            total += time;
            above += if pair[0].1.limit > Duration::from_secs(10) { time } else { Duration::ZERO };
        }
    }
    assert!(above.as_secs_f64() < 0.03 * total.as_secs_f64(), "{above:?} of {total:?}");
}

#[test]
fn two_workers_that_share_believe_the_same() {
    for seed in 0..500 {
        let (plain, timeout) = plain(seed);
        let mut simulation = Simulation::new(seed, plain.far_end, 2, 6, plain.mean_gap);
        simulation.run_until(|simulation| simulation.seen.len() >= 6, 20_000);
        let [one, other] = &mut simulation.learners[..] else { panic!("two workers") };
        let now = simulation.now;
        one.merge(&other.clone(), now);
        other.merge(&one.clone(), now);
        assert_eq!(one, other, "seed {seed}");
        assert_eq!(shared::decode(&shared::encode(one)).as_ref(), Some(&*one));
        if simulation.seen.len() >= 6 {
            assert!(is_within(one.verdict(&RULES, now).belief.learned(), timeout, 3.0), "seed {seed}");
        }
    }
}

/// Any evidence at any time.
fn any_evidence(random: &mut Random) -> Evidence {
    let age = random.between(Duration::from_millis(1), Duration::from_secs(4_000));
    match random.next() % 5 {
        0 => {
            let connection_age = random.up_to(Duration::from_secs(4_000));
            Evidence::Closed { age, connection_age, is_sentinel: random.share() < 0.5 }
        }
        1 => Evidence::Failed { age },
        2 => Evidence::Succeeded { age },
        3 => Evidence::ProbeSurvived { gap: age },
        _ => Evidence::ProbeFailed { gap: age },
    }
}

#[test]
fn no_order_of_events_makes_it_believe_what_a_success_has_just_refuted() {
    for seed in 0..10_000 {
        let (mut random, mut learner) = (Random(seed), Learner::default());
        for _ in 0..60 {
            let now = Timestamp::from_nanos(random.next() % 4_000_000_000_000);
            learner.observe(any_evidence(&mut random), now);
            let verdict = learner.verdict(&RULES, now);
            assert!(verdict.limit > Duration::ZERO && !verdict.to_string().is_empty());
        }
        let now = Timestamp::from_nanos(5_000_000_000_000);
        let age = random.between(SHORTEST_AGE, Duration::from_secs(4_000));
        learner.observe(Evidence::ProbeSurvived { gap: age }, now);
        if let Belief::About { timeout, .. } = learner.verdict(&RULES, now).belief {
            assert!(
                timeout.mul_f64(1.03) + Duration::from_millis(20) >= age,
                "seed {seed}: {timeout:?} but {age:?} survived"
            );
        }
    }
}

#[test]
fn merging_is_commutative_and_idempotent_and_associative() {
    let now = Timestamp::from_nanos(u64::MAX);
    for seed in 0..3_000 {
        let mut random = Random(seed);
        let mut make = || {
            let mut learner = Learner::default();
            for _ in 0..random.next() % 60 {
                let at = Timestamp::from_nanos(random.next() % 4_000_000_000_000);
                learner.observe(any_evidence(&mut random), at);
            }
            learner
        };
        let [one, two, three] = [make(), make(), make()];
        let join = |one: &Learner, other: &Learner| {
            let mut joined = one.clone();
            joined.merge(other, now);
            joined
        };
        assert_eq!(join(&one, &two), join(&two, &one), "seed {seed}");
        assert_eq!(join(&one, &one), one, "seed {seed}");
        assert_eq!(join(&join(&one, &two), &two), join(&one, &two), "seed {seed}");
        assert_eq!(join(&join(&one, &two), &three), join(&one, &join(&two, &three)), "seed {seed}");
    }
}

#[test]
fn closes_at_one_connection_age_are_no_idle_timeout_even_if_their_idle_ages_agree() {
    let believe = |closes: [(u64, u64); 3]| {
        let mut learner = Learner::default();
        for (n, (age, connection_age)) in closes.into_iter().enumerate() {
            let (age, connection_age) = (Duration::from_millis(age), Duration::from_millis(connection_age));
            let now = Timestamp::from_millis(100_000 * (1 + n as u64));
            learner.observe(Evidence::Closed { age, connection_age, is_sentinel: true }, now);
        }
        learner.verdict(&RULES, Timestamp::from_millis(1_000_000)).belief.learned()
    };
    let idle = Some(Duration::from_secs(30));
    assert_eq!(believe([(30_000, 100_000), (30_100, 100_001), (30_200, 100_002)]), None);
    assert_eq!(believe([(30_000, 100_000), (30_001, 101_000), (30_002, 102_000)]), idle, "idle ages agree better");
    assert_eq!(believe([(30_000, 30_500), (30_200, 30_501), (30_400, 30_502)]), idle, "idle from the start");
}
