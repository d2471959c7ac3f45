//! The scout beside far ends of every kind, with injected time.
#![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::timeout::Margin;

/// What a far end does to its connections.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Stable,
    Fin(u64),
    /// By FIN, when it looks: at each request, and this often since the latest one.
    LateFin(u64, u64),
    Rst(u64),
    Announced(u64),
    /// Forgets; the next request is answered by RST.
    SilentRst(u64),
    /// Forgets; the next request is never answered.
    Swallow(u64),
    /// Closes with every answer.
    AtOnce,
    /// Closes connections of this age, whatever they do.
    AgeLimit(u64),
    /// An idle timeout and a limit on the age.
    FinAndAgeLimit(u64, u64),
    /// Closes everything every so often.
    RestartEvery(u64),
    /// Accepts, and never answers.
    Mute,
}

struct Connection {
    id: u32,
    host: usize,
    opened: u64,
    idle_since: u64,
    /// A request that was sent then, and how many are with it.
    request: Option<u64>,
    more: u32,
    is_forgotten: bool,
}

/// In milliseconds, in steps of `STEP`.
struct World {
    now: u64,
    scout: Scout,
    hosts: Vec<Mode>,
    http2: bool,
    /// The pool puts all requests on one connection.
    shares: bool,
    keep_alive: Option<u64>,
    /// The pool: the one that was used last is last.
    pool: Vec<Connection>,
    opened: u32,
    requests: Vec<u64>,
    /// The idle ages at which a connection ended.
    ends: Vec<u64>,
    next_tick: u64,
}

const STEP: u64 = 5;
const LATENCY: u64 = 10;

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

impl World {
    fn new(hosts: &[Mode]) -> Self {
        Self::with(hosts, 3_600_000, Finding::default())
    }

    fn with(hosts: &[Mode], max_wait: u64, known: Finding) -> Self {
        let now = 100_000;
        Self {
            now,
            scout: Scout::new(Duration::from_millis(max_wait), known, at(now)),
            hosts: hosts.to_vec(),
            http2: false,
            shares: false,
            keep_alive: None,
            pool: Vec::new(),
            opened: 0,
            requests: Vec::new(),
            ends: Vec::new(),
            next_tick: now,
        }
    }

    fn is_down(&self, connection: &Connection) -> Option<End> {
        let age = self.now - connection.opened;
        let idle = if connection.request.is_none() { self.now - connection.idle_since } else { 0 };
        match self.hosts[connection.host] {
            Mode::Fin(timeout) if idle >= timeout => Some(End::Fin),
            Mode::LateFin(timeout, period) if idle >= timeout => {
                let asked = self.requests.last().copied().unwrap_or_default();
                (self.now - asked).is_multiple_of(period).then_some(End::Fin)
            }
            Mode::Rst(timeout) if idle >= timeout => Some(End::Rst),
            Mode::Announced(timeout) if idle >= timeout => Some(End::Announced),
            Mode::AgeLimit(limit) if age >= limit => Some(End::Fin),
            Mode::FinAndAgeLimit(timeout, limit) if idle >= timeout || age >= limit => Some(End::Fin),
            Mode::RestartEvery(period) if self.now.is_multiple_of(period) && age > 0 => Some(End::Fin),
            _ => None,
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = at(self.now);
        for mut connection in std::mem::take(&mut self.pool) {
            let (id, mode) = (connection.id, self.hosts[connection.host]);
            if let Some(end) = self.is_down(&connection) {
                self.ends.push(self.now - connection.idle_since);
                match end {
                    End::Fin => self.scout.on_let_go(id, Kind::Fin, now),
                    End::Announced => self.scout.on_let_go(id, Kind::Announced, now),
                    End::Rst => {}
                }
                self.scout.on_closed(id, if end == End::Rst { By::FarEnd } else { By::Pool }, now);
                self.call_ended(&connection);
                continue;
            }
            let forgets = match mode {
                Mode::SilentRst(timeout) | Mode::Swallow(timeout) => {
                    connection.request.is_none() && self.now - connection.idle_since >= timeout
                }
                Mode::Mute => true,
                _ => false,
            };
            connection.is_forgotten |= forgets;
            let Some(sent) = connection.request else {
                self.pool.push(connection);
                continue;
            };
            if self.now == sent + STEP {
                for _ in 0..=std::mem::take(&mut connection.more) {
                    self.scout.on_asked(id, format!("host {}", connection.host).as_bytes(), now);
                }
            }
            let waited = self.now - sent;
            match (connection.is_forgotten, mode) {
                (true, Mode::SilentRst(_)) if waited >= LATENCY => {
                    self.scout.on_closed(id, By::FarEnd, now);
                    self.scout.on_call_ended();
                    continue;
                }
                (true, _) if waited >= 5_000 => {
                    self.scout.on_call_ended();
                    if !self.http2 {
                        self.scout.on_closed(id, By::Pool, now);
                        continue;
                    }
                }
                (true, _) => {}
                (false, _) if waited >= LATENCY => {
                    let closes = mode == Mode::AtOnce;
                    let keep_alive = self.keep_alive.map(Duration::from_millis);
                    self.scout.on_answered(id, Answer { keep_alive, closes }, now);
                    self.scout.on_call_ended();
                    if closes {
                        self.scout.on_closed(id, By::Pool, now);
                        continue;
                    }
                    connection.request = None;
                    connection.idle_since = self.now;
                }
                (false, _) => {}
            }
            self.pool.push(connection);
        }
        // The pool is last-in, first-out: by the end of the last exchange.
        self.pool.sort_by_key(|connection| connection.idle_since);
        if self.now >= self.next_tick {
            self.tick();
        }
    }

    fn call_ended(&mut self, connection: &Connection) {
        if connection.request.is_some() {
            self.scout.on_call_ended();
        }
    }

    fn tick(&mut self) {
        let now = at(self.now);
        let actions = self.scout.tick(now);
        for id in actions.close {
            let index = self.pool.iter().position(|connection| connection.id == id).expect("it is there");
            let connection = self.pool.remove(index);
            self.scout.on_closed(id, By::FarEnd, now);
            self.call_ended(&connection);
        }
        assert!(!actions.steps_back, "the far end can be reached");
        for _ in 0..actions.ask {
            self.requests.push(self.now);
            let shares = self.shares;
            match self.pool.iter_mut().rev().find(|connection| shares || connection.request.is_none()) {
                Some(connection) if connection.request.is_some() => connection.more += 1,
                Some(connection) => connection.request = Some(self.now),
                None => {
                    self.opened += 1;
                    self.scout.on_opened(self.opened, now);
                    self.pool.push(Connection {
                        id: self.opened,
                        host: self.opened as usize % self.hosts.len(),
                        opened: self.now,
                        idle_since: self.now,
                        request: Some(self.now),
                        more: 0,
                        is_forgotten: false,
                    });
                }
            }
        }
        assert!(self.pool.len() <= 2, "two connections are enough");
        let due = self.scout.next_due(now).map_or(200, |due| (due.as_millis() as u64).clamp(STEP, 200));
        self.next_tick = self.now + due;
    }

    fn run_for(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.step();
        }
    }

    /// How long it took until the condition held; at most `within`.
    fn run_until(&mut self, within: u64, condition: impl Fn(&Scout) -> bool) -> Option<u64> {
        let begin = self.now;
        while !condition(&self.scout) {
            if self.now - begin > within {
                return None;
            }
            self.step();
        }
        Some(self.now - begin)
    }

    fn idle(&self) -> Idle {
        self.scout.finding().idle
    }
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Fin,
    Rst,
    Announced,
}

fn near(found: Duration, timeout: u64) -> bool {
    found.as_millis().abs_diff(u128::from(timeout)) * 50 <= u128::from(timeout)
}

#[test]
fn every_way_of_closing_is_known_after_three_timeouts() {
    for timeout in [500, 900, 1_000, 2_000, 2_600, 3_000, 5_190, 5_210, 6_000, 10_000, 20_000, 41_600, 60_000, 350_000]
    {
        for (mode, expected) in [
            (Mode::Fin(timeout), Kind::Fin),
            (Mode::Rst(timeout), Kind::Rst),
            (Mode::Announced(timeout), Kind::Announced),
            (Mode::FinAndAgeLimit(timeout, 2 * timeout), Kind::Fin),
        ] {
            let mut world = World::new(&[mode]);
            let within = if matches!(mode, Mode::FinAndAgeLimit(..)) {
                12 * timeout + 5_000
            } else {
                (3 * timeout + 1_500).max(4_500)
            };
            let took = world.run_until(within, |scout| matches!(scout.finding().idle, Idle::Closes { .. }));
            let idle = world.idle();
            assert!(
                matches!(idle, Idle::Closes { timeout: found, kind } if near(found, timeout) && kind == expected),
                "{mode:?}: {idle} after {took:?}"
            );
        }
    }
}

/// gunicorn's threads look at idle connections once a second.
#[test]
fn of_a_far_end_that_closes_late_by_chance_the_least_late_one_counts() {
    for timeout in (2_000..8_000).step_by(185).chain([2_000, 3_000, 4_000, 5_000, 20_000]) {
        let mut world = World::new(&[Mode::LateFin(timeout, 1_000)]);
        let took = world.run_until(30 * timeout, |scout| matches!(scout.finding().idle, Idle::Closes { .. }));
        assert!(took.is_some(), "{timeout}: {:?}", world.ends);
        for _ in 0..30 {
            let (found, limit) = (world.scout.lower_bound(), world.scout.finding().limit(Margin::Share(0.1)));
            let latest = world.ends.iter().rev().take(4).min().copied().map(Duration::from_millis);
            let least = latest.expect("ends");
            assert!(limit.is_some_and(|limit| limit < least), "{timeout}: {found:?} of {:?}", world.ends);
            assert!(
                found >= Duration::from_millis(timeout) && found <= least.mul_f64(1.06),
                "{timeout}: {found:?} of {:?}",
                world.ends
            );
            world.run_for(timeout);
        }
    }
}

/// What was seen before it rose is not taken for the least late one of now.
#[test]
fn a_timeout_that_rises_by_a_little_is_followed_too() {
    let mut world = World::new(&[Mode::Fin(6_000)]);
    world.run_for(60_000);
    world.hosts = vec![Mode::Fin(7_000)];
    let took = world.run_until(100_000, |scout| near(scout.lower_bound(), 7_000));
    assert!(took.is_some(), "{}", world.idle());
}

#[test]
fn one_connection_will_do_where_the_pool_shares_it() {
    for timeout in [2_000, 3_000, 6_000, 10_000, 20_000, 60_000] {
        let mut world = World::new(&[Mode::Announced(timeout)]);
        world.shares = true;
        let took =
            world.run_until(3 * timeout + timeout / 4, |scout| matches!(scout.finding().idle, Idle::Closes { .. }));
        assert!(took.is_some() && near(world.scout.lower_bound(), timeout), "{timeout}: {}", world.idle());
        let before = world.requests.len() as u64;
        world.run_for(20 * timeout);
        assert!((world.requests.len() as u64 - before) * 5_000 <= 20 * timeout + 10_000, "{timeout}");
        world.hosts = vec![Mode::Announced(timeout / 2)];
        let is_followed = |scout: &Scout| scout.finding().timeout().is_some_and(|found| near(found, timeout / 2));
        assert!(world.run_until(100_000 + 4 * timeout, is_followed).is_some(), "{timeout}: {}", world.idle());
    }
    for mode in [Mode::Swallow(3_000), Mode::SilentRst(3_000), Mode::Swallow(6_000), Mode::Swallow(20_000)] {
        let mut world = World::new(&[mode]);
        (world.shares, world.http2) = (true, true);
        world.run_for(500_000);
        let (Mode::Swallow(timeout) | Mode::SilentRst(timeout)) = mode else { continue };
        assert!(near_below(world.scout.lower_bound(), timeout), "{mode:?}: {}", world.idle());
    }
    for mode in [Mode::AgeLimit(5_000), Mode::RestartEvery(5_000), Mode::RestartEvery(17_000)] {
        let mut world = World::new(&[mode]);
        world.shares = true;
        world.run_for(3_000_000);
        assert_eq!(world.idle(), Idle::Unknown, "{mode:?}");
    }
}

#[test]
fn silence_is_known_after_twenty_five_timeouts() {
    for timeout in [1_000, 2_000, 2_600, 3_000, 6_000, 20_000, 60_000, 350_000] {
        for mode in [Mode::SilentRst(timeout), Mode::Swallow(timeout)] {
            for http2 in [false, true] {
                let mut world = World::new(&[mode]);
                world.http2 = http2;
                let is_close = |idle| {
                    matches!(idle, Idle::Silent { answered, unanswered }
                    if near_below(answered, timeout) && unanswered.as_millis() >= u128::from(timeout))
                };
                let within = 25 * timeout + 5_000;
                let took = world.run_until(within, |scout| is_close(scout.finding().idle));
                assert!(took.is_some(), "{mode:?}: {} lower bound {:?}", world.idle(), world.scout.lower_bound());
                // It stays so, and is asked every ten minutes.
                world.run_for(120_000);
                let before = world.requests.len();
                world.run_for(3_600_000);
                assert!(is_close(world.idle()), "{mode:?}: {}", world.idle());
                let requests = world.requests.len() - before;
                assert!((12..=60).contains(&requests), "{mode:?}: {requests} requests in an hour");
            }
        }
    }
}

fn near_below(found: Duration, timeout: u64) -> bool {
    found <= Duration::from_millis(timeout) && found.as_millis() * 10 >= u128::from(timeout) * 9
}

#[test]
fn what_has_another_cause_teaches_nothing() {
    for mode in [
        Mode::Stable,
        Mode::AgeLimit(5_000),
        Mode::AgeLimit(30_000),
        Mode::RestartEvery(5_000),
        Mode::RestartEvery(4_985),
        Mode::RestartEvery(17_000),
        Mode::Mute,
    ] {
        let mut world = World::new(&[mode]);
        world.run_for(3_000_000);
        assert_eq!(world.idle(), Idle::Unknown, "{mode:?}");
        let pace = 3_000_000 / world.requests.len().max(1) as u64;
        assert!(pace > 4_000, "{mode:?}: a request every {pace} ms");
    }
}

#[test]
fn a_far_end_that_closes_with_every_answer_has_no_idle_timeout() {
    let mut world = World::new(&[Mode::AtOnce]);
    world.run_for(3_000);
    assert_eq!(world.idle(), Idle::ClosesAtOnce);
    let before = world.requests.len();
    world.run_for(600_000);
    assert!(world.requests.len() - before <= 24, "{} requests", world.requests.len() - before);
    world.hosts = vec![Mode::Fin(3_000)];
    let took = world.run_until(100_000, |scout| matches!(scout.finding().idle, Idle::Closes { .. }));
    assert!(took.is_some(), "{}", world.idle());
}

#[test]
fn once_it_is_known_there_is_a_request_every_five_seconds_at_most() {
    for timeout in [1_000, 3_000, 6_000, 60_000] {
        let mut world = World::new(&[Mode::Fin(timeout)]);
        world.run_for(10 * timeout);
        let (before, minutes) = (world.requests.len(), 60);
        world.run_for(minutes * 60_000);
        let requests = (world.requests.len() - before) as u64;
        assert!(requests <= minutes * 12 + 3, "{timeout}: {requests} requests in {minutes} minutes");
        assert!(requests * (5 * timeout).max(15_000) >= minutes * 60_000, "{timeout}: it goes on looking ({requests})");
    }
}

#[test]
fn a_change_is_followed_both_ways() {
    for kind in [Mode::Fin as fn(u64) -> Mode, Mode::Rst, Mode::Announced, Mode::SilentRst, Mode::Swallow] {
        let mut world = World::new(&[kind(6_000)]);
        for (timeout, within) in [(6_000, 150_000), (3_000, 900_000), (6_000, 900_000), (20_000, 1_200_000)] {
            world.hosts = vec![kind(timeout)];
            let is_followed = |scout: &Scout| {
                scout.finding().idle.timeout().is_some_and(|found| near(found, timeout) || near_below(found, timeout))
            };
            let took = world.run_until(within, is_followed);
            assert!(took.is_some(), "{:?}: {}", world.hosts, world.idle());
            world.run_for(120_000);
            assert!(is_followed(&world.scout), "{:?}: {}", world.hosts, world.idle());
        }
    }
}

#[test]
fn a_change_of_a_far_end_that_closes_is_followed_within_half_a_minute() {
    let mut world = World::new(&[Mode::Fin(6_000)]);
    world.run_for(40_000);
    for timeout in [3_000, 6_000, 3_000] {
        world.hosts = vec![Mode::Fin(timeout)];
        let took =
            world.run_until(60_000, |scout| scout.finding().idle.timeout().is_some_and(|found| near(found, timeout)));
        assert!(took.is_some_and(|took| took <= 40_000), "{timeout}: {took:?}, {}", world.idle());
        world.run_for(20_000);
    }
}

#[test]
fn another_way_of_letting_go_is_followed() {
    let mut world = World::new(&[Mode::Fin(6_000)]);
    for (mode, within) in [
        (Mode::Fin(6_000), 30_000),
        (Mode::SilentRst(6_000), 200_000),
        (Mode::Rst(3_000), 700_000),
        (Mode::Swallow(10_000), 300_000),
        (Mode::Fin(20_000), 1_000_000),
    ] {
        world.hosts = vec![mode];
        let is_so = |idle: Idle| match (mode, idle) {
            (Mode::Fin(timeout), Idle::Closes { timeout: found, kind: Kind::Fin })
            | (Mode::Rst(timeout), Idle::Closes { timeout: found, kind: Kind::Rst }) => near(found, timeout),
            (Mode::SilentRst(timeout) | Mode::Swallow(timeout), Idle::Silent { answered, .. }) => {
                near_below(answered, timeout)
            }
            _ => false,
        };
        let took = world.run_until(within, |scout| is_so(scout.finding().idle));
        assert!(took.is_some(), "{mode:?}: {}", world.idle());
    }
}

#[test]
fn a_far_end_without_a_timeout_is_waited_for_as_long_as_allowed() {
    let mut world = World::with(&[Mode::Stable], 30_000, Finding::default());
    world.run_for(32_000);
    assert!(matches!(world.idle(), Idle::LongerThan(age) if near(age, 30_000)), "{}", world.idle());
    let mut world = World::new(&[Mode::Fin(3_000)]);
    world.run_for(20_000);
    world.hosts = vec![Mode::Stable];
    world.run_for(100_000);
    assert!(matches!(world.idle(), Idle::LongerThan(age) if age > Duration::from_secs(6)), "{}", world.idle());
    assert!(world.scout.finding().timeout().is_none());
}

#[test]
fn the_host_that_waits_the_shortest_counts() {
    for hosts in [
        &[Mode::Fin(20_000), Mode::Fin(3_000)][..],
        &[Mode::Fin(3_000), Mode::Fin(20_000)],
        &[Mode::Stable, Mode::Rst(3_000)],
        &[Mode::SilentRst(3_000), Mode::Fin(10_000)],
        &[Mode::Fin(6_000), Mode::Stable, Mode::Fin(3_000)],
    ] {
        let mut world = World::new(hosts);
        let took = world.run_until(400_000, |scout| {
            scout.finding().timeout().is_some_and(|found| near(found, 3_000) || near_below(found, 3_000))
        });
        assert!(took.is_some(), "{hosts:?}: {}", world.idle());
    }
}

#[test]
fn a_keep_alive_header_is_heeded_with_the_first_answer() {
    let mut world = World::new(&[Mode::Fin(6_000)]);
    world.keep_alive = Some(5_000);
    world.run_for(200);
    assert_eq!(world.scout.finding().timeout(), Some(Duration::from_secs(5)));
    world.run_for(20_000);
    assert!(matches!(world.idle(), Idle::Closes { .. }));
    assert_eq!(world.scout.finding().timeout(), Some(Duration::from_secs(5)));
    world.keep_alive = None;
    world.run_for(20_000);
    assert!(world.scout.finding().timeout().is_some_and(|found| near(found, 6_000)));
}

#[test]
fn a_failure_of_users_requests_has_a_silent_far_end_asked_at_once() {
    let mut world = World::new(&[Mode::SilentRst(6_000)]);
    world.run_for(150_000);
    assert!(world.pool.is_empty(), "it rests");
    world.hosts = vec![Mode::SilentRst(3_000)];
    let before = world.requests.len();
    world.run_for(60_000);
    assert_eq!(world.requests.len(), before, "nobody told it");
    world.scout.on_look(at(world.now));
    world.run_for(75_000);
    assert!(matches!(world.idle(), Idle::Silent { answered, .. } if near_below(answered, 3_000)), "{}", world.idle());
}

#[test]
fn what_an_earlier_turn_found_stands_until_it_turns_out_wrong() {
    let idle = Idle::Closes { timeout: Duration::from_secs(6), kind: Kind::Fin };
    let known = Finding { idle, ..Finding::default() };
    let mut world = World::with(&[Mode::Mute], 3_600_000, known);
    world.run_for(600_000);
    assert_eq!(world.idle(), idle);
    world.hosts = vec![Mode::Stable];
    world.run_for(600_000);
    assert!(matches!(world.idle(), Idle::LongerThan(_)), "{}", world.idle());
}

#[test]
fn a_worker_whose_requests_do_not_reach_its_scout_gives_its_turn_up() {
    let mut scout = Scout::new(Duration::from_secs(60), Finding::default(), at(0));
    assert_eq!(scout.tick(at(0)).ask, 2);
    scout.on_call_ended();
    let actions = scout.tick(at(10));
    assert!(actions.steps_back);
    assert_eq!(actions.ask, 0);
    assert_eq!(scout.take_counts(), Counts::default());
}

proptest! {
    /// Whatever is seen in whatever order: nothing panics, and no more than two questions come at once.
    #[test]
    fn any_order_of_events_is_survived(events in proptest::collection::vec((0_u8..9, 1_u32..5, 0_u64..7_000), 1..200)) {
        let mut scout = Scout::new(Duration::from_secs(30), Finding::default(), at(0));
        let mut now = 0;
        for (event, id, wait) in events {
            now += wait;
            let time = at(now);
            match event {
                0 => scout.on_opened(id, time),
                1 => scout.on_asked(id, b"host", time),
                2 => scout.on_answered(id, Answer::default(), time),
                3 => scout.on_let_go(id, Kind::Announced, time),
                4 => scout.on_let_go(id, Kind::Fin, time),
                5 => scout.on_closed(id, By::Pool, time),
                6 => scout.on_closed(id, By::FarEnd, time),
                7 => scout.on_call_ended(),
                _ => scout.on_look(time),
            }
            let actions = scout.tick(time);
            prop_assert!(actions.ask as usize <= scout.connections().count().max(2));
            let _ = scout.next_due(time);
        }
    }

    /// Restarts at any moments beside a stable far end teach nothing.
    #[test]
    fn restarts_at_any_moments_teach_nothing(moments in proptest::collection::vec(0_u64..120_000, 1..30)) {
        let mut world = World::new(&[Mode::Stable]);
        let begin = world.now;
        for _ in 0..24_000 {
            world.step();
            if moments.iter().any(|moment| begin + moment / STEP * STEP == world.now) {
                let now = at(world.now);
                for connection in std::mem::take(&mut world.pool) {
                    world.scout.on_let_go(connection.id, Kind::Fin, now);
                    world.scout.on_closed(connection.id, By::Pool, now);
                    world.call_ended(&connection);
                }
            }
        }
        prop_assert_eq!(world.idle(), Idle::Unknown);
    }
}
