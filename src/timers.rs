//! When to look at which connection: a timer wheel, whose lists are threaded through the connections themselves. Setting and
//! unsetting a timer is constant work, and costs no memory of its own.
//!
//! Each level has 64 lists, and each list spans as much time as the whole level below (Varghese and Lauck: Hashed and
//! Hierarchical Timing Wheels, 1987). At the bottom that is a millisecond. When the time of a higher list begins, its timers
//! move down.

use crate::connection::Connection;
use crate::slab::Slab;
use crate::time::Timestamp;

const NANOS_PER_MILLI: u64 = 1_000_000;

const LEVELS: u32 = 5;
const BITS: u32 = 6;

/// In milliseconds, 12 days: a later timer is set there, and then again. All but one of the highest level's lists, so that none
/// is begun and filled at once.
const FARTHEST: u64 = ((1 << BITS) - 1) << ((LEVELS - 1) * BITS);

const NONE: u32 = u32::MAX;
const UNSET: u32 = u32::MAX - 1;

/// A connection's timer.
#[derive(Clone, Copy, Debug)]
pub struct Timer {
    /// In milliseconds, modulo 2³².
    at: u32,
    /// Its neighbours in the list that it is in.
    next: u32,
    previous: u32,
}

impl Default for Timer {
    fn default() -> Self {
        Self { at: 0, next: NONE, previous: UNSET }
    }
}

/// One of the wheel's lists: that of `at` on one level.
#[derive(Clone, Copy)]
struct List {
    level: u32,
    at: u64,
}

impl List {
    /// When its time begins.
    fn start(self) -> u64 {
        let bits = self.level.wrapping_mul(BITS);
        self.at.wrapping_shr(bits).wrapping_shl(bits)
    }

    /// Its place on its level.
    fn place(self) -> u32 {
        let lists = self.at.wrapping_shr(self.level.wrapping_mul(BITS));
        u32::try_from(lists % (1 << BITS)).unwrap_or_default()
    }

    fn index(self) -> usize {
        (self.level << BITS | self.place()) as usize
    }
}

/// The timers of one destination's connections.
#[derive(Debug)]
pub struct Timers {
    /// The first connection of each list; made with the first timer.
    firsts: Vec<u32>,
    /// By level, a bit for each list that is not empty.
    occupied: [u64; LEVELS as usize],
    /// What was due before this has been handed out; in milliseconds.
    elapsed: u64,
    /// Until then there is nothing to do.
    idle_until: Timestamp,
}

impl Default for Timers {
    fn default() -> Self {
        Self { firsts: Vec::new(), occupied: [0; LEVELS as usize], elapsed: 0, idle_until: NEVER }
    }
}

const NEVER: Timestamp = Timestamp::from_nanos(u64::MAX);

impl Timers {
    /// The connection in `slot` is to be looked at when `at` has come, or earlier if it is already.
    pub fn set(&mut self, connections: &mut Slab<Connection>, slot: u32, at: Timestamp, now: Timestamp) {
        let Some(Connection { timer, .. }) = connections.get(slot as usize) else { return };
        let at = at.as_nanos() / NANOS_PER_MILLI;
        if timer.previous != UNSET {
            if at >= self.at(*timer) {
                return;
            }
            self.unset(connections, slot);
        }
        if self.occupied == [0; LEVELS as usize] {
            self.elapsed = self.elapsed.max(now.as_nanos() / NANOS_PER_MILLI);
            self.firsts.resize((LEVELS << BITS) as usize, NONE);
        }
        self.insert(connections, slot, at.clamp(self.elapsed, self.elapsed.saturating_add(FARTHEST)));
    }

    /// The connection in `slot` is not to be looked at.
    pub fn unset(&mut self, connections: &mut Slab<Connection>, slot: u32) {
        let Some(connection) = connections.get_mut(slot as usize) else { return };
        let timer = std::mem::take(&mut connection.timer);
        match timer.previous {
            UNSET => return,
            NONE => self.set_first(self.list(self.at(timer)), timer.next),
            previous => {
                if let Some(previous) = connections.get_mut(previous as usize) {
                    previous.timer.next = timer.next;
                }
            }
        }
        if let Some(next) = connections.get_mut(timer.next as usize) {
            next.timer.previous = timer.previous;
        }
    }

    /// A connection to look at, less than a millisecond before its time; its timer is set no longer.
    #[inline]
    pub fn pop(&mut self, connections: &mut Slab<Connection>, now: Timestamp) -> Option<u32> {
        if now < self.idle_until { None } else { self.pop_due(connections, now) }
    }

    #[inline(never)]
    fn pop_due(&mut self, connections: &mut Slab<Connection>, now: Timestamp) -> Option<u32> {
        let now = now.as_nanos() / NANOS_PER_MILLI;
        loop {
            let Some(list) = self.earliest() else {
                self.idle_until = NEVER;
                return None;
            };
            let start = list.start();
            if start > now {
                self.elapsed = self.elapsed.max(now);
                self.idle_until = Timestamp::from_millis(start);
                return None;
            }
            self.elapsed = start;
            let mut next = self.first(list);
            if list.level == 0 {
                self.unset(connections, next);
                return Some(next);
            }
            self.set_first(list, NONE);
            while let Some(Connection { timer, .. }) = connections.get(next as usize) {
                let (slot, at) = (next, self.at(*timer));
                next = timer.next;
                self.insert(connections, slot, at);
            }
        }
    }

    fn at(&self, timer: Timer) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "modulo 2³²")]
        let elapsed = self.elapsed as u32;
        self.elapsed.saturating_add(timer.at.wrapping_sub(elapsed).into())
    }

    /// The list of timers for `at`: on the lowest level that has one which has not begun.
    fn list(&self, at: u64) -> List {
        let differing = self.elapsed ^ at;
        let level = differing.checked_ilog2().unwrap_or_default() / BITS;
        List { level: level.min(LEVELS - 1), at }
    }

    fn insert(&mut self, connections: &mut Slab<Connection>, slot: u32, at: u64) {
        let list = self.list(at);
        let next = self.first(list);
        if let Some(next) = connections.get_mut(next as usize) {
            next.timer.previous = slot;
        }
        if let Some(connection) = connections.get_mut(slot as usize) {
            #[expect(clippy::cast_possible_truncation, reason = "modulo 2³²")]
            let at = at as u32;
            connection.timer = Timer { at, next, previous: NONE };
        }
        self.set_first(list, slot);
        self.idle_until = self.idle_until.min(Timestamp::from_millis(list.start()));
    }

    fn first(&self, list: List) -> u32 {
        self.firsts.get(list.index()).copied().unwrap_or(NONE)
    }

    fn set_first(&mut self, list: List, slot: u32) {
        if let (Some(first), Some(occupied)) =
            (self.firsts.get_mut(list.index()), self.occupied.get_mut(list.level as usize))
        {
            let bit = 1_u64.wrapping_shl(list.place());
            *occupied = if slot == NONE { *occupied & !bit } else { *occupied | bit };
            *first = slot;
        }
    }

    /// The list that begins first: those of a level begin before those of the next.
    fn earliest(&self) -> Option<List> {
        let (level, occupied) = (0..).zip(self.occupied).find(|(_, occupied)| *occupied != 0)?;
        let elapsed = List { level, at: self.elapsed };
        let ahead = occupied.rotate_right(elapsed.place()).trailing_zeros();
        Some(List { level, at: elapsed.at.saturating_add(u64::from(ahead).wrapping_shl(level.wrapping_mul(BITS))) })
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn connections(count: u32) -> Slab<Connection> {
        let mut connections = Slab::default();
        for context in 0..count {
            connections.insert(Connection::new(context, Timestamp::default()));
        }
        connections
    }

    /// What a step of the property does: so much later, sets a connection's timer so far ahead, or unsets it.
    fn step() -> impl Strategy<Value = (u64, u32, Option<u64>)> {
        let span = || (0_u32..28).prop_flat_map(|bits| 0..1_u64 << bits);
        (prop_oneof![Just(0), 0_u64..100, span()], 0_u32..20, prop::option::weighted(0.8, span()))
    }

    proptest! {
        /// Also where 32 bits of milliseconds, or the wheel's 30, overflow.
        #[test]
        fn whose_time_has_come_is_handed_out_and_nobody_else(
            steps in prop::collection::vec(step(), 0..200),
            start in prop::sample::select(vec![0, 1 << 30, 1 << 32, 1 << 36]),
            before in 0_u64..1 << 20,
        ) {
            let (mut timers, mut connections) = (Timers::default(), connections(20));
            let mut expected = std::collections::HashMap::new();
            let mut millis = u64::saturating_sub(start, before);
            for (later, slot, ahead) in steps {
                millis += later;
                let now = Timestamp::from_millis(millis);
                let mut due: Vec<u32> = std::iter::from_fn(|| timers.pop(&mut connections, now)).collect();
                due.sort_unstable();
                let mut all_due: Vec<u32> = expected.extract_if(|_, at| *at <= millis).map(|(slot, _)| slot).collect();
                all_due.sort_unstable();
                prop_assert_eq!(due, all_due, "at {}", millis);
                let Some(ahead) = ahead else {
                    timers.unset(&mut connections, slot);
                    expected.remove(&slot);
                    continue;
                };
                timers.set(&mut connections, slot, now.after(Duration::from_millis(ahead)), now);
                let at = expected.entry(slot).or_insert(u64::MAX);
                *at = (millis + ahead).min(*at);
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
        assert_eq!(timers.pop(&mut connections, now.after(Duration::from_millis(FARTHEST))), Some(0));
    }
}
