//! What a scout has found out about a destination, and the bytes in which the workers of an Envoy share it.
//!
//! ```
//! use std::time::Duration;
//! use idleguard_core::timeout::{Margin, finding::{Finding, Idle, Kind}};
//!
//! let idle = Idle::Closes { timeout: Duration::from_secs(60), kind: Kind::Fin };
//! let finding = Finding { idle, ..Finding::default() };
//! assert_eq!(finding.limit(Margin::Share(0.1)), Some(Duration::from_secs(54)));
//! assert_eq!(Finding::decode(&finding.encode()), Some(finding));
//! ```

use std::fmt;
use std::time::Duration;

use super::policy::Margin;
use crate::time::{DurationText, Timestamp, nanos};

/// Changes whenever the bytes or their meaning do.
const VERSION: u64 = u64::from_le_bytes(*b"ig-fnd-1");

/// A far end that announces `Keep-Alive: timeout=N` is trusted up to this much less.
const BELOW_ANNOUNCED: Duration = Duration::from_secs(1);

/// What is known of one destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// What becomes of a connection that is left idle.
    pub idle: Idle,
    /// The smallest `N` of the `Keep-Alive: timeout=N` headers in the far end's latest answers.
    pub keep_alive: Option<Duration>,
    /// When that was last seen to be so.
    pub measured_at: Timestamp,
}

/// What becomes of a connection that is left idle. Where a destination has several hosts, it is about the one that waits the
/// shortest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Nobody knows.
    #[default]
    Unknown,
    /// The far end closes it.
    Closes {
        /// At this idle age.
        timeout: Duration,
        /// In this way.
        kind: Kind,
    },
    /// The far end forgets it without a word.
    Silent {
        /// A request after this idle age was answered; zero if only shorter ones were, or none.
        answered: Duration,
        /// One after this was not.
        unanswered: Duration,
    },
    /// A request after this idle age was answered, and nothing longer was tried.
    LongerThan(Duration),
    /// The far end closes each connection with its answer.
    ClosesAtOnce,
}

/// How a far end shows that it lets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By FIN.
    Fin,
    /// By RST.
    Rst,
    /// It says so before: 408, or GOAWAY on HTTP/2. The age is that of the first byte of it.
    Announced,
}

impl Idle {
    /// The idle age at which the far end lets go, as far as that is known: a lower bound where it is silent.
    pub fn timeout(&self) -> Option<Duration> {
        match *self {
            Self::Closes { timeout, .. } => Some(timeout),
            Self::Silent { answered, .. } => Some(answered),
            Self::Unknown | Self::LongerThan(_) | Self::ClosesAtOnce => None,
        }
    }

    /// The far end keeps idle connections for at least this long, as far as that is known.
    pub fn lower_bound(&self) -> Duration {
        match *self {
            Self::Closes { timeout: age, .. } | Self::Silent { answered: age, .. } | Self::LongerThan(age) => age,
            Self::Unknown | Self::ClosesAtOnce => Duration::ZERO,
        }
    }

    /// Whether it is certain enough for the log: the bounds of a silent far end are narrowed down first.
    pub fn is_worth_telling(&self) -> bool {
        match *self {
            Self::Silent { answered, unanswered } => is_same_age(answered, unanswered),
            Self::Unknown => false,
            Self::Closes { .. } | Self::LongerThan(_) | Self::ClosesAtOnce => true,
        }
    }

    /// Whether an operator would want to be told of `other` in its place.
    pub fn is_news_to(&self, other: &Self) -> bool {
        let differs = |a: Duration, b: Duration| !is_same_age(a, b);
        match (*self, *other) {
            (Self::Closes { timeout: a, kind }, Self::Closes { timeout: b, kind: other }) => {
                differs(a, b) || kind != other
            }
            (Self::Silent { answered: a, .. }, Self::Silent { answered: b, .. })
            | (Self::LongerThan(a), Self::LongerThan(b)) => differs(a, b),
            (a, b) => a != b,
        }
    }
}

/// Whether two idle ages are within 5 % of the larger.
pub(super) fn is_same_age(a: Duration, b: Duration) -> bool {
    let (shorter, longer) = (a.min(b), a.max(b));
    shorter.saturating_mul(20) >= longer.saturating_mul(19)
}

impl Finding {
    /// The far end's idle timeout; a lower bound where it is silent, and an upper bound where it is announced only. `None` while nothing
    /// is known, or only that it is long.
    pub fn timeout(&self) -> Option<Duration> {
        [self.idle.timeout(), self.keep_alive].into_iter().flatten().min()
    }

    /// The longest `idle_timeout` that follows; `None` if nothing does.
    pub fn limit(&self, margin: Margin) -> Option<Duration> {
        let idle = match self.idle {
            // It was answered at this very age.
            Idle::LongerThan(age) => Some(age),
            idle => idle.timeout().map(|timeout| margin.limit(timeout)),
        };
        let announced = self.keep_alive.map(|timeout| {
            let below = timeout.saturating_sub(BELOW_ANNOUNCED).max(timeout.checked_div(2).unwrap_or_default());
            margin.limit(timeout).min(below)
        });
        [idle, announced].into_iter().flatten().min()
    }

    /// The bytes of it, for Envoy's shared data.
    pub fn encode(&self) -> Vec<u8> {
        let (tag, first, second) = match self.idle {
            Idle::Unknown => (0, Duration::ZERO, Duration::ZERO),
            Idle::Closes { timeout, kind: Kind::Fin } => (1, timeout, Duration::ZERO),
            Idle::Closes { timeout, kind: Kind::Rst } => (2, timeout, Duration::ZERO),
            Idle::Closes { timeout, kind: Kind::Announced } => (3, timeout, Duration::ZERO),
            Idle::Silent { answered, unanswered } => (4, answered, unanswered),
            Idle::LongerThan(age) => (5, age, Duration::ZERO),
            Idle::ClosesAtOnce => (6, Duration::ZERO, Duration::ZERO),
        };
        let keep_alive = self.keep_alive.map_or(0, nanos);
        [VERSION, tag, nanos(first), nanos(second), keep_alive, self.measured_at.as_nanos()]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect()
    }

    /// What the bytes say; `None` if another version wrote them, or nobody.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (numbers, rest) = bytes.as_chunks::<8>();
        let numbers: Vec<u64> = numbers.iter().map(|number| u64::from_le_bytes(*number)).collect();
        let ([VERSION, tag, first, second, keep_alive, measured_at], []) = (numbers.as_slice(), rest) else {
            return None;
        };
        let (first, second) = (Duration::from_nanos(*first), Duration::from_nanos(*second));
        let idle = match *tag {
            0 => Idle::Unknown,
            1 => Idle::Closes { timeout: first, kind: Kind::Fin },
            2 => Idle::Closes { timeout: first, kind: Kind::Rst },
            3 => Idle::Closes { timeout: first, kind: Kind::Announced },
            4 => Idle::Silent { answered: first, unanswered: second },
            5 => Idle::LongerThan(first),
            6 => Idle::ClosesAtOnce,
            _ => return None,
        };
        Some(Self {
            idle,
            keep_alive: (*keep_alive > 0).then(|| Duration::from_nanos(*keep_alive)),
            measured_at: Timestamp::from_nanos(*measured_at),
        })
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |age: Duration| DurationText(age);
        match *self {
            Self::Unknown => f.write_str("not known"),
            Self::Closes { timeout, kind: Kind::Fin } => write!(f, "closed (FIN) at an idle age of {}", text(timeout)),
            Self::Closes { timeout, kind: Kind::Rst } => write!(f, "reset (RST) at an idle age of {}", text(timeout)),
            Self::Closes { timeout, kind: Kind::Announced } => {
                write!(f, "closed with a 408 or GOAWAY before, at an idle age of {}", text(timeout))
            }
            Self::Silent { answered, unanswered } => write!(
                f,
                "forgotten without a word: a request is answered after {} and not after {}",
                text(answered),
                text(unanswered)
            ),
            Self::LongerThan(age) => write!(f, "kept for longer than {}", text(age)),
            Self::ClosesAtOnce => f.write_str("closed with every answer: there is no idle timeout"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Idle; 7] = {
        let timeout = Duration::from_millis(6_007);
        [
            Idle::Unknown,
            Idle::Closes { timeout, kind: Kind::Fin },
            Idle::Closes { timeout, kind: Kind::Rst },
            Idle::Closes { timeout, kind: Kind::Announced },
            Idle::Silent { answered: timeout, unanswered: Duration::from_secs(7) },
            Idle::LongerThan(timeout),
            Idle::ClosesAtOnce,
        ]
    };

    #[test]
    fn what_is_written_is_read_and_anything_else_is_ignored() {
        for idle in ALL {
            for keep_alive in [None, Some(Duration::from_secs(5))] {
                let finding = Finding { idle, keep_alive, measured_at: Timestamp::from_millis(77) };
                let bytes = finding.encode();
                assert_eq!(Finding::decode(&bytes), Some(finding));
                for len in 0..bytes.len() {
                    assert_eq!(Finding::decode(&bytes[..len]), None, "{len} bytes of {finding:?}");
                }
                for other in [[&bytes[..], &[0]].concat(), [&[0], &bytes[1..]].concat()] {
                    assert_eq!(Finding::decode(&other), None, "{finding:?}");
                }
            }
        }
    }

    #[test]
    fn a_limit_is_below_what_was_measured_and_what_was_announced() {
        let margin = Margin::Share(0.1);
        let s = Duration::from_secs;
        for (idle, keep_alive, timeout, limit) in [
            (Idle::Unknown, None, None, None),
            (Idle::Closes { timeout: s(60), kind: Kind::Fin }, None, Some(s(60)), Some(s(54))),
            (Idle::Silent { answered: s(60), unanswered: s(63) }, None, Some(s(60)), Some(s(54))),
            (Idle::LongerThan(s(3_600)), None, None, Some(s(3_600))),
            (Idle::ClosesAtOnce, None, None, None),
            (Idle::Unknown, Some(s(5)), Some(s(5)), Some(s(4))), // at least 1 s below
            (Idle::Unknown, Some(s(20)), Some(s(20)), Some(s(18))), // the margin is more
            (Idle::Unknown, Some(s(1)), Some(s(1)), Some(s(1) / 2)), // and never more than half
            (Idle::Closes { timeout: s(6), kind: Kind::Fin }, Some(s(5)), Some(s(5)), Some(s(4))), // Node waits a second more
            (Idle::Closes { timeout: s(4), kind: Kind::Fin }, Some(s(60)), Some(s(4)), Some(s(4).mul_f64(0.9))),
        ] {
            let finding = Finding { idle, keep_alive, measured_at: Timestamp::default() };
            assert_eq!((finding.timeout(), finding.limit(margin)), (timeout, limit), "{finding:?}");
        }
    }

    #[test]
    fn a_few_percent_are_no_news_and_another_way_is() {
        for (index, idle) in ALL.iter().enumerate() {
            for (other_index, other) in ALL.iter().enumerate() {
                assert_eq!(other.is_news_to(idle), index != other_index, "{idle} {other}");
            }
        }
        let closes = |millis| Idle::Closes { timeout: Duration::from_millis(millis), kind: Kind::Fin };
        assert!(!closes(6_000).is_news_to(&closes(6_290)));
        assert!(closes(6_000).is_news_to(&closes(6_400)));
    }
}
