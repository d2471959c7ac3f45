//! What the waits on the connections to each host of a destination say together.
//!
//! One wait proves nothing: a deploy, a restart or a limit on a connection's age ends it as well. An idle timeout is told apart by what it
//! doesn't depend on: two waits agree if their idle ages are within 5 % and the ages of their connections differ by a quarter. Of two
//! requests that weren't answered the shorter idle age counts, and an answer at that age or above ends it.
//!
//! Some far ends look at their timers now and then (gunicorn once a second), so their closes are late by chance. Once two waits agree, the
//! least late of the latest waits is the timeout.

use std::time::Duration;

use super::super::finding::{Idle, Kind, is_same_age};
use crate::time::Timestamp;

/// A destination with more hosts is known by those that were met last.
const MOST_HOSTS: usize = 64;

/// What is remembered of each.
const WAITS: usize = 4;
const MISSES: usize = 8;

/// So many connections in a row that were closed with their first answer are a habit.
const AT_ONCE: u32 = 4;

/// So many answers in a row after idle ages beyond the timeout end it.
const BEYOND: u32 = 3;

/// A silent far end is known well enough when its bounds are this close: 5 %.
const CLOSE_ENOUGH: f64 = 1.05;

/// Below this a timeout is no longer narrowed down.
const SHORTEST: Duration = Duration::from_millis(200);

/// One wait that the far end ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) idle_age: Duration,
    pub(super) connection_age: Duration,
    pub(super) kind: Kind,
}

impl Wait {
    fn agrees_with(&self, other: &Self) -> bool {
        let (younger, older) =
            (self.connection_age.min(other.connection_age), self.connection_age.max(other.connection_age));
        is_same_age(self.idle_age, other.idle_age) && younger.saturating_mul(5) <= older.saturating_mul(4)
    }
}

/// One host.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// As Envoy has it (`upstream.address`).
    pub(super) address: Vec<u8>,
    /// The latest waits that were ended, the latest last.
    waits: Vec<Wait>,
    /// The idle age at which a connection ended last, for whatever cause, unless a longer one has been answered since.
    pub(super) last_end: Option<Duration>,
    /// Answers in a row after idle ages beyond the timeout that is known, and the shortest of those.
    beyond: Option<(u32, Duration)>,
    /// Idle ages after which a request was not answered, and none since that was as long.
    misses: Vec<Duration>,
    /// The longest idle age after which one was answered.
    answered: Duration,
    /// Connections in a row that were closed with their first answer.
    at_once: u32,
    /// When the last of those ended.
    at_once_at: Timestamp,
    conclusion: Idle,
    pub(super) keep_alive: Option<Duration>,
    seen_at: Timestamp,
}

impl Host {
    /// A wait was ended. Returns whether that is the second one that says so.
    pub(super) fn on_closed(&mut self, wait: Wait) -> bool {
        self.at_once = 0;
        if self.waits.len() == WAITS {
            self.waits.remove(0);
        }
        self.waits.push(wait);
        let agreed = |one: &Wait| {
            let other = self.waits.iter().find(|other| one.agrees_with(other))?;
            Some(one.idle_age.min(other.idle_age))
        };
        let Some(agreed) = self.waits.iter().rev().find_map(agreed) else { return false };
        // What is less than two thirds of it has another cause.
        let is_late = |age: &Duration| age.saturating_mul(3) >= agreed.saturating_mul(2);
        let timeout = self.waits.iter().map(|one| one.idle_age).filter(is_late).min().unwrap_or(agreed);
        self.conclusion = Idle::Closes { timeout, kind: wait.kind };
        self.misses.clear();
        let is_again = wait.idle_age <= agreed || is_same_age(wait.idle_age, agreed);
        if is_again {
            self.beyond = None;
        }
        is_again
    }

    /// Connections that end in one moment count once: a restart ends them all.
    pub(super) fn on_closed_at_once(&mut self, now: Timestamp) -> bool {
        if self.at_once == 0 || now.since(self.at_once_at) > super::AT_ONCE {
            self.at_once = self.at_once.saturating_add(1);
            self.at_once_at = now;
        }
        let is_habit = self.at_once >= AT_ONCE;
        if is_habit {
            self.conclusion = Idle::ClosesAtOnce;
        }
        is_habit
    }

    /// An answer, and the idle age of its connection before if there was one.
    pub(super) fn on_answered(&mut self, idle_age: Option<Duration>, keep_alive: Option<Duration>) {
        self.keep_alive = keep_alive;
        let Some(idle_age) = idle_age else { return };
        self.at_once = 0;
        self.last_end = self.last_end.filter(|age| *age >= idle_age);
        self.answered = self.answered.max(idle_age);
        if self.misses.iter().any(|miss| *miss <= idle_age) {
            self.misses.clear(); // longer ones are of the same time
        }
        match self.conclusion {
            // Behind one address there may be several with timeouts of their own.
            Idle::Closes { timeout, .. } if idle_age > timeout && !is_same_age(idle_age, timeout) => {
                let (count, shortest) = self
                    .beyond
                    .map_or((1, idle_age), |(count, shortest)| (count.saturating_add(1), shortest.min(idle_age)));
                self.beyond = Some((count, shortest));
                if count >= BEYOND {
                    self.beyond = None;
                    self.waits.retain(|wait| wait.idle_age >= shortest);
                    self.conclusion = Idle::LongerThan(shortest);
                }
            }
            Idle::Silent { unanswered, .. } if idle_age >= unanswered => self.conclusion = Idle::LongerThan(idle_age),
            Idle::Silent { answered, unanswered } => {
                self.conclusion = Idle::Silent { answered: answered.max(idle_age), unanswered };
            }
            Idle::LongerThan(age) => self.conclusion = Idle::LongerThan(age.max(idle_age)),
            Idle::Closes { .. } | Idle::Unknown | Idle::ClosesAtOnce => {}
        }
    }

    /// A request was not answered, though the far end answers others. Returns whether that is the second one that says so.
    pub(super) fn on_missed(&mut self, idle_age: Duration) -> bool {
        if self.misses.len() == MISSES
            && let Some((longest, _)) = self.misses.iter().enumerate().max_by_key(|(_, miss)| **miss)
        {
            self.misses.swap_remove(longest);
        }
        self.misses.push(idle_age);
        let Some(unanswered) = self.unanswered() else { return false };
        if self.answered >= unanswered {
            self.answered = Duration::ZERO; // it was longer then
        }
        self.waits.clear();
        self.last_end = None;
        self.conclusion = Idle::Silent { answered: self.answered, unanswered };
        true
    }

    /// A request was answered after the longest wait there is.
    pub(super) fn on_longest(&mut self, idle_age: Duration) {
        self.waits.clear();
        self.last_end = None;
        self.misses.clear();
        self.conclusion = Idle::LongerThan(idle_age);
    }

    /// The shorter one of two ages after which it did not answer.
    fn unanswered(&self) -> Option<Duration> {
        if self.misses.len() < 2 { None } else { self.misses.iter().copied().min() }
    }

    /// An idle age after which it did not answer once.
    fn suspicion(&self) -> Option<Duration> {
        self.misses.first().copied().filter(|_| self.misses.len() == 1 && self.last_end.is_none())
    }

    /// Whether it is to be asked after some idle age rather than watched: it forgets without a word, and has not closed a connection
    /// since that was known.
    fn silence(&self) -> Option<Silence> {
        let unanswered = self.unanswered().filter(|_| self.last_end.is_none())?;
        Some(Silence { answered: self.answered, unanswered })
    }
}

/// The bounds of a silent host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Silence {
    pub(super) answered: Duration,
    pub(super) unanswered: Duration,
}

impl Silence {
    /// The idle age to ask after next; `None` if the bounds are close enough.
    pub(super) fn next(self) -> Option<Duration> {
        let (answered, unanswered) = (self.answered.as_secs_f64(), self.unanswered.as_secs_f64());
        if self.unanswered <= SHORTEST || answered * CLOSE_ENOUGH >= unanswered {
            return None;
        }
        // In the middle; while there is only an upper bound, halving.
        let next = if self.answered.is_zero() { unanswered / 2.0 } else { (answered * unanswered).sqrt() };
        Some(Duration::from_secs_f64(next))
    }
}

/// The hosts of a destination.
#[derive(Debug, Default)]
pub(super) struct Hosts(Vec<Host>);

impl Hosts {
    /// Tells the host at this address what was seen.
    pub(super) fn at<T: Default>(&mut self, address: &[u8], now: Timestamp, act: impl FnOnce(&mut Host) -> T) -> T {
        self.host(address, now).map(act).unwrap_or_default()
    }

    fn host(&mut self, address: &[u8], now: Timestamp) -> Option<&mut Host> {
        if self.0.iter().all(|host| host.address != address) {
            if self.0.len() >= MOST_HOSTS
                && let Some((oldest, _)) = self.0.iter().enumerate().min_by_key(|(_, host)| host.seen_at)
            {
                self.0.swap_remove(oldest);
            }
            self.0.push(Host { address: address.to_vec(), ..Host::default() });
        }
        let host = self.0.iter_mut().find(|host| host.address == address)?;
        host.seen_at = now;
        Some(host)
    }

    /// Forgets hosts that have not been met since.
    pub(super) fn forget_before(&mut self, at: Timestamp) {
        self.0.retain(|host| host.seen_at >= at);
    }

    /// What follows for the destination: the shortest that any host waits.
    pub(super) fn conclusion(&self) -> Idle {
        let known = || self.0.iter().map(|host| host.conclusion).filter(|idle| *idle != Idle::Unknown);
        let shortest = known().filter(|idle| idle.timeout().is_some()).min_by_key(Idle::timeout);
        let lower_bound = || known().filter(|idle| matches!(idle, Idle::LongerThan(_))).min_by_key(Idle::lower_bound);
        shortest.or_else(lower_bound).or_else(|| known().next()).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest `Keep-Alive: timeout`.
    pub(super) fn keep_alive(&self) -> Option<Duration> {
        self.0.iter().filter_map(|host| host.keep_alive).min()
    }

    /// The longest idle age after which every host has answered, as far as it was asked.
    pub(super) fn answered(&self) -> Duration {
        self.0.iter().map(|host| host.answered).min().unwrap_or_default()
    }

    /// The bounds of the silent host with the shortest timeout.
    pub(super) fn silence(&self) -> Option<Silence> {
        self.0.iter().filter_map(Host::silence).min_by_key(|silence| silence.unanswered)
    }

    /// An idle age after which a host did not answer once: is it so again?
    pub(super) fn suspicion(&self) -> Option<Duration> {
        self.0.iter().filter_map(Host::suspicion).min()
    }

    /// The idle age at which the next close is to be expected, from ends that may have had another cause.
    pub(super) fn expected(&self) -> Option<Duration> {
        self.0.iter().filter_map(|host| host.last_end).min()
    }
}
