//! When to look at which connection: a heap of slots that is threaded through the connections themselves, so that a closed
//! one leaves at once and one entry a connection is all that there ever is.
//!
//! Times are counted in milliseconds, and as they would overflow 32 bits after 49 days, compared by their distance. That is
//! sound because no timer is set further ahead than [`FARTHEST`] and none stays behind.

use std::time::Duration;

use crate::connection::Connection;
use crate::slab::Slab;
use crate::time::Timestamp;

/// A later time is looked at here, and again: 12 days.
const FARTHEST: Duration = Duration::from_millis(1 << 30);

/// How much earlier than its time a connection may be looked at.
pub const PRECISION: Duration = Duration::from_millis(1);

/// A connection's timer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timer {
    at: Tick,
    /// Its place in the heap, counted from 1; 0 if it is not set.
    place: u32,
}

/// A point in time, in whole milliseconds modulo 2³².
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tick(u32);

impl Tick {
    #[expect(clippy::cast_possible_truncation, reason = "modulo 2³²")]
    fn of(at: Timestamp) -> Self {
        Self((at.as_nanos() / 1_000_000) as u32)
    }

    fn is_before(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) > u32::MAX / 2
    }
}

/// The timers of one destination's connections.
#[derive(Debug, Default)]
pub struct Timers {
    /// Slots. None is before the one at half its place.
    heap: Vec<u32>,
    /// When the first one is to be looked at, if there is one: asked with every request.
    first: Tick,
}

impl Timers {
    /// The connection in `slot` is to be looked at when `at` has come, or earlier if it is already.
    pub fn set(&mut self, connections: &mut Slab<Connection>, slot: u32, at: Timestamp, now: Timestamp) {
        let at = Tick::of(at.max(now).min(now.after(FARTHEST)));
        let Some(Connection { timer, .. }) = connections.get_mut(slot as usize) else { return };
        let is_set = timer.place > 0;
        if is_set && !at.is_before(timer.at) {
            return;
        }
        timer.at = at;
        let mut place = timer.place;
        if !is_set {
            self.heap.push(slot);
            place = u32::try_from(self.heap.len()).unwrap_or(u32::MAX);
        }
        self.rise(connections, place, slot);
    }

    /// The connection in `slot` is not to be looked at.
    pub fn unset(&mut self, connections: &mut Slab<Connection>, slot: u32) {
        let Some(connection) = connections.get_mut(slot as usize) else { return };
        let place = std::mem::take(&mut connection.timer).place;
        if place > 0
            && let Some(last) = self.heap.pop().filter(|last| *last != slot)
        {
            self.sink(connections, place, last);
        }
    }

    /// A connection to look at, less than [`PRECISION`] before its time; its timer is set no longer.
    pub fn pop(&mut self, connections: &mut Slab<Connection>, now: Timestamp) -> Option<u32> {
        let slot = *self.heap.first()?;
        if Tick::of(now).is_before(self.first) {
            return None;
        }
        self.unset(connections, slot);
        Some(slot)
    }

    /// Puts `slot`, whose time is not after that of anyone below `place`, there or as far above as it belongs.
    fn rise(&mut self, connections: &mut Slab<Connection>, mut place: u32, slot: u32) {
        let at = time(connections, slot);
        while let Some((above, parent)) = self.get(place / 2) {
            if !at.is_before(time(connections, parent)) {
                break;
            }
            self.put(connections, place, parent);
            place = above;
        }
        self.put(connections, place, slot);
    }

    /// Puts `slot` at `place` or wherever else it belongs.
    fn sink(&mut self, connections: &mut Slab<Connection>, mut place: u32, slot: u32) {
        let at = time(connections, slot);
        while let Some(left) = self.below(connections, place.saturating_mul(2)) {
            let right = self.below(connections, left.0.saturating_add(1));
            let (below, child, earliest) = right.filter(|right| right.2.is_before(left.2)).unwrap_or(left);
            if !earliest.is_before(at) {
                break;
            }
            self.put(connections, place, child);
            place = below;
        }
        self.rise(connections, place, slot);
    }

    fn below(&self, connections: &Slab<Connection>, place: u32) -> Option<(u32, u32, Tick)> {
        let (place, slot) = self.get(place)?;
        Some((place, slot, time(connections, slot)))
    }

    fn get(&self, place: u32) -> Option<(u32, u32)> {
        Some((place, *self.heap.get(place.checked_sub(1)? as usize)?))
    }

    fn put(&mut self, connections: &mut Slab<Connection>, place: u32, slot: u32) {
        let (Some(entry), Some(connection)) =
            (self.heap.get_mut(place.saturating_sub(1) as usize), connections.get_mut(slot as usize))
        else {
            return;
        };
        *entry = slot;
        connection.timer.place = place;
        if place == 1 {
            self.first = connection.timer.at;
        }
    }
}

fn time(connections: &Slab<Connection>, slot: u32) -> Tick {
    connections.get(slot as usize).map(|connection| connection.timer.at).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time::Timestamp;

    fn connections(count: u32) -> Slab<Connection> {
        let mut connections = Slab::default();
        for context in 0..count {
            connections.insert(Connection::new(context, Timestamp::default()));
        }
        connections
    }

    proptest! {
        /// Also where 32 bits of milliseconds overflow.
        #[test]
        fn timers_come_in_the_order_of_their_times(
            steps in prop::collection::vec((0_u32..40, prop::option::of(0_u64..5_000)), 0..300),
            start in (1_u64 << 32).saturating_sub(3_000)..(1 << 32),
        ) {
            let (mut timers, mut connections) = (Timers::default(), connections(40));
            let mut expected = std::collections::BTreeMap::new();
            let now = Timestamp::from_millis(start);
            for (slot, ahead) in steps {
                let Some(ahead) = ahead else {
                    timers.unset(&mut connections, slot);
                    expected.remove(&slot);
                    continue;
                };
                timers.set(&mut connections, slot, now.after(Duration::from_millis(ahead)), now);
                let known = expected.entry(slot).or_insert(ahead);
                *known = ahead.min(*known);
            }
            for ahead in 0..5_000 {
                let now = now.after(Duration::from_millis(ahead));
                let mut due = Vec::new();
                due.extend(std::iter::from_fn(|| timers.pop(&mut connections, now)));
                due.sort_unstable();
                let at_this: Vec<u32> = expected.iter().filter(|(_, at)| **at == ahead).map(|(slot, _)| *slot).collect();
                prop_assert_eq!(due, at_this, "after {} ms", ahead);
            }
        }
    }

    #[test]
    fn what_is_far_ahead_is_looked_at_early_and_what_is_past_at_once() {
        let (mut timers, mut connections) = (Timers::default(), connections(2));
        let now = Timestamp::from_millis(10_000);
        timers.set(&mut connections, 0, Timestamp::from_nanos(u64::MAX), now);
        timers.set(&mut connections, 1, Timestamp::default(), now);
        assert_eq!([timers.pop(&mut connections, now), timers.pop(&mut connections, now)], [Some(1), None]);
        assert_eq!(timers.pop(&mut connections, now.after(FARTHEST)), Some(0));
    }
}
