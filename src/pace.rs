//! How many fenced connections to close in one tick.
//!
//! A close costs the worker some tens of microseconds: its event loop stands still while a thousand of them are carried out, and
//! every request waits. So closes are spread evenly over the time that is left until the far end would drop the first of them,
//! in ticks that are short while there are many.

use std::time::Duration;

/// Closes in one tick that nobody notices; with fewer there is nothing to spread.
pub const UNNOTICED: usize = 16;

/// The most in one tick. What is due in time otherwise comes a little late rather than all at once.
pub const MOST: usize = 512;

/// The time between ticks while more than [`UNNOTICED`] connections wait to be closed.
pub const BUSY_PERIOD: Duration = Duration::from_millis(25);

/// The longest time over which closes are spread: fenced connections are still open, and count against the cluster's
/// circuit breaker.
const LONGEST: Duration = Duration::from_secs(1);

/// The time over which closes may be spread if the far end drops a connection at `timeout` and it is fenced at `limit`. Half of
/// what lies between is left for ticks that come late, and for the way to the far end.
pub fn spread(timeout: Duration, limit: Duration) -> Duration {
    timeout.saturating_sub(limit).checked_div(2).unwrap_or_default().min(LONGEST)
}

/// How many of `waiting` connections to close now, if the first of them has `left` until all are to be closed and the next tick
/// comes after `period`.
pub fn closes(waiting: usize, left: Duration, period: Duration) -> usize {
    let ticks = left.as_micros().checked_div(period.as_micros()).unwrap_or_default().max(1);
    let share = usize::try_from((waiting as u128).div_ceil(ticks)).unwrap_or(MOST);
    share.clamp(UNNOTICED, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn closes_are_spread_evenly_and_end_in_time() {
        let (mut waiting, mut most) = (5_000, 0);
        for tick in 0..40 {
            let now = closes(waiting, SECOND - BUSY_PERIOD * tick, BUSY_PERIOD);
            most = most.max(now);
            waiting -= now.min(waiting);
        }
        assert_eq!((waiting, most), (0, 125));
    }

    #[test]
    fn ticks_that_were_late_are_made_up_for() {
        assert_eq!(closes(5_000, SECOND, BUSY_PERIOD), 125);
        assert_eq!(closes(5_000, SECOND / 2, BUSY_PERIOD), 250);
        assert_eq!(closes(5_000, Duration::ZERO, BUSY_PERIOD), MOST);
        assert_eq!(closes(300, Duration::ZERO, BUSY_PERIOD), 300);
    }

    #[test]
    fn a_few_are_closed_at_once() {
        assert_eq!(closes(10, SECOND * 3, BUSY_PERIOD), UNNOTICED);
        assert_eq!(closes(0, Duration::ZERO, Duration::ZERO), UNNOTICED);
    }

    #[test]
    fn the_spread_ends_half_way_to_the_timeout() {
        assert_eq!(spread(SECOND * 5, SECOND * 4), SECOND / 2);
        assert_eq!(spread(SECOND * 3600, SECOND * 3240), LONGEST);
        assert_eq!(spread(SECOND, SECOND * 2), Duration::ZERO);
    }
}
