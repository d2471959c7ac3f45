//! What is believed of a far end's idle timeout, and its text for the log.

use std::fmt;
use std::time::Duration;

/// What is believed of the idle timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    /// Nothing.
    Unknown,
    /// It is longer than this.
    AtLeast {
        /// The longest idle age after which an exchange or a probe succeeded.
        timeout: Duration,
    },
    /// It is about this, and not shorter.
    About {
        /// The smallest of the idle ages that agree.
        timeout: Duration,
        /// Who says so.
        source: Source,
    },
}

/// Where a timeout was learnt from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The far end's closes.
    Closes {
        /// How many connections agree.
        connections: u32,
    },
    /// Our own requests after growing gaps.
    Probes,
}

/// A belief, and the idle limit that follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is believed.
    pub belief: Belief,
    /// The lowest idle age at which a request failed that nothing has refuted: the timeout is not above it.
    pub at_most: Option<Duration>,
    /// The idle limit.
    pub limit: Duration,
}

impl Belief {
    /// The timeout, or what it is at least; zero if nothing is known.
    pub fn timeout(&self) -> Duration {
        match self {
            Self::Unknown => Duration::ZERO,
            Self::AtLeast { timeout } | Self::About { timeout, .. } => *timeout,
        }
    }

    /// The timeout if it is known, for the metric.
    pub fn learned(&self) -> Option<Duration> {
        match self {
            Self::About { timeout, .. } => Some(*timeout),
            Self::Unknown | Self::AtLeast { .. } => None,
        }
    }
}

/// What the log was told of a belief.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The idle limit.
    pub limit: Duration,
    /// Whether the timeout was known.
    pub is_known: bool,
}

impl Told {
    /// Whether `later` is worth another line: the limit moved by more than 1 %, or what is known is of another kind. One more
    /// connection that agrees is no news, nor is a longer success.
    pub fn is_outdated_by(&self, later: &Self) -> bool {
        let (low, high) = (self.limit.min(later.limit), self.limit.max(later.limit));
        high.saturating_sub(low) > low.checked_div(100).unwrap_or_default() || self.is_known != later.is_known
    }
}

impl Verdict {
    /// What a line in the log would tell of it.
    pub fn to_tell(&self) -> Told {
        Told { limit: self.limit, is_known: self.belief.learned().is_some() }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.belief {
            Belief::Unknown => f.write_str("the far end's idle timeout is unknown")?,
            Belief::AtLeast { timeout } => {
                write!(f, "the far end keeps idle connections for at least {}", Tenths(timeout))?;
            }
            Belief::About { timeout, source } => {
                write!(f, "the far end closes idle connections after about {} ", Tenths(timeout))?;
                match source {
                    Source::Closes { connections } => write!(f, "({connections} connections agree)")?,
                    Source::Probes => f.write_str("(found by probing)")?,
                }
            }
        }
        if let Some(age) = self.at_most {
            write!(f, "; a request failed after {}", Tenths(age))?;
        }
        write!(f, "; idle limit now {}", Short(self.limit))
    }
}

/// Seconds with one digit behind the point.
struct Tenths(Duration);

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.as_millis().saturating_add(50).checked_div(100).unwrap_or_default();
        let (seconds, tenth) = (tenths.checked_div(10), tenths.checked_rem(10));
        write!(f, "{}.{} s", seconds.unwrap_or_default(), tenth.unwrap_or_default())
    }
}

/// Whole seconds where nothing is lost by it, else milliseconds.
struct Short(Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < Duration::from_secs(10) && self.0.subsec_millis() != 0 {
            write!(f, "{} ms", self.0.as_millis())
        } else {
            write!(f, "{} s", self.0.as_secs())
        }
    }
}
