//! One worker's share of the learning: its copy of what is known, what of it the log has told, and what the other workers
//! have not heard yet.

use std::fmt;
use std::time::Duration;

use crate::learner::{Bracket, Evidence, Learner, Rules, Told, Verdict};
use crate::shared;
use crate::time::Timestamp;

/// The shortest time between two warnings of stale failures.
const WARNING_PERIOD: Duration = Duration::from_secs(60);

/// What one worker knows of a destination's idle timeout.
#[derive(Debug, Default)]
pub struct Learning {
    learner: Learner,
    verdict: Option<Verdict>,
    /// What the log knows, told by this worker or by another.
    told: Option<Told>,
    failures: Failures,
}

#[derive(Debug, Default)]
struct Failures {
    count: u32,
    last_age: Duration,
    warned_at: Option<Timestamp>,
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Something was learnt.
    Verdict(Verdict),
    /// Requests met connections that the far end had dropped.
    StaleFailures {
        /// How many since the last line.
        count: u32,
        /// The idle age at the last one.
        last_age: Duration,
        /// The idle limit in force.
        limit: Duration,
    },
}

impl Learning {
    /// Takes in evidence; returns whether the verdict may have changed.
    pub fn observe(&mut self, evidence: Evidence, now: Timestamp) -> bool {
        self.learner.observe(evidence, now)
    }

    /// A stale failure at the idle age `age`, for the log.
    pub fn on_failure(&mut self, age: Duration) {
        self.failures.count = self.failures.count.saturating_add(1);
        self.failures.last_age = age;
    }

    /// The idle limit that follows from what is known.
    pub fn judge(&mut self, rules: &Rules, now: Timestamp) -> Duration {
        let verdict = self.learner.verdict(rules, now);
        self.verdict = Some(verdict);
        verdict.limit
    }

    /// The far end's idle timeout, if it is known.
    pub fn learned(&self) -> Option<Duration> {
        self.verdict.and_then(|verdict| verdict.belief.learned())
    }

    /// What probes have found so far.
    pub fn bracket(&self) -> Bracket {
        self.learner.bracket()
    }

    /// Takes in what is stored for all workers; returns what is to be stored instead, if that is more.
    pub fn exchange(&mut self, stored: &[u8], now: Timestamp) -> Option<Vec<u8>> {
        if let Some(others) = shared::decode(stored) {
            self.learner.merge(&others, now);
        }
        if self.learner == Learner::default() {
            return None;
        }
        let own = shared::encode(&self.learner);
        (own != stored).then_some(own)
    }

    /// What the log should tell now, unless another worker has ([`shared::tell`]), under the idle limit `limit`.
    pub fn take_news(&mut self, limit: Duration, learns: bool, now: Timestamp) -> Vec<News> {
        let mut news = Vec::new();
        if let Some(verdict) = self.verdict.filter(|_| learns) {
            let is_news = match &self.told {
                Some(told) => told.is_outdated_by(&verdict.to_tell()),
                None => verdict.belief.learned().is_some() || verdict.at_most.is_some(),
            };
            if is_news {
                self.told = Some(verdict.to_tell());
                news.push(News::Verdict(verdict));
            }
        }
        let may_warn = self.failures.warned_at.is_none_or(|at| now.since(at) >= WARNING_PERIOD);
        if self.failures.count > 0 && may_warn {
            let Failures { count, last_age, .. } = self.failures;
            self.failures = Failures { count: 0, last_age, warned_at: Some(now) };
            news.push(News::StaleFailures { count, last_age, limit });
        }
        news
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(verdict) => verdict.fmt(f),
            Self::StaleFailures { count, last_age, limit } => write!(
                f,
                "requests met a connection that the far end had dropped: {count} since the last such line, the last at an idle \
                 age of {} ms; idle limit now {} ms",
                last_age.as_millis(),
                limit.as_millis()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Margin;

    const RULES: Rules = Rules { initial_limit: Duration::from_secs(4), margin: Margin::Share(0.1) };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().after(Duration::from_secs(seconds))
    }

    fn close(learning: &mut Learning, now: Timestamp) {
        let age = Duration::from_secs(60);
        learning.observe(Evidence::Closed { age, connection_age: age, is_sentinel: true }, now);
        learning.judge(&RULES, now);
    }

    #[test]
    fn a_worker_that_hears_of_it_knows_at_once_and_tells_the_same() {
        let (mut one, mut other) = (Learning::default(), Learning::default());
        close(&mut one, at(61));
        close(&mut one, at(122));
        let stored = one.exchange(b"", at(122)).unwrap();
        assert_eq!(one.exchange(&stored, at(122)), None);
        assert_eq!(other.exchange(&stored, at(122)), None);
        assert_eq!(other.judge(&RULES, at(122)), Duration::from_secs(54));
        let news = one.take_news(Duration::ZERO, true, at(122));
        assert_eq!(news.len(), 1);
        assert!(one.take_news(Duration::ZERO, true, at(122)).is_empty());
        assert_eq!(other.take_news(Duration::ZERO, true, at(122)), news);
    }

    #[test]
    fn stale_failures_are_warned_of_once_a_minute() {
        let mut learning = Learning::default();
        let mut warned = |now| {
            learning.on_failure(Duration::from_millis(1_900));
            learning.take_news(Duration::from_secs(54), false, at(now)).len()
        };
        assert_eq!([warned(0), warned(10), warned(59), warned(60), warned(61)], [1, 0, 0, 1, 0]);
    }
}
