//! When does the far end drop an idle connection?
//!
//! Evidence in, a verdict out. What is remembered is a handful of the latest observations, and the verdict is a function of
//! them: not of the order in which they came, nor of an earlier verdict. So two workers that know the same believe the same,
//! and a belief falls when its reasons do. An average would not do: one restart would bend it for hours.
//!
//! Who can see what:
//!
//! - Only connections below the idle limit are reused, so a success proves a timeout above an idle age that is allowed
//!   anyway. It refutes, it doesn't raise.
//! - Above the limit only sentinels and probes see anything. Where the far end forgets silently, only probes do. That a
//!   sentinel outlives some age is therefore no evidence, and there is no [`Evidence`] for it.
//! - A close at an idle age says that the far end does keep connections up to there. So chance agreement among closes is
//!   harmless unless far ends with different timeouts take turns.
//!
//! How long may the limit be above the timeout? Where closes are seen, until the first that comes alone: it teaches nothing, but
//! it lowers the limit until the known timeout has shown again. A new timeout is learnt from the second moment (250 ms) in
//! which pooled connections, or the second in which sentinels, are closed at the new age; a third if the ages differ by more
//! than 1 %, or another accidental close is remembered. Each two of these cost one more. Where nothing is seen, each stale
//! failure halves the limit.
//!
//! Memory per destination: 24 closes, 48 bounds and a few words, less than 3 KB.
//!
//! ```
//! use std::time::Duration;
//! use idleguard::learner::{Evidence, Learner, Rules};
//! use idleguard::policy::Margin;
//! use idleguard::time::Timestamp;
//!
//! let rules = Rules { initial_limit: Duration::from_secs(4), margin: Margin::Share(0.1) };
//! let mut learner = Learner::default();
//! for close in 1..=2 {
//!     let now = Timestamp::from_millis(close * 61_000);
//!     let age = Duration::from_secs(60);
//!     learner.observe(Evidence::Closed { age, connection_age: age, is_sentinel: true }, now);
//! }
//! let verdict = learner.verdict(&rules, Timestamp::from_millis(122_000));
//! assert_eq!(
//!     verdict.to_string(),
//!     "the far end closes idle connections after about 60.0 s (2 connections agree); idle limit now 54 s"
//! );
//! ```

pub mod bounds;
pub mod closes;
mod verdict;

use std::time::Duration;

use crate::policy::{Margin, Policy};
use crate::time::Timestamp;

use self::bounds::{Bound, Bounds, Side};
use self::closes::{Agreement, Close, Closes, Moment, tolerated};
pub use self::verdict::{Belief, Source, Told, Verdict};

/// Idle ages below this teach nothing: a far end that closes after every response does so at once, and no idle timeout in
/// the field is below a second.
pub const SHORTEST_AGE: Duration = Duration::from_millis(500);

/// The lowest idle limit that stale failures lead to.
pub const LOWEST_LIMIT: Duration = Duration::from_millis(100);

/// How long a stale failure is remembered. Nothing can refute it where the far end is silent, and a few accidents over the
/// months must not add up.
pub const FAILURE_MEMORY: Duration = Duration::from_secs(24 * 3600);

/// Stale failures up to this long after a restart are its doing.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Successes this close together say the same; remembering one saves work on the path of every request.
const SUCCESS_PERIOD: Duration = Duration::from_secs(10);

/// Another worker's clock may be this far ahead; what comes from further in the future would never grow old.
const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// A probe's bounds are close enough: the upper one is at most this many per cent above the lower one.
pub const PROBE_PRECISION_PERCENT: u32 = 10;

/// What an idle age tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The far end closed an idle connection, by FIN or RST.
    Closed {
        /// Its idle age.
        age: Duration,
        /// The time since it was opened.
        connection_age: Duration,
        /// Whether it was fenced and watched.
        is_sentinel: bool,
    },
    /// A stale failure: the timeout is at most `age`.
    Failed {
        /// The idle age at which the request found the connection.
        age: Duration,
    },
    /// An exchange succeeded on a reused connection: the timeout is above `age`.
    Succeeded {
        /// The idle age at which the request found the connection.
        age: Duration,
    },
    /// The answer to a probe came after `gap`: the timeout is above it.
    ProbeSurvived {
        /// The idle age of the probe's connection.
        gap: Duration,
    },
    /// Probes failed after `gap` time and again: the timeout is at most that.
    ProbeFailed {
        /// The idle age of the probe's connection.
        gap: Duration,
    },
}

/// The keys of the [`Policy`] that make a limit of a belief.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// The limit while nothing is known.
    pub initial_limit: Duration,
    /// What is taken off the timeout.
    pub margin: Margin,
}

impl From<&Policy> for Rules {
    fn from(policy: &Policy) -> Self {
        Self { initial_limit: policy.initial_limit, margin: policy.margin }
    }
}

/// What probes have found: the timeout is above `lower` and not above `upper`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bracket {
    /// When the last answer came.
    pub at: Timestamp,
    /// The longest gap that was survived; zero if none was.
    pub lower: Duration,
    /// The shortest that was not.
    pub upper: Option<Duration>,
}

impl Bracket {
    /// Whether the bounds are within 10 %.
    pub fn is_narrow(&self) -> bool {
        let hundredth = self.lower.checked_div(100).unwrap_or_default();
        let enough = self.lower.saturating_add(hundredth.saturating_mul(PROBE_PRECISION_PERCENT));
        self.lower > Duration::ZERO && self.upper.is_some_and(|upper| upper <= enough)
    }

    /// A probe was answered after `gap`.
    pub fn survive(&mut self, gap: Duration, now: Timestamp) {
        self.at = self.at.max(now);
        self.lower = self.lower.max(gap);
        self.upper = self.upper.filter(|upper| *upper > gap);
    }

    /// Probes failed after `gap`.
    pub fn fail(&mut self, gap: Duration, now: Timestamp) {
        self.at = self.at.max(now);
        self.upper = Some(self.upper.map_or(gap, |upper| upper.min(gap)));
        if self.lower >= gap {
            self.lower = Duration::ZERO; // the timeout was lowered, and nobody knows how far
        }
    }
}

/// What is known of one destination's idle timeout. Its timestamps are of a clock that all workers share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learner {
    /// Closes of fenced connections that were watched.
    pub(crate) sentinels: Closes,
    /// Closes of connections that the pool could still have used.
    pub(crate) pooled: Closes,
    /// Idle ages after which an exchange or a probe succeeded.
    pub(crate) successes: Bounds,
    /// Idle ages of stale failures.
    pub(crate) failures: Bounds,
    /// What probes have found.
    pub(crate) bracket: Bracket,
    /// When the far end was last seen to drop everything at once.
    pub(crate) restarted_at: Option<Timestamp>,
}

impl Default for Learner {
    fn default() -> Self {
        Self {
            sentinels: Closes::default(),
            pooled: Closes::default(),
            successes: Bounds::new(Side::Above),
            failures: Bounds::new(Side::AtMost),
            bracket: Bracket::default(),
            restarted_at: None,
        }
    }
}

impl Learner {
    /// Takes in evidence. Returns whether it is new, so that the verdict may have changed.
    pub fn observe(&mut self, evidence: Evidence, now: Timestamp) -> bool {
        match evidence {
            Evidence::Closed { age, .. }
            | Evidence::Failed { age }
            | Evidence::Succeeded { age }
            | Evidence::ProbeSurvived { gap: age }
            | Evidence::ProbeFailed { gap: age }
                if age < SHORTEST_AGE =>
            {
                return false;
            }
            Evidence::Closed { age, connection_age, is_sentinel } => {
                let (closes, others) = if is_sentinel {
                    (&mut self.sentinels, &mut self.pooled)
                } else {
                    (&mut self.pooled, &mut self.sentinels)
                };
                let mut close =
                    Close { at: now, age, connection_age: connection_age.max(age), connections: 1, against: 0 };
                close.against = others.compare(&close);
                if closes.insert(close) == Moment::Restart {
                    self.restarted_at = self.restarted_at.max(Some(now));
                }
            }
            Evidence::Failed { age } => {
                self.failures.join(Bound { at: now, age });
                // A timeout doesn't end a request at a shorter idle age in the moment of a close; a restart does.
                let failure = Close { at: now, age, connection_age: age, connections: 1, against: 0 };
                self.sentinels.compare(&failure);
                self.pooled.compare(&failure);
            }
            Evidence::Succeeded { age } => return self.succeed(age, now),
            Evidence::ProbeSurvived { gap } => {
                self.bracket.survive(gap, now);
                self.succeed(gap, now);
            }
            Evidence::ProbeFailed { gap } => self.bracket.fail(gap, now),
        }
        true
    }

    fn succeed(&mut self, age: Duration, now: Timestamp) -> bool {
        let is_news =
            |known: &Bound| known.age < age || now.since(known.at) >= SUCCESS_PERIOD || self.has_doubts_since(known.at);
        let is_new = self.successes.iter().all(is_news);
        if is_new {
            self.successes.join(Bound { at: now, age });
        }
        is_new
    }

    /// Whether something was seen since `at` that a success could refute.
    fn has_doubts_since(&self, at: Timestamp) -> bool {
        let latest_close = |closes: &Closes| closes.iter().next().map(|close| close.at);
        latest_close(&self.sentinels).max(latest_close(&self.pooled)).max(self.failures.latest()) >= Some(at)
    }

    /// What follows from all that is known, at `now`.
    pub fn verdict(&self, rules: &Rules, now: Timestamp) -> Verdict {
        let agreement = self.agreement();
        let belief = self.belief(agreement.as_ref());
        let at_most = self.at_most(agreement.as_ref(), now);
        let known = match belief {
            Belief::Unknown => rules.initial_limit,
            Belief::AtLeast { timeout } => rules.initial_limit.max(rules.margin.limit(timeout)),
            Belief::About { timeout, .. } => rules.margin.limit(timeout),
        };
        let by_probes = self.bracket.upper.filter(|upper| *upper <= known).map(|upper| {
            // The timeout is somewhere between the probe's bounds.
            rules.margin.limit(self.bracket.lower).max(half(upper))
        });
        // A failure above the limit of a known timeout is no news. Else anything below its age may fail, too, and halving
        // comes below the timeout soonest without trying.
        let by_failure = at_most.filter(|age| *age <= known || belief.learned().is_none()).map(half);
        let by_doubt = self.doubt(agreement.as_ref(), belief.learned()).map(|age| rules.margin.limit(age));
        let limit = [by_probes, by_failure, by_doubt].into_iter().flatten().fold(known, Duration::min);
        Verdict { belief, at_most, limit: limit.max(LOWEST_LIMIT.min(known)) }
    }

    /// The shortest idle age at which the far end closed a connection although it is thought to keep it for longer. One close
    /// teaches no timeout, but until the timeout that is `learned` has shown again, nothing is risked.
    fn doubt(&self, agreement: Option<&Agreement>, learned: Option<Duration>) -> Option<Duration> {
        let learned = learned?;
        let confirmed_at = agreement.map_or(self.bracket.at, |agreed| agreed.confirmed_at);
        let aftermath = self.restarted_at.map(|at| at.after(AFTERMATH));
        let doubts = |close: &&Close| {
            let survived = self.successes.iter().any(|success| success.at >= close.at && success.age >= close.age);
            let is_calm = close.against == 0 && aftermath.is_none_or(|until| close.at > until);
            is_calm && !survived && close.at > confirmed_at && tolerated(close.age) < learned
        };
        self.sentinels.iter().chain(self.pooled.iter()).filter(doubts).map(|close| close.age).min()
    }

    /// What the bounds of probes are so far.
    pub fn bracket(&self) -> Bracket {
        self.bracket
    }

    fn agreement(&self) -> Option<Agreement> {
        let survived =
            |age: Duration| self.successes.iter().filter(|success| success.age > age).map(|success| success.at).max();
        let agreed = |closes: &Closes, others: &Closes| closes.agreement(others, &self.sentinels, survived);
        [agreed(&self.sentinels, &self.pooled), agreed(&self.pooled, &self.sentinels)]
            .into_iter()
            .flatten()
            .min_by_key(|agreed| agreed.age)
    }

    fn belief(&self, agreement: Option<&Agreement>) -> Belief {
        let by_closes = agreement.map(|agreed| Belief::About {
            timeout: agreed.age,
            source: Source::Closes { connections: agreed.connections },
        });
        let by_probes =
            self.bracket.is_narrow().then_some(Belief::About { timeout: self.bracket.lower, source: Source::Probes });
        let longest = self.successes.iter().filter(|success| self.stands(success)).map(|success| success.age).max();
        by_closes
            .into_iter()
            .chain(by_probes)
            .min_by_key(Belief::timeout)
            .or(longest.map(|timeout| Belief::AtLeast { timeout }))
            .unwrap_or(Belief::Unknown)
    }

    /// Whether nothing seen since a success speaks against it. Any close at a shorter age does, noise or not: what a belief
    /// was that has lost its reasons must not come back as a lower bound.
    fn stands(&self, success: &Bound) -> bool {
        let contradicts = |at: Timestamp, age: Duration| at >= success.at && age <= success.age;
        let mut closes = self.sentinels.iter().chain(self.pooled.iter());
        !closes.any(|close| contradicts(close.at, close.age))
            && !self.failures.iter().any(|failure| contradicts(failure.at, failure.age))
    }

    /// The lowest idle age of a stale failure that nothing has refuted since.
    fn at_most(&self, agreement: Option<&Agreement>, now: Timestamp) -> Option<Duration> {
        let aftermath = self.restarted_at.map(|at| at.after(AFTERMATH));
        let stands = |failure: &&Bound| {
            let survived = self.successes.iter().any(|success| success.at >= failure.at && success.age >= failure.age);
            let refuted = agreement.is_some_and(|agreed| agreed.confirmed_at > failure.at && agreed.age > failure.age);
            let remembered = now.since(failure.at) < FAILURE_MEMORY;
            remembered && !survived && !refuted && aftermath.is_none_or(|until| failure.at > until)
        };
        self.failures.iter().filter(stands).map(|failure| failure.age).min()
    }

    /// Takes in what another worker knows. Both know the same afterwards, whoever began and however often it is done; only
    /// the number of connections behind a close is the larger of the two.
    pub fn merge(&mut self, other: &Self, now: Timestamp) {
        let until = now.after(CLOCK_SKEW);
        for (mine, theirs) in [(&mut self.sentinels, &other.sentinels), (&mut self.pooled, &other.pooled)] {
            theirs.iter().filter(|close| close.at <= until).for_each(|close| mine.join(close));
        }
        for (mine, theirs) in [(&mut self.successes, &other.successes), (&mut self.failures, &other.failures)] {
            theirs.iter().filter(|bound| bound.at <= until).for_each(|bound| mine.join(*bound));
        }
        let order = |bracket: &Bracket| (bracket.at, bracket.upper.is_some(), bracket.lower, bracket.upper);
        if other.bracket.at <= until && order(&other.bracket) > order(&self.bracket) {
            self.bracket = other.bracket;
        }
        self.restarted_at = self.restarted_at.max(other.restarted_at.filter(|at| *at <= until));
    }
}

fn half(age: Duration) -> Duration {
    age.checked_div(2).unwrap_or_default()
}
