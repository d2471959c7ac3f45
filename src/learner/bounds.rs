//! The few latest idle ages that bound the timeout from one side.

use std::time::Duration;

use crate::time::Timestamp;

/// Bounds that are remembered for each side.
pub const BOUNDS: usize = 8;

/// At this time the timeout was above, or not above, this idle age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The latest bounds on one side, the latest first, without those of which a later one says as much. Whatever the order in
/// which bounds come, and however often, the same ones are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    side: Side,
    bounds: Vec<Bound>,
}

impl Bounds {
    /// None yet.
    pub const fn new(side: Side) -> Self {
        Self { side, bounds: Vec::new() }
    }

    /// The latest first.
    pub fn iter(&self) -> impl Iterator<Item = &Bound> {
        self.bounds.iter()
    }

    /// Takes in a bound.
    pub fn join(&mut self, bound: Bound) {
        let side = self.side;
        let says_as_much = |one: &Bound, other: &Bound| {
            one.at >= other.at
                && match side {
                    Side::Above => one.age >= other.age,
                    Side::AtMost => one.age <= other.age,
                }
        };
        if self.bounds.iter().any(|known| says_as_much(known, &bound)) {
            return;
        }
        self.bounds.retain(|known| !says_as_much(&bound, known));
        let place = self.bounds.partition_point(|known| known.at > bound.at);
        self.bounds.insert(place, bound);
        self.bounds.truncate(BOUNDS);
    }
}
