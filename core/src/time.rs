//! Points on the worker's monotonic clock, and the text of durations.
//!
//! Nothing here reads a clock: a [`Timestamp`] is handed in by whoever called the core, so an hour of traffic is a loop
//! in a test.

use std::fmt;
use std::time::Duration;

/// A point on the worker's monotonic clock, in nanoseconds since an arbitrary start.
///
/// Subtraction saturates: a clock that seems to run backwards makes an age of zero, never a huge one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The timestamp `nanos` nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The timestamp `millis` milliseconds after the clock's start.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to `self`; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The point `duration` after `self`, or the end of time.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// The point `duration` before `self`, or the start of the clock.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

/// Whole nanoseconds of a duration; the largest number for one of more than 584 years.
pub(crate) fn nanos(duration: Duration) -> u64 {
    const LONGEST: u64 = u64::MAX / 1_000_000_000;
    // Not through `as_nanos` or a checked product: both are 128 bits wide, which is slow in Wasm.
    match duration.as_secs() {
        LONGEST.. => u64::MAX,
        seconds => seconds.wrapping_mul(1_000_000_000).wrapping_add(u64::from(duration.subsec_nanos())),
    }
}

/// What [`parse_duration`] accepts, for error texts.
pub const DURATION_FORMS: &str = r#"a duration such as "750ms", "55s", "4m" or "1h""#;

/// Reads a duration as the configuration writes it: a whole number and `ms`, `s`, `m` or `h`. `None` for anything else,
/// or for more than ten years.
///
/// ```
/// use std::time::Duration;
/// use idleguard_core::time::parse_duration;
/// assert_eq!(parse_duration("750ms"), Some(Duration::from_millis(750)));
/// assert_eq!(parse_duration("4m"), Some(Duration::from_secs(240)));
/// assert_eq!(parse_duration("4"), None);
/// ```
pub fn parse_duration(text: &str) -> Option<Duration> {
    const LONGEST: u64 = 10 * 365 * 24 * 3_600_000;
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(unit_at)?;
    let millis_per_unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let millis = number.parse::<u64>().ok()?.checked_mul(millis_per_unit)?;
    (millis <= LONGEST).then(|| Duration::from_millis(millis))
}

/// A duration as the configuration writes it: in hours, seconds or milliseconds, whichever comes out even; what lies below is cut.
///
/// ```
/// use std::time::Duration;
/// use idleguard_core::time::DurationText;
/// assert_eq!(DurationText(Duration::from_secs(240)).to_string(), "240s");
/// assert_eq!(DurationText(Duration::from_micros(2_006_400)).to_string(), "2006ms");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct DurationText(pub Duration);

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = millis(self.0);
        let units = [(3_600_000, "h"), (1_000, "s")];
        match units.iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", millis.checked_div(*unit).unwrap_or_default()),
            None => write!(f, "{millis}ms"),
        }
    }
}

/// Whole milliseconds of a duration, for metrics.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_whole_number_and_a_unit() {
        for (text, millis) in
            [("0s", 0), ("1ms", 1), ("750ms", 750), ("55s", 55_000), ("4m", 240_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "+1s",
            "1.5s",
            "1 s",
            " 1s",
            "1s ",
            "1S",
            "1d",
            "99999999999999999999h",
            "88000h",
            "1sé",
        ] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_clock_that_runs_backwards_makes_an_age_of_zero() {
        let (earlier, later) = (Timestamp::from_millis(5), Timestamp::from_millis(7));
        assert_eq!(later.since(earlier), Duration::from_millis(2));
        assert_eq!(earlier.since(later), Duration::ZERO);
        assert_eq!(earlier.before(Duration::from_secs(1)), Timestamp::from_nanos(0));
        assert_eq!(earlier.after(Duration::MAX), Timestamp::from_nanos(u64::MAX));
    }
}
