//! The policy of one destination: how long its connections may idle, how long they may live, which requests are retried.
//!
//! Both filters read the same keys, so that one object can be pasted into both configurations.

use std::time::Duration;

use serde_json::Value;

use crate::config::{ConfigError, Section};
use crate::time::{DURATION_FORMS, parse_duration};

/// The shortest timeout or lifetime that can be configured: a reap comes 100 ms after its fence.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest timeout or lifetime that can be configured: a week.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// The policy of one destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The far end's idle timeout (`lb_idle_timeout`).
    pub lb_idle_timeout: LbIdleTimeout,
    /// The idle limit while the far end's idle timeout is unknown (`initial_limit`).
    pub initial_limit: Duration,
    /// How long a sentinel is watched before it is given up (`sentinel_max`).
    pub sentinel_max: Duration,
    /// What to ask the far end for, to find out its idle timeout actively (`probe`).
    pub probe: Option<Probe>,
    /// What is taken off the far end's idle timeout (`margin`).
    pub margin: Margin,
    /// The age at which a connection is retired between exchanges (`max_lifetime`).
    pub max_lifetime: Option<Duration>,
    /// The largest share by which a connection's lifetime is shortened at random, 0.0 to 1.0 (`lifetime_jitter`).
    pub lifetime_jitter: f64,
    /// Whether a `Keep-Alive` response header lowers the limit of its connection (`honor_keep_alive`).
    pub honor_keep_alive: bool,
    /// Which requests are retried after a reset (`retry_stale`).
    pub retry_stale: RetryStale,
}

/// The far end's idle timeout, as far as the operator knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LbIdleTimeout {
    /// Nobody has to know.
    Learn,
    /// It is this.
    Fixed(Duration),
}

/// A request that may be sent to the far end at any time, to find out its idle timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The request's path, starting with `/`.
    pub path: String,
    /// The request's authority; the destination's name if absent.
    pub host: Option<String>,
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

/// Which requests are sent once more after a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryStale {
    /// Those whose method is idempotent (RFC 9110 §9.2.2), when they may have met a reused connection.
    Idempotent,
    /// None.
    Off,
}

impl Probe {
    fn from_section(mut section: Section) -> Result<Self, ConfigError> {
        const PATH: &str = "a path that starts with \"/\", without blanks";
        const HOST: &str = "a host, with or without a port";
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let path = section.take_with("path", PATH, |value| {
            value.as_str().filter(|path| path.starts_with('/') && plain(path)).map(str::to_owned)
        })?;
        let host =
            section.take_with("host", HOST, |value| value.as_str().filter(|host| plain(host)).map(str::to_owned))?;
        let Some(path) = path else { return Err(section.error("path", &Value::Null, PATH)) };
        section.finish()?;
        Ok(Self { path, host })
    }
}

impl Policy {
    /// Takes a policy from its section of the configuration.
    ///
    /// # Errors
    /// If a key is unknown, or a value is not allowed.
    pub fn from_section(mut section: Section) -> Result<Self, ConfigError> {
        let lb_idle_timeout = section
            .take_with(
                "lb_idle_timeout",
                &format!("\"learn\", or {DURATION_FORMS}, from 100ms to 168h"),
                read_lb_idle_timeout,
            )?
            .unwrap_or(LbIdleTimeout::Learn);
        let initial_limit =
            section.take_duration("initial_limit", SHORTEST, LONGEST)?.unwrap_or(Duration::from_secs(4));
        let sentinel_max =
            section.take_duration("sentinel_max", SHORTEST, LONGEST)?.unwrap_or(Duration::from_secs(3600));
        let probe = section.take_section("probe")?.map(Probe::from_section).transpose()?;
        let margin = section
            .take_with("margin", "a percentage below 50% or a duration below half of lb_idle_timeout", |value| {
                read_margin(value, lb_idle_timeout)
            })?
            .unwrap_or(Margin::Share(0.1));
        let max_lifetime = section.take_duration("max_lifetime", SHORTEST, LONGEST)?;
        let lifetime_jitter = section
            .take_with("lifetime_jitter", "a percentage below 100%", |value| {
                parse_percentage(value.as_str()?).filter(|share| *share < 1.0)
            })?
            .unwrap_or(0.1);
        let honor_keep_alive = section.take_bool("honor_keep_alive")?.unwrap_or(true);
        let retry_stale = section
            .take_word("retry_stale", &[("idempotent", RetryStale::Idempotent), ("off", RetryStale::Off)])?
            .unwrap_or(RetryStale::Idempotent);
        section.finish()?;
        Ok(Self {
            lb_idle_timeout,
            initial_limit,
            sentinel_max,
            probe,
            margin,
            max_lifetime,
            lifetime_jitter,
            honor_keep_alive,
            retry_stale,
        })
    }

    /// The idle limit by this policy, while nothing has been learnt.
    pub fn idle_limit(&self) -> Duration {
        match self.lb_idle_timeout {
            LbIdleTimeout::Learn => self.initial_limit,
            LbIdleTimeout::Fixed(timeout) => self.margin.limit(timeout),
        }
    }

    /// The limit that a `Keep-Alive: timeout=N` response header sets for its connection: N less the margin, and at least
    /// one second less, because servers count in whole seconds and some close a little early. Zero for N of 0 or 1.
    pub fn hinted_limit(&self, timeout: Duration) -> Duration {
        self.margin.limit(timeout).min(timeout.saturating_sub(Duration::from_secs(1)))
    }

    /// The keys in which this policy and `other` differ.
    pub fn differing_keys(&self, other: &Self) -> Vec<&'static str> {
        [
            ("lb_idle_timeout", self.lb_idle_timeout != other.lb_idle_timeout),
            ("initial_limit", self.initial_limit != other.initial_limit),
            ("sentinel_max", self.sentinel_max != other.sentinel_max),
            ("probe", self.probe != other.probe),
            ("margin", self.margin != other.margin),
            ("max_lifetime", self.max_lifetime != other.max_lifetime),
            ("lifetime_jitter", self.lifetime_jitter.total_cmp(&other.lifetime_jitter).is_ne()),
            ("honor_keep_alive", self.honor_keep_alive != other.honor_keep_alive),
            ("retry_stale", self.retry_stale != other.retry_stale),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

fn read_lb_idle_timeout(value: &Value) -> Option<LbIdleTimeout> {
    match value.as_str()? {
        "learn" => Some(LbIdleTimeout::Learn),
        text => parse_duration(text).filter(|timeout| (SHORTEST..=LONGEST).contains(timeout)).map(LbIdleTimeout::Fixed),
    }
}

fn read_margin(value: &Value, lb_idle_timeout: LbIdleTimeout) -> Option<Margin> {
    let text = value.as_str()?;
    if let Some(share) = parse_percentage(text) {
        return (share < 0.5).then_some(Margin::Share(share));
    }
    let margin = parse_duration(text)?;
    let too_long = match lb_idle_timeout {
        LbIdleTimeout::Learn => false, // the limit stays at half of whatever is learnt
        LbIdleTimeout::Fixed(timeout) => margin.saturating_mul(2) >= timeout,
    };
    (!too_long).then_some(Margin::Fixed(margin))
}

/// Reads `"10%"` or `"2.5%"` as a share (0.1, 0.025): up to three digits, and up to three behind the point.
fn parse_percentage(text: &str) -> Option<f64> {
    let number = text.strip_suffix('%')?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| (1..=3).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let thousandths: u32 = format!("{whole}{fraction:0<3}").parse().ok()?;
    Some(f64::from(thousandths) / 100_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(value: Value) -> Result<Policy, String> {
        Section::try_new("policy", value).and_then(Policy::from_section).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_policy_is_complete() {
        let policy = policy(json!({})).unwrap();
        assert_eq!(policy.lb_idle_timeout, LbIdleTimeout::Learn);
        assert_eq!(policy.idle_limit(), Duration::from_secs(4));
        assert_eq!(policy.retry_stale, RetryStale::Idempotent);
        assert!(policy.honor_keep_alive && policy.max_lifetime.is_none());
    }

    #[test]
    fn the_limit_is_the_timeout_less_the_margin_and_at_least_half_of_it() {
        for (given, limit) in [
            (json!({"lb_idle_timeout": "60s"}), 54_000),
            (json!({"lb_idle_timeout": "60s", "margin": "2s"}), 58_000),
            (json!({"lb_idle_timeout": "2s"}), 1_800),
            (json!({"lb_idle_timeout": "333ms", "margin": "33ms"}), 300),
            (json!({"lb_idle_timeout": "10s", "margin": "2.5%"}), 9_750),
            (json!({"lb_idle_timeout": "10s", "margin": "0s"}), 10_000),
        ] {
            assert_eq!(policy(given.clone()).unwrap().idle_limit(), Duration::from_millis(limit), "{given}");
        }
        assert_eq!(Margin::Fixed(Duration::from_secs(9)).limit(Duration::from_secs(10)), Duration::from_secs(5));
    }

    #[test]
    fn a_hint_is_lowered_by_the_margin_and_at_least_a_second() {
        let policy = policy(json!({})).unwrap();
        for (hint, limit) in [(0, 0), (1, 0), (2, 1_000), (5, 4_000), (60, 54_000)] {
            assert_eq!(policy.hinted_limit(Duration::from_secs(hint)), Duration::from_millis(limit), "{hint}");
        }
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        for (given, message) in [
            (
                json!({"lb_idle_timeout": "60s", "margin": "120%"}),
                "policy.margin: \"120%\" is not allowed: a percentage below 50% or a duration below half of lb_idle_timeout",
            ),
            (
                json!({"lb_idle_timeout": "60s", "margin": "30s"}),
                "policy.margin: \"30s\" is not allowed: a percentage below 50% or a duration below half of lb_idle_timeout",
            ),
            (
                json!({"lb_idle_timeout": 60}),
                "policy.lb_idle_timeout: 60 is not allowed: \"learn\", or a duration such as \"750ms\", \"55s\", \"4m\" or \
                 \"1h\", from 100ms to 168h",
            ),
            (
                json!({"max_lifetime": "1ms"}),
                "policy.max_lifetime: \"1ms\" is not allowed: a duration such as \"750ms\", \"55s\", \"4m\" or \"1h\", from \
                 100ms to 168h",
            ),
            (
                json!({"lifetime_jitter": "100%"}),
                "policy.lifetime_jitter: \"100%\" is not allowed: a percentage below 100%",
            ),
            (
                json!({"retry_stale": "always"}),
                "policy.retry_stale: \"always\" is not allowed: \"idempotent\" or \"off\"",
            ),
        ] {
            assert_eq!(policy(given).unwrap_err(), message);
        }
        for odd in ["%", "-1%", "+1%", "1e1%", "NaN%", "inf%", ".5%", "1.2.3%", "0x1%", "1.%", "1.2345%"] {
            assert!(policy(json!({"margin": odd})).is_err(), "{odd}");
        }
    }

    #[test]
    fn policies_are_compared_by_key() {
        let (one, other) = (policy(json!({})).unwrap(), policy(json!({"margin": "1s", "retry_stale": "off"})).unwrap());
        assert_eq!(one.differing_keys(&other), ["margin", "retry_stale"]);
        assert!(one.differing_keys(&one).is_empty());
    }
}
