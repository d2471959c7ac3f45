//! Idle ages that bound the timeout from one side.

use std::time::Duration;

use crate::time::{Timestamp, millis};

/// Bounds that are remembered for each side.
pub const BOUNDS: usize = 24;

/// At this time the timeout was above, or not above, this idle age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bound {
    /// When it was seen.
    pub at: Timestamp,
    /// The idle age.
    pub age: Duration,
}

/// Which of two ages says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The longer one: the timeout is above it.
    Above,
    /// The shorter one: the timeout is not above it.
    AtMost,
}

/// The bounds on one side, one for each octave of idle ages. Whatever the order in which they come, and however often, the
/// same ones are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    side: Side,
    /// By octave, the shortest first.
    bounds: Vec<Bound>,
}

impl Bounds {
    /// None yet.
    pub const fn new(side: Side) -> Self {
        Self { side, bounds: Vec::new() }
    }

    /// All of them, the shortest ages first.
    pub fn iter(&self) -> impl Iterator<Item = &Bound> {
        self.bounds.iter()
    }

    /// When the latest was seen.
    pub fn latest(&self) -> Option<Timestamp> {
        self.bounds.iter().map(|bound| bound.at).max()
    }

    /// Takes in a bound.
    pub fn join(&mut self, bound: Bound) {
        let place = self.bounds.partition_point(|known| octave(known.age) < octave(bound.age));
        match self.bounds.get_mut(place) {
            Some(known) if octave(known.age) == octave(bound.age) => match self.side {
                Side::Above => *known = Bound::max(*known, bound),
                // A crowd fails at once: the shortest age counts, for as long as any of them.
                Side::AtMost => *known = Bound { at: known.at.max(bound.at), age: known.age.min(bound.age) },
            },
            _ => self.bounds.insert(place, bound),
        }
    }
}

/// Ages from 256 ms to 24 days, each twice as long as the last.
fn octave(age: Duration) -> u32 {
    millis(age).checked_ilog2().unwrap_or_default().clamp(8, 31)
}
