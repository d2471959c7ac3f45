//! What does the far end do with an idle connection, and after how long? What a scout asks next, and what the ends that it sees mean.
//!
//! A scout has two connections, which no user's request takes. Both begin with a request. Then one waits, and the other is asked in
//! between, after idle ages that double: so whatever ends both in one moment (a restart, a deploy, a limit on a connection's age) ends
//! them at two idle ages, and teaches nothing; an idle timeout ends the one, while the other lives on beyond that age of its own.
//! The one that is asked finds out, too, whether the far end still knows a connection that looks alive: a far end that forgets without a
//! word is then asked after idle ages that halve the distance between what was answered and what was not.
//!
//! Nothing here is Envoy's: connections are numbers, time is an argument, and what is to be done comes out of [`Scout::tick`]. What the
//! scout relies on is the order of Envoy's pool: a request takes the connection that became idle last, and opens one only if none is idle.
//! If that is ever otherwise, ages are still those of the connections that were asked; the scout learns later. Where the pool puts all
//! requests on one connection (HTTP/2 without `max_concurrent_streams: 1`), that one waits and is asked in turns, and only the rule remains
//! that a wait must be confirmed by one on a connection of another age.

mod hosts;
pub mod lease;
#[cfg(test)]
mod tests;
pub mod wire;

use std::time::Duration;

use self::hosts::{Hosts, Wait};
use self::wire::Answer;
use super::finding::{Finding, Idle, Kind, is_same_age};
use crate::time::Timestamp;

/// How long an answer may take; Envoy is told to wait as long.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Envoy gives a request up first, and closes its connection; on HTTP/2 it doesn't, and this is when the scout does.
const GIVEN_UP: Duration = Duration::from_millis(5_500);

/// The first idle age on the connection that is asked. Its doubles are no timeouts that anybody would configure, nor are 1.5 of them.
const FIRST_GAP: Duration = Duration::from_millis(650);

/// The same where there is only one connection: it can't wait while it is asked, so its idle ages grow faster.
const FIRST_GAP_ALONE: Duration = Duration::from_millis(800);

/// Ends within this much of each other may have one cause.
const TOGETHER: Duration = Duration::from_secs(1);

/// An end so soon after an answer comes with it.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Once something is known there is at most one request in this time, on average.
const SPACING: Duration = Duration::from_secs(5);

/// How often a silent far end is asked whether it is still as it was.
const CHECK_EVERY: Duration = Duration::from_secs(600);

/// Users' requests make the scout look at once, but not more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The longest pause between rounds that teach nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A host that hasn't been met for so long is forgotten, if nothing has to wait longer.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);

/// The end of a connection, as Envoy tells it: from the side of its pool, or from the far end's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The pool's. Without a FIN of the far end's before, that is an end of Envoy's own.
    Pool,
    /// The far end's: by RST, if there was no FIN.
    FarEnd,
}

/// What the scout wants done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// Connections to be closed.
    pub close: Vec<u32>,
    /// Requests to be sent, at once: each takes the idle connection that was used last, or opens one.
    pub ask: u32,
    /// Requests of this worker's don't reach its own scout: another one should try.
    pub steps_back: bool,
}

/// What is counted: since the last call of [`Scout::take_counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests.
    pub requests: u32,
    /// Those without an answer.
    pub failures: u32,
}

/// One destination's scout, on the worker whose turn it is.
#[derive(Debug, Default)]
pub struct Scout {
    max_wait: Duration,
    finding: Finding,
    hosts: Hosts,
    connections: Vec<Connection>,
    calls: Calls,
    /// `None` before the first round, and between two.
    round: Option<Round>,
    next_round: Timestamp,
    /// Rounds in a row that taught nothing.
    fruitless: u32,
    /// Rounds in which something was expected.
    rounds: u32,
    /// Closes that count unless something else ends in the same second.
    candidates: Vec<Candidate>,
    /// Ends of the last seconds.
    ends: Vec<End>,
    /// Requests that weren't answered, which count if the far end answers others.
    missed: Vec<Miss>,
    /// The far end's last end of an idle connection.
    last_seen: Option<Timestamp>,
    /// Users' requests are heeded from then on.
    next_look: Timestamp,
    /// When a silent far end is asked again.
    next_check: Timestamp,
    /// What was expected so far is not to be expected any more.
    from_the_start: bool,
    counts: Counts,
}

/// Requests that Envoy has been given and that have not shown on a connection yet.
#[derive(Debug, Default)]
struct Calls {
    unseen: u32,
    at: Timestamp,
    /// One has ended meanwhile.
    has_ended: bool,
}

#[derive(Debug)]
struct Connection {
    id: u32,
    /// Empty until it is connected.
    host: Vec<u8>,
    opened: Timestamp,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing has passed.
    Opening,
    /// A request is under way; before, the connection was idle for `gap`, unless it is the first.
    Asking { since: Timestamp, gap: Option<Duration> },
    /// Nothing is in flight: the far end may let go at any moment.
    Idle { since: Timestamp },
    /// The far end has let go. Until Envoy has closed it, the pool may still hand it out.
    Ending { since: Timestamp },
    /// We close it; Envoy may not have been told so yet.
    Closing { since: Timestamp, is_told: bool },
}

/// From the first requests on two connections until both have ended.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// `None` until those requests have been answered.
    plan: Option<Plan>,
    began: Timestamp,
    requests: u32,
    opened: u32,
    has_taught: bool,
    /// A request failed, and not for its idle age.
    has_failed: bool,
    /// The shortest idle age at which a connection has ended.
    ended_at: Option<Duration>,
    /// When a request was found not to be answered for its idle age.
    missed_at: Option<Timestamp>,
    /// The last question before the rest is closed has been asked.
    is_last: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// One waits for its end, the other is asked when that one's idle age reaches `next`. Before, both are asked `warm_ups` times, which
    /// makes them older. Where there is one, that is asked.
    Watch { next: Duration, warm_ups: u32 },
    /// Both are asked after this idle age. If that is what was known before, they are asked again after one that was not answered.
    Test { gap: Duration, is_check: bool, is_asked: bool },
}

#[derive(Debug)]
struct Candidate {
    id: u32,
    host: Vec<u8>,
    at: Timestamp,
    wait: Wait,
}

#[derive(Debug)]
struct End {
    id: u32,
    host: Vec<u8>,
    at: Timestamp,
    /// `None` if a request was under way.
    idle_age: Option<Duration>,
}

#[derive(Debug)]
struct Miss {
    host: Vec<u8>,
    gap: Duration,
}

// === impl Scout ===

impl Scout {
    /// A scout that begins its turn, with what is known from the turns before.
    pub fn new(max_wait: Duration, known: Finding, now: Timestamp) -> Self {
        Self { max_wait, finding: known, next_round: now, next_look: now, next_check: now, ..Self::default() }
    }

    /// What is known.
    pub fn finding(&self) -> &Finding {
        &self.finding
    }

    /// The far end keeps idle connections for at least this long.
    pub fn lower_bound(&self) -> Duration {
        match self.finding.idle {
            Idle::Unknown => self.hosts.answered(),
            idle => idle.lower_bound(),
        }
    }

    /// When the far end was last seen to let go of an idle connection, in this turn.
    pub fn last_seen(&self) -> Option<Timestamp> {
        self.last_seen
    }

    /// What has been counted since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// The connections that there are.
    pub fn connections(&self) -> impl Iterator<Item = u32> {
        self.connections.iter().map(|connection| connection.id)
    }

    // --- what is seen

    /// Envoy opened a connection for a request of ours.
    pub fn on_opened(&mut self, id: u32, now: Timestamp) {
        if let Some(round) = &mut self.round {
            round.opened = round.opened.saturating_add(1);
        }
        self.connections.push(Connection { id, host: Vec::new(), opened: now, state: State::Opening });
    }

    /// A request begins on a connection; `host` is the far end's address.
    pub fn on_asked(&mut self, id: u32, host: &[u8], now: Timestamp) {
        self.on_shown();
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else { return };
        if connection.host.is_empty() {
            connection.host = host.to_vec();
        }
        match connection.state {
            State::Opening => connection.state = State::Asking { since: now, gap: None },
            State::Idle { since } => {
                connection.state = State::Asking { since: now, gap: Some(now.since(since)) };
            }
            State::Asking { .. } | State::Ending { .. } | State::Closing { .. } => {}
        }
    }

    /// One of the requests that Envoy was given has got as far as a connection.
    fn on_shown(&mut self) {
        self.calls.unseen = self.calls.unseen.saturating_sub(1);
        self.counts.requests = self.counts.requests.saturating_add(1);
    }

    /// An answer has ended.
    pub fn on_answered(&mut self, id: u32, answer: Answer, now: Timestamp) {
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else { return };
        let State::Asking { gap, .. } = connection.state else { return };
        let host = connection.host.clone();
        connection.state = if answer.closes { State::Ending { since: now } } else { State::Idle { since: now } };
        self.hosts.at(&host, now, |host| host.on_answered(gap, answer.keep_alive));
        match gap {
            // The far end answers: what it did not answer just before was for the idle age.
            None => self.count_missed(now),
            Some(gap) => {
                self.missed.retain(|miss| miss.host != host || miss.gap > gap);
                if gap >= self.max_wait {
                    self.hosts.at(&host, now, |host| host.on_longest(gap));
                    self.learn(now);
                }
            }
        }
        if answer.closes && self.hosts.at(&host, now, |known| known.on_closed_at_once(now)) {
            self.learn(now);
        }
        self.conclude(now);
    }

    /// What came behind an answer, though it has ended: the connection is idle since then.
    pub fn on_excess(&mut self, id: u32, now: Timestamp) {
        let connection = self.connections.iter_mut().find(|connection| connection.id == id);
        if let Some(Connection { state: State::Idle { since }, .. }) = connection {
            *since = now;
        }
    }

    /// Envoy has closed the connection.
    pub fn on_closed(&mut self, id: u32, by: By, now: Timestamp) {
        if by == By::FarEnd {
            self.on_let_go(id, Kind::Rst, now);
        }
        let Some(index) = self.connections.iter().position(|connection| connection.id == id) else { return };
        let Connection { host, state, .. } = self.connections.remove(index);
        let idle_age = match state {
            State::Opening => {
                self.on_shown();
                return self.on_failed(None, now);
            }
            // Envoy gave it up, or something of Envoy's own ended it.
            State::Asking { since, gap } => {
                let is_unanswered = now.since(since).saturating_mul(10) >= ANSWER_TIMEOUT.saturating_mul(9);
                let gap = gap.filter(|_| is_unanswered);
                self.on_failed(gap.map(|gap| Miss { host: host.clone(), gap }), now);
                None
            }
            State::Idle { since } => Some(now.since(since)),
            State::Ending { .. } | State::Closing { .. } => return,
        };
        self.ends.push(End { id, host, at: now, idle_age });
    }

    /// The far end lets go: by FIN or RST, or it announces that (408, GOAWAY).
    pub fn on_let_go(&mut self, id: u32, kind: Kind, now: Timestamp) {
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else { return };
        let state = std::mem::replace(&mut connection.state, State::Ending { since: now });
        let (host, opened) = (connection.host.clone(), connection.opened);
        match state {
            State::Ending { .. } | State::Closing { .. } | State::Opening => connection.state = state,
            State::Asking { gap, .. } => {
                // A FIN may have crossed the request: that says nothing about silence.
                let miss = gap.filter(|_| kind == Kind::Rst).map(|gap| Miss { host: host.clone(), gap });
                self.ends.push(End { id, host, at: now, idle_age: None });
                self.on_failed(miss, now);
            }
            State::Idle { since } => {
                let idle_age = now.since(since);
                self.ends.push(End { id, host: host.clone(), at: now, idle_age: Some(idle_age) });
                if idle_age <= AT_ONCE {
                    if self.hosts.at(&host, now, |known| known.on_closed_at_once(now)) {
                        self.learn(now);
                    }
                    return;
                }
                let wait = Wait { idle_age, connection_age: now.since(opened), kind };
                self.candidates.push(Candidate { id, host, at: now, wait });
                if let Some(round) = &mut self.round {
                    round.ended_at = Some(round.ended_at.map_or(idle_age, |age| age.min(idle_age)));
                }
            }
        }
    }

    fn on_failed(&mut self, miss: Option<Miss>, now: Timestamp) {
        self.counts.failures = self.counts.failures.saturating_add(1);
        match miss {
            Some(miss) => {
                self.missed.push(miss);
                if let Some(round) = &mut self.round {
                    round.missed_at.get_or_insert(now);
                }
            }
            // The far end does not answer at all.
            None => {
                self.missed.clear();
                if let Some(round) = &mut self.round {
                    round.has_failed = true;
                }
            }
        }
    }

    /// A call of ours has ended, with or without an answer.
    pub fn on_call_ended(&mut self) {
        self.calls.has_ended = true;
    }

    /// Users' requests met a connection that the far end had dropped, or needed a second attempt.
    pub fn on_look(&mut self, now: Timestamp) {
        let shows_its_end = matches!(self.finding.idle, Idle::Closes { .. } | Idle::ClosesAtOnce);
        if now < self.next_look || shows_its_end {
            return;
        }
        self.next_look = now.after(LOOK_EVERY);
        (self.next_round, self.next_check) = (self.next_round.min(now), now);
        self.from_the_start = true;
        // What waits has been idle for so long already that it would tell of a shorter timeout too late.
        let is_watching = |round: &Round| matches!(round.plan, Some(Plan::Watch { .. }));
        if self.round.is_some_and(|round| is_watching(&round) && now.since(round.began) >= LOOK_EVERY) {
            self.end_round();
        }
    }

    // --- what follows

    fn count_missed(&mut self, now: Timestamp) {
        for Miss { host, gap } in std::mem::take(&mut self.missed) {
            if self.hosts.at(&host, now, |host| host.on_missed(gap)) {
                self.last_seen = Some(now);
                self.learn(now);
            }
        }
    }

    fn count_candidates(&mut self, now: Timestamp) {
        // Where there is one connection, no other one will end with it.
        let is_alone = self.round.is_some_and(|round| round.opened < 2);
        let is_over = |candidate: &mut Candidate| is_alone || now.since(candidate.at) > TOGETHER;
        let due: Vec<_> = self.candidates.extract_if(.., is_over).collect();
        for Candidate { id, host, at, wait } in due {
            let together = || {
                self.ends.iter().filter_map(|end| {
                    let apart = end.at.since(at).max(at.since(end.at));
                    (end.id != id && end.host == host && apart <= TOGETHER).then_some((end.idle_age, apart))
                })
            };
            let is_same = |age: Option<Duration>| age.is_some_and(|age| is_same_age(age, wait.idle_age));
            if together().any(|(age, _)| !is_same(age)) {
                continue; // something else has ended both
            }
            // Connections of one idle age that end in one moment do so whatever the cause. That is no proof, but something to expect.
            let is_proof = is_alone || together().all(|(_, apart)| apart.saturating_mul(4) >= wait.idle_age);
            self.hosts.at(&host, now, |host| host.last_end = Some(wait.idle_age));
            if is_proof {
                self.last_seen = Some(at);
                if self.hosts.at(&host, now, |host| host.on_closed(wait)) {
                    self.learn(now);
                }
            }
            self.conclude(now);
        }
        self.ends.retain(|end| now.since(end.at) <= TOGETHER.saturating_mul(3));
    }

    /// What is known has been seen again.
    fn learn(&mut self, now: Timestamp) {
        if let Some(round) = &mut self.round {
            round.has_taught = true;
        }
        self.finding.measured_at = now;
        self.next_check = now.after(CHECK_EVERY);
        self.conclude(now);
    }

    fn conclude(&mut self, now: Timestamp) {
        let (before, known, answered) = (self.finding, self.hosts.conclusion(), self.hosts.answered());
        let is_outdated = match before.idle {
            Idle::Closes { timeout, .. } => answered > timeout && !is_same_age(answered, timeout),
            Idle::Silent { unanswered, .. } => answered >= unanswered,
            Idle::Unknown | Idle::LongerThan(_) | Idle::ClosesAtOnce => false,
        };
        match known {
            // What an earlier turn has found out stands until it turns out wrong.
            Idle::Unknown if is_outdated => self.finding.idle = Idle::LongerThan(answered),
            Idle::Unknown => {}
            // A few percent are chance: nobody is to follow them.
            Idle::Closes { .. } if !known.is_news_to(&before.idle) => {}
            known => self.finding.idle = known,
        }
        if !self.hosts.is_empty() {
            self.finding.keep_alive = self.hosts.keep_alive();
        }
        if self.finding != before {
            self.finding.measured_at = now;
        }
    }

    // --- what comes next

    /// To be called often: five times a second, and when [`next_due`](Self::next_due) says.
    pub fn tick(&mut self, now: Timestamp) -> Actions {
        let mut actions = Actions::default();
        self.hosts.forget_before(now.before(FORGET_AFTER.max(self.max_wait.saturating_mul(4))));
        self.count_candidates(now);
        self.give_up(now);
        self.lose_calls(now, &mut actions);
        if !actions.steps_back {
            actions.ask = self.questions(now);
        }
        for connection in &mut self.connections {
            if let State::Closing { since, is_told: is_told @ false } = &mut connection.state {
                (*since, *is_told) = (now, true);
                actions.close.push(connection.id);
            }
        }
        if actions.ask > 0 {
            self.calls = Calls { unseen: actions.ask, at: now, has_ended: false };
            if let Some(round) = &mut self.round {
                round.requests = round.requests.saturating_add(actions.ask);
            }
        }
        actions
    }

    /// How long until [`tick`](Self::tick) has something to do that must not be late.
    pub fn next_due(&self, now: Timestamp) -> Option<Duration> {
        let until = |since: Timestamp, age: Duration| since.after(age).since(now);
        match self.round?.plan? {
            Plan::Test { gap, is_asked: false, .. } => Some(until(self.idle().max()?, gap)),
            Plan::Watch { next, .. } => Some(until(self.idle().min()?, next.min(self.max_wait))),
            Plan::Test { .. } => None,
        }
    }

    /// Connections on which nothing comes any more. (On HTTP/2 Envoy leaves them in the pool.)
    fn give_up(&mut self, now: Timestamp) {
        let (mut failed, mut shown) = (Vec::new(), 0_u32);
        for connection in &mut self.connections {
            match connection.state {
                State::Opening if now.since(connection.opened) > GIVEN_UP => {
                    shown = shown.saturating_add(1);
                    failed.push(None);
                }
                State::Asking { since, gap } if now.since(since) > GIVEN_UP => {
                    failed.push(gap.map(|gap| Miss { host: connection.host.clone(), gap }));
                }
                State::Ending { since } if now.since(since) > GIVEN_UP => {}
                _ => continue,
            }
            connection.state = State::Closing { since: now, is_told: false };
        }
        (0..shown).for_each(|_| self.on_shown());
        for miss in failed {
            self.on_failed(miss, now);
        }
        let is_gone = |state| matches!(state, State::Closing { since, is_told: true } if now.since(since) > GIVEN_UP);
        self.connections.retain(|connection| !is_gone(connection.state));
    }

    /// Requests that never showed on a connection.
    fn lose_calls(&mut self, now: Timestamp, actions: &mut Actions) {
        let calls = &mut self.calls;
        let is_opening = self.connections.iter().any(|connection| connection.state == State::Opening);
        if calls.unseen == 0 || is_opening || !(calls.has_ended || now.since(calls.at) > GIVEN_UP) {
            return;
        }
        let lost = std::mem::take(&mut calls.unseen);
        if let Some(round) = &mut self.round {
            actions.steps_back = round.opened == 0;
            round.has_failed = true;
        }
        // Those of a worker that can't reach its own scout were none.
        if !actions.steps_back {
            self.counts.requests = self.counts.requests.saturating_add(lost);
            self.counts.failures = self.counts.failures.saturating_add(lost);
        }
    }

    /// Since when the idle connections are so.
    fn idle(&self) -> impl Iterator<Item = Timestamp> {
        self.connections.iter().filter_map(|connection| match connection.state {
            State::Idle { since } => Some(since),
            _ => None,
        })
    }

    fn is_settled(&self) -> bool {
        self.calls.unseen == 0 && self.idle().count() == self.connections.len()
    }

    /// How many requests to send.
    fn questions(&mut self, now: Timestamp) -> u32 {
        if self.connections.is_empty() && self.calls.unseen == 0 {
            // Closes are judged first: they plan the next round.
            if !self.candidates.is_empty() {
                return 0;
            }
            if let Some(round) = self.round.take() {
                self.pause(&round, now);
            }
            if now < self.next_round {
                return 0;
            }
            self.round = Some(Round { began: now, ..Round::default() });
            return 2;
        }
        let Some(mut round) = self.round else { return 0 };
        let count = self.next_questions(&mut round, now);
        self.round = Some(round);
        count
    }

    fn next_questions(&mut self, round: &mut Round, now: Timestamp) -> u32 {
        let (Some(oldest), Some(latest)) = (self.idle().min(), self.idle().max()) else { return 0 };
        let (oldest, latest) = (now.since(oldest), now.since(latest));
        let count = u32::try_from(self.idle().count()).unwrap_or(u32::MAX);
        if let (Some(Plan::Watch { .. }), false) = (round.plan, round.is_last)
            && let Some(at) = self.unanswered_since(round)
        {
            // The other one, which has waited for longer, must not have ended in the same second. Then it is asked, too.
            let is_due = now.since(at) > TOGETHER && self.calls.unseen == 0;
            round.is_last = is_due;
            return u32::from(is_due);
        }
        if !self.is_settled() {
            return 0;
        }
        if round.is_last || (count < 2 && round.requests > 1 && round.opened > 1 && round.ended_at.is_none()) {
            self.end_round();
            return 0;
        }
        let Some(plan) = round.plan.or_else(|| self.plan(round.opened, now)) else {
            self.end_round();
            return 0;
        };
        round.plan = Some(plan);
        match plan {
            Plan::Watch { .. }
                if count == 1
                    && let Some(age) = round.ended_at =>
            {
                // The other one has been dropped at that age; this one may have forgotten to say so.
                round.is_last = oldest > age.mul_f64(1.2).saturating_add(FIRST_GAP);
                u32::from(round.is_last)
            }
            Plan::Watch { next, warm_ups: more @ 1.. } => {
                let is_due = latest >= if round.opened < 2 { next.mul_f64(0.6 / 1.3) } else { next };
                if is_due {
                    round.plan = Some(Plan::Watch { next, warm_ups: more.saturating_sub(1) });
                }
                if is_due { count } else { 0 }
            }
            Plan::Watch { next, warm_ups: 0 } => {
                let is_paced = self.finding.idle == Idle::Unknown
                    || round.requests < 3
                    || now.since(round.began) >= SPACING.saturating_mul(round.requests);
                if !is_paced {
                    0
                } else if oldest >= self.max_wait {
                    round.plan = Some(Plan::Watch { next: self.first_question(round.opened), warm_ups: 0 });
                    count
                } else if oldest < next {
                    0
                } else {
                    let factor = if round.opened < 2 { 4 } else { 2 };
                    let next = std::iter::successors(Some(next), |next| Some(next.saturating_mul(factor)));
                    let next = next.into_iter().find(|next| *next > oldest).unwrap_or(Duration::MAX);
                    round.plan = Some(Plan::Watch { next, warm_ups: 0 });
                    1
                }
            }
            Plan::Test { gap, is_check, is_asked: false } => {
                let is_due = latest >= gap;
                if is_due {
                    round.plan = Some(Plan::Test { gap, is_check, is_asked: true });
                }
                if is_due { count } else { 0 }
            }
            Plan::Test { is_check, is_asked: true, .. } => {
                // Answered. What was not is closed by now.
                let gap = self.hosts.silence().filter(|_| count > 1).and_then(|silence| {
                    let beyond = is_check.then_some(silence.unanswered);
                    silence.next().or(beyond)
                });
                match gap {
                    Some(gap) => round.plan = Some(Plan::Test { gap, is_check: false, is_asked: false }),
                    None => self.end_round(),
                }
                0
            }
        }
    }

    /// Since when a request on the connection that is asked has had no answer, if that is so.
    fn unanswered_since(&self, round: &Round) -> Option<Timestamp> {
        let asking = self.connections.iter().find_map(|connection| match connection.state {
            State::Asking { since, gap: Some(_) } => Some(since),
            _ => None,
        });
        round.missed_at.or(asking)
    }

    /// What to do with two fresh connections, whose first requests have been answered; `None` if nothing for now.
    fn plan(&mut self, opened: u32, now: Timestamp) -> Option<Plan> {
        let Some(silence) = self.hosts.silence() else {
            if let Some(gap) = self.hosts.suspicion() {
                return Some(Plan::Test { gap, is_check: false, is_asked: false });
            }
            // The next wait is to end at another age of its connection than the ones before, whichever of the two it is on: with first
            // questions at 0.6 that are ages of 1, 1.6 and 2.8 (the one that waits) or 2.2, 2.8 and 4 (the other) of what is expected.
            let turns = if opened < 2 { self.rounds } else { self.fruitless };
            let warm_ups = match (self.hosts.expected(), turns.checked_rem(3)) {
                (Some(_), Some(1)) => 1,
                (Some(_), Some(2)) => 3,
                _ => 0,
            };
            self.rounds = self.rounds.saturating_add(u32::from(self.hosts.expected().is_some()));
            return Some(Plan::Watch { next: self.first_question(opened), warm_ups });
        };
        match silence.next() {
            Some(gap) => Some(Plan::Test { gap, is_check: false, is_asked: false }),
            None if now < self.next_check => None,
            // A little less, so that a tick that comes late is no longer than what was answered before.
            None => Some(Plan::Test { gap: silence.answered.mul_f64(0.98), is_check: true, is_asked: false }),
        }
    }

    /// The idle age of the one that waits at which the other is asked first.
    fn first_question(&mut self, opened: u32) -> Duration {
        let is_alone = opened < 2;
        let first = if is_alone { FIRST_GAP_ALONE } else { FIRST_GAP };
        if std::mem::take(&mut self.from_the_start) {
            return first;
        }
        let known = Some(self.finding.idle.lower_bound()).filter(|age| !age.is_zero());
        // Well before the end that is to be expected, so that the two ends are apart; or after it, if there is only one.
        let factor = if is_alone { 1.3 } else { 0.6 };
        self.hosts.expected().or(known).map_or(first, |age| age.mul_f64(factor))
    }

    /// Closes what is left.
    fn end_round(&mut self) {
        for connection in &mut self.connections {
            if let State::Idle { since } = connection.state {
                connection.state = State::Closing { since, is_told: false };
            }
        }
    }

    /// A round is over: when does the next one begin?
    fn pause(&mut self, round: &Round, now: Timestamp) {
        if round.has_taught {
            self.fruitless = 0;
        } else {
            self.fruitless = self.fruitless.saturating_add(1);
        }
        let doubling = Duration::from_secs(1 << self.fruitless.min(6)).min(LONGEST_PAUSE);
        let is_silent = self.hosts.silence().is_some_and(|silence| silence.next().is_none());
        self.next_round = if round.has_failed {
            now.after(doubling)
        } else if !self.missed.is_empty() {
            now // whether they count is seen on fresh connections
        } else if is_silent {
            self.next_check
        } else if round.has_taught && self.finding.idle == Idle::ClosesAtOnce {
            now.after(LONGEST_PAUSE)
        } else if round.has_taught && self.hosts.silence().is_none() {
            round.began.after(SPACING.saturating_mul(round.requests)).max(now)
        } else if self.fruitless > if round.ended_at.is_some() { 8 } else { 3 } {
            now.after(doubling)
        } else {
            now
        };
    }
}
