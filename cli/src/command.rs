//! Commands of the tool that need more than a call of the library.

pub(crate) mod recommend;
pub(crate) mod scout;

use std::time::Duration;

use idleguard_core::time::{DURATION_FORMS, parse_duration};
use idleguard_core::timeout::Margin;

/// A duration above zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).filter(|duration| !duration.is_zero()).ok_or_else(|| format!("want {DURATION_FORMS}"))
}

/// A margin as the plugin configuration has it.
pub(crate) fn margin(text: &str) -> Result<Margin, String> {
    let share = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    match (share, parse_duration(text)) {
        (Some(percent), _) if (0.0..50.0).contains(&percent) => Ok(Margin::Share(percent / 100.0)),
        (None, Some(margin)) => Ok(Margin::Fixed(margin)),
        _ => Err(format!("want a percentage below 50, such as 10%, or {DURATION_FORMS}")),
    }
}
