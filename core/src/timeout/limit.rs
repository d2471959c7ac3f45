//! How long is idle too long? What was told, what was measured and what requests have said, in one answer with its reason.

use std::fmt;
use std::time::Duration;

use super::knowledge::Knowledge;
use super::policy::{LbIdleTimeout, Policy};
use crate::time::{DurationText, Timestamp};

/// What a scout has found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The far end's idle timeout; `None` if it is only known that it is not below the limit.
    pub timeout: Option<Duration>,
    /// The idle limit that follows.
    pub limit: Duration,
    /// When it was measured last.
    pub at: Timestamp,
}

/// The longest `idle_timeout` that is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleLimit {
    /// It.
    pub limit: Duration,
    /// The far end's idle timeout, as far as anything is known of it: at most this.
    pub timeout: Option<Duration>,
    /// Why.
    pub reason: Reason,
}

/// Why a limit is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is known.
    Initial,
    /// The operator gave the timeout.
    Told {
        /// It.
        timeout: Duration,
    },
    /// The scout measured it.
    Scout {
        /// It, if it is known and not only bounded.
        timeout: Option<Duration>,
    },
    /// Requests failed.
    Failures {
        /// At this idle age and above.
        idle_age: Duration,
        /// The timeout that the operator gave, which is wrong then.
        told: Option<Duration>,
    },
    /// The scout measured a timeout shorter than the operator's.
    Wrong {
        /// Measured.
        timeout: Option<Duration>,
        /// Given.
        told: Duration,
    },
}

impl IdleLimit {
    /// The limit without what requests have said.
    pub fn without_requests(policy: &Policy, measured: Option<&Measured>) -> Self {
        let measured_limit = measured.map(|measured| Self {
            limit: measured.limit,
            timeout: measured.timeout,
            reason: Reason::Scout { timeout: measured.timeout },
        });
        match (policy.lb_idle_timeout, measured_limit) {
            (LbIdleTimeout::Learn, Some(measured)) => measured,
            (LbIdleTimeout::Learn, None) => {
                Self { limit: policy.initial_limit, timeout: None, reason: Reason::Initial }
            }
            (LbIdleTimeout::Fixed(timeout), measured) => {
                let told = policy.margin.limit(timeout);
                match measured {
                    // A lower bound below it contradicts nothing.
                    Some(measured) if measured.limit < told && measured.timeout.is_some() => {
                        Self { reason: Reason::Wrong { timeout: measured.timeout, told: timeout }, ..measured }
                    }
                    _ => Self { limit: told, timeout: Some(timeout), reason: Reason::Told { timeout } },
                }
            }
        }
    }

    /// The limit.
    pub fn new(policy: &Policy, knowledge: &Knowledge, measured: Option<&Measured>) -> Self {
        let otherwise = Self::without_requests(policy, measured);
        let outdated = measured.is_some_and(|measured| knowledge.is_outdated_by(measured.at));
        let Some(hold) = knowledge.hold().filter(|_| !outdated) else { return otherwise };
        let limit = policy.margin.limit(hold.idle_age);
        if limit >= otherwise.limit {
            return otherwise;
        }
        let told = match policy.lb_idle_timeout {
            LbIdleTimeout::Fixed(timeout) => Some(timeout),
            LbIdleTimeout::Learn => None,
        };
        let reason = Reason::Failures { idle_age: hold.idle_age, told };
        Self { limit, timeout: Some(hold.idle_age), reason }
    }
}

impl Reason {
    /// Whether the operator's timeout turned out wrong.
    pub fn contradicts_operator(&self) -> bool {
        matches!(self, Self::Wrong { .. } | Self::Failures { told: Some(_), .. })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = DurationText;
        match *self {
            Self::Initial => f.write_str("nothing is known of the far end's idle timeout (initial_limit)"),
            Self::Told { timeout } => write!(f, "lb_idle_timeout is {}", text(timeout)),
            Self::Scout { timeout: Some(timeout) } => {
                write!(f, "the scout found an idle timeout of {}", text(timeout))
            }
            Self::Scout { timeout: None } => f.write_str("the scout found no shorter idle timeout"),
            Self::Failures { idle_age, told: None } => {
                write!(f, "requests failed on connections that had been idle for {} and more", text(idle_age))
            }
            Self::Failures { idle_age, told: Some(told) } => write!(
                f,
                "lb_idle_timeout is {}, but requests failed on connections that had been idle for {} and more",
                text(told),
                text(idle_age)
            ),
            Self::Wrong { timeout: Some(timeout), told } => {
                write!(f, "lb_idle_timeout is {}, but the scout found {}", text(told), text(timeout))
            }
            Self::Wrong { timeout: None, told } => {
                write!(f, "lb_idle_timeout is {}, but the scout found a shorter one", text(told))
            }
        }
    }
}
