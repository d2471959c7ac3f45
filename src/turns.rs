//! The turns of a worker's event loop, as far as its ticks show them.
//!
//! Between the filter that admits a request and the connection filter that sees its first byte lie Envoy's router, its
//! pool and an in-process pipe: a few turns of the event loop, however long a turn takes when the worker is busy. So "by
//! now it must have been seen" is counted in ticks, at most one of which fires in a turn, and not in milliseconds.

use std::time::Duration;

use crate::time::{Timestamp, nanos};

/// Ticks after which a request that was admitted before them has been seen on its connection: admission, write and read
/// take a turn each, and the first tick may fire in the turn of the admission.
pub const TURNS_IN_PIPE: usize = 4;

/// What the ticks of one worker tell.
#[derive(Debug)]
pub struct Turns {
    /// In nanoseconds.
    period: u64,
    /// The latest ticks, the last one first.
    ticks: [Timestamp; TURNS_IN_PIPE],
    count: u64,
    late_in_a_row: usize,
}

/// What one tick allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Requests that were admitted up to here have been seen.
    pub settled: Timestamp,
    /// Whether connections may be closed in this tick: it came in time, or so many were late that waiting for one which
    /// isn't would keep every fenced connection open.
    pub may_close: bool,
}

impl Turns {
    /// No tick yet; from now on one every `period`.
    pub fn new(period: Duration, now: Timestamp) -> Self {
        Self { period: nanos(period), ticks: [now; TURNS_IN_PIPE], count: 0, late_in_a_row: 0 }
    }

    /// Changes the period.
    pub fn set_period(&mut self, period: Duration) {
        self.period = nanos(period);
    }

    /// The period.
    pub fn period(&self) -> Duration {
        Duration::from_nanos(self.period)
    }

    /// The number of ticks so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A tick at `now`. `None` if it comes so soon after the last one that both may be of the same turn (two filter
    /// configurations tick independently).
    pub fn tick(&mut self, now: Timestamp) -> Option<Turn> {
        let [last, .., settled] = self.ticks;
        let gap = now.as_nanos().saturating_sub(last.as_nanos());
        if self.count > 0 && gap < self.period / 2 {
            return None;
        }
        let late = self.count > 0 && gap / 2 > self.period;
        self.late_in_a_row = if late { self.late_in_a_row.saturating_add(1) } else { 0 };
        self.count = self.count.saturating_add(1);
        let [first, second, third, _] = self.ticks;
        self.ticks = [now, first, second, third];
        Some(Turn { settled, may_close: !late || self.late_in_a_row > TURNS_IN_PIPE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(25);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn what_was_admitted_four_ticks_ago_is_settled() {
        let mut turns = Turns::new(PERIOD, at(0));
        for (tick, settled) in [(25, 0), (50, 0), (75, 0), (100, 0), (125, 25), (150, 50)] {
            assert_eq!(turns.tick(at(tick)), Some(Turn { settled: at(settled), may_close: true }), "{tick}");
        }
    }

    #[test]
    fn a_late_tick_closes_nothing_unless_all_are_late() {
        let mut turns = Turns::new(PERIOD, at(0));
        turns.tick(at(25));
        assert!(!turns.tick(at(225)).unwrap().may_close);
        assert!(turns.tick(at(250)).unwrap().may_close);
        let late: Vec<bool> = (1..7).map(|n| turns.tick(at(250 + 100 * n)).unwrap().may_close).collect();
        assert_eq!(late, [false, false, false, false, true, true]);
    }

    #[test]
    fn two_ticks_in_one_turn_count_once() {
        let mut turns = Turns::new(PERIOD, at(0));
        assert!(turns.tick(at(25)).is_some());
        assert!(turns.tick(at(26)).is_none());
        assert!(turns.tick(at(50)).is_some());
        assert_eq!(turns.count(), 2);
    }
}
