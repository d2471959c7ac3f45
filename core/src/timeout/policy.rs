//! What the operator says about a destination: its cluster, its lanes, and what is known of the far end's idle timeout.

use std::time::Duration;

use serde_json::Value;

use crate::config::{ConfigError, Section, shorten};
use crate::time::{DURATION_FORMS, parse_duration};

/// The shortest idle timeout or limit that can be configured.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest: a week.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// One destination: what users' requests go to behind one load balancer.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Envoy's name of the base, the operator's own cluster (`cluster`).
    pub cluster: String,
    /// The `idle_timeout` that the base has in Envoy; [`Duration::MAX`] if it is switched off (`"0s"`).
    pub idle_timeout: Duration,
    /// Copies of the base with an `idle_timeout` of their own, the longest first. Empty: watch only.
    pub lanes: Vec<Lane>,
    /// The far end's idle timeout (`lb_idle_timeout`).
    pub lb_idle_timeout: LbIdleTimeout,
    /// Whether every route of the connection manager leads to the base (`all_requests`).
    pub all_requests: bool,
    /// The idle limit while nothing is known (`initial_limit`).
    pub initial_limit: Duration,
    /// What is taken off the far end's idle timeout (`margin`).
    pub margin: Margin,
}

/// A copy of the base with an `idle_timeout` of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Envoy's name of the cluster.
    pub cluster: String,
    /// The `idle_timeout` that it has in Envoy.
    pub idle_timeout: Duration,
    /// The value of the header that leads to it: `<destination>=<idle_timeout>`.
    pub token: String,
}

/// The far end's idle timeout, as far as the operator knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LbIdleTimeout {
    /// Nobody has to know.
    Learn,
    /// It is this.
    Fixed(Duration),
}

/// What is taken off the far end's idle timeout to get the idle limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Margin {
    /// A share of the timeout, 0.0 to below 0.5.
    Share(f64),
    /// A fixed time.
    Fixed(Duration),
}

impl Margin {
    /// The idle limit for a far end that drops connections at the idle age `timeout`: at least half of it, whatever the
    /// margin.
    pub fn limit(self, timeout: Duration) -> Duration {
        let margin = match self {
            Self::Share(share) => timeout.mul_f64(share.clamp(0.0, 0.5)),
            Self::Fixed(margin) => margin,
        };
        timeout.saturating_sub(margin).max(timeout.checked_div(2).unwrap_or_default())
    }
}

/// Keys of the first design, and what takes their place.
const RETIRED: &[(&str, &str)] = &[
    ("sentinel_max", "the scout watches idle connections now; its max_wait bounds how long"),
    (
        "probe",
        "a scout asks the far end now: {\"filter\": \"scout\", \"path\": …} on an internal listener (docs/scout.md)",
    ),
    ("max_lifetime", "max_connection_duration of the cluster's common_http_protocol_options does this"),
    ("lifetime_jitter", "Envoy has no jitter for max_connection_duration; leave the key out"),
    ("honor_keep_alive", "the scout heeds Keep-Alive: timeout; leave the key out"),
    ("retry_stale", "a retry policy of the route does this: idleguard inject --retries writes it"),
    ("max_tracked_connections", "what is watched is bounded by itself; leave the key out"),
];

impl Policy {
    /// Reads the section of the destination called `name`.
    ///
    /// # Errors
    /// If a key is unknown, or a value is not allowed.
    pub fn from_section(name: &str, mut section: Section) -> Result<Self, ConfigError> {
        let cluster = section.take_with("cluster", "the name of a cluster", cluster_name)?;
        let idle_timeout = section
            .take_with(
                "idle_timeout",
                &format!("{DURATION_FORMS}, up to 168h, as the cluster has it in Envoy; \"0s\" if it is switched off"),
                |value| match parse_duration(value.as_str()?)? {
                    Duration::ZERO => Some(Duration::MAX),
                    timeout => (SHORTEST..=LONGEST).contains(&timeout).then_some(timeout),
                },
            )?
            .unwrap_or(Duration::from_secs(3600));
        let cluster = cluster.unwrap_or_else(|| name.to_owned());
        let lanes = match section.take_section("lanes")? {
            Some(lanes) => take_lanes(name, &cluster, lanes)?,
            None => Vec::new(),
        };
        let lb_idle_timeout = section
            .take_with(
                "lb_idle_timeout",
                &format!("\"learn\", or {DURATION_FORMS}, from 100ms to 168h"),
                read_lb_idle_timeout,
            )?
            .unwrap_or(LbIdleTimeout::Learn);
        let all_requests = section.take_bool("all_requests")?.unwrap_or_default();
        let initial_limit =
            section.take_duration("initial_limit", SHORTEST, LONGEST)?.unwrap_or(Duration::from_secs(4));
        let margin = section
            .take_with("margin", "a percentage below 50% or a duration below half of lb_idle_timeout", |value| {
                read_margin(value, lb_idle_timeout)
            })?
            .unwrap_or(Margin::Share(0.1));
        section.finish_without(RETIRED)?;
        Ok(Self { cluster, idle_timeout, lanes, lb_idle_timeout, all_requests, initial_limit, margin })
    }

    /// The base's and the lanes' names, the base first.
    pub fn clusters(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.cluster.as_str()).chain(self.lanes.iter().map(|lane| lane.cluster.as_str()))
    }
}

fn cluster_name(value: &Value) -> Option<String> {
    value.as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

fn take_lanes(destination: &str, base: &str, section: Section) -> Result<Vec<Lane>, ConfigError> {
    const ALLOWED: &str = r#"the idle_timeout that this lane has in Envoy, such as "54s", from 100ms to 168h"#;
    let (path, entries) = section.into_entries();
    let mut lanes: Vec<Lane> = Vec::new();
    for (cluster, value) in entries {
        let refuse = |allowed: &str| {
            Err(ConfigError { key: format!("{path}.{cluster}"), given: shorten(&value), allowed: allowed.into() })
        };
        let text = value.as_str().unwrap_or_default();
        let Some(idle_timeout) = parse_duration(text).filter(|timeout| (SHORTEST..=LONGEST).contains(timeout)) else {
            return refuse(ALLOWED);
        };
        if cluster == base {
            return refuse("a cluster of its own; this one is the base, whose idle_timeout stands beside lanes");
        }
        if lanes.iter().any(|lane| lane.idle_timeout == idle_timeout) {
            return refuse("an idle_timeout that no other lane of this destination has");
        }
        let at = lanes.partition_point(|lane| lane.idle_timeout > idle_timeout);
        lanes.insert(at, Lane { cluster, idle_timeout, token: format!("{destination}={text}") });
    }
    Ok(lanes)
}

fn read_lb_idle_timeout(value: &Value) -> Option<LbIdleTimeout> {
    match value.as_str()? {
        "learn" => Some(LbIdleTimeout::Learn),
        text => {
            let timeout = parse_duration(text)?;
            (SHORTEST..=LONGEST).contains(&timeout).then_some(LbIdleTimeout::Fixed(timeout))
        }
    }
}

fn read_margin(value: &Value, lb_idle_timeout: LbIdleTimeout) -> Option<Margin> {
    let text = value.as_str()?;
    if let Some(number) = text.strip_suffix('%') {
        // Not through `f64`: the standard library's reader of fractions is larger than the rest of this module.
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits =
            |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole, 3) || !digits(fraction, 3) {
            return None;
        }
        let thousandths: u32 = format!("{whole}{fraction:0<3}").parse().ok()?;
        return (thousandths < 50_000).then(|| Margin::Share(f64::from(thousandths) / 100_000.0));
    }
    let margin = parse_duration(text)?;
    let is_allowed = match lb_idle_timeout {
        LbIdleTimeout::Fixed(timeout) => margin.saturating_mul(2) < timeout,
        LbIdleTimeout::Learn => margin <= LONGEST,
    };
    is_allowed.then_some(Margin::Fixed(margin))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "a test that panics fails")]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(value: Value) -> Result<Policy, String> {
        let section = Section::try_new("destinations.payments", value).unwrap();
        Policy::from_section("payments", section).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_is_watch_only() {
        let policy = policy(json!({})).unwrap();
        assert_eq!(policy.cluster, "payments");
        assert_eq!(policy.idle_timeout, Duration::from_secs(3600));
        assert_eq!(policy.initial_limit, Duration::from_secs(4));
        assert!(policy.lanes.is_empty() && !policy.all_requests && policy.lb_idle_timeout == LbIdleTimeout::Learn);
    }

    #[test]
    fn lanes_are_ordered_and_their_tokens_are_as_written() {
        let policy =
            policy(json!({"cluster": "outbound|443||x", "lanes": {"b": "900ms", "a": "4000ms", "c": "54s"}})).unwrap();
        let lanes: Vec<_> = policy.lanes.iter().map(|lane| (lane.cluster.as_str(), lane.token.as_str())).collect();
        assert_eq!(lanes, [("c", "payments=54s"), ("a", "payments=4000ms"), ("b", "payments=900ms")]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_key() {
        for (value, message) in [
            (json!({"lanes": {"a": "4"}}), "destinations.payments.lanes.a: \"4\" is not allowed: the idle_timeout"),
            (
                json!({"lanes": {"payments": "4s"}}),
                "destinations.payments.lanes.payments: \"4s\" is not allowed: a cluster of its own",
            ),
            (
                json!({"lanes": {"a": "4s", "b": "4000ms"}}),
                "destinations.payments.lanes.b: \"4000ms\" is not allowed: an idle_timeout that no",
            ),
            (
                json!({"lb_idle_timeout": "60s", "margin": "30s"}),
                "destinations.payments.margin: \"30s\" is not allowed",
            ),
            (json!({"margin": ".5%"}), "destinations.payments.margin: \".5%\" is not allowed"),
            (json!({"margin": "50%"}), "destinations.payments.margin: \"50%\" is not allowed: a percentage below 50%"),
            (
                json!({"probe": {"path": "/"}}),
                "destinations.payments.probe: {\"path\":\"/\"} is not allowed: a key of idleguard 0.1: a scout asks",
            ),
            (
                json!({"lb_idle": "60s"}),
                "destinations.payments.lb_idle: \"60s\" is not allowed: an unknown key; the keys here are cluster,",
            ),
        ] {
            let refusal = policy(value).unwrap_err();
            assert!(refusal.starts_with(message), "{refusal}");
        }
    }

    #[test]
    fn a_margin_may_have_a_fraction() {
        for (text, share) in [("10%", 0.1), ("0%", 0.0), ("12.5%", 0.125), ("0.25%", 0.0025), ("49.999%", 0.49999)] {
            assert_eq!(policy(json!({ "margin": text })).unwrap().margin, Margin::Share(share), "{text}");
        }
    }

    #[test]
    fn a_limit_is_the_timeout_less_the_margin_and_at_least_half() {
        let second = Duration::from_secs(1);
        for (margin, timeout, limit) in [
            (Margin::Share(0.1), 60 * second, 54 * second),
            (Margin::Fixed(second), 60 * second, 59 * second),
            (Margin::Fixed(60 * second), 60 * second, 30 * second),
        ] {
            assert_eq!(margin.limit(timeout), limit, "{margin:?}");
        }
    }
}
