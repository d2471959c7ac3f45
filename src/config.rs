//! The plugin configuration: JSON in, a [`Config`] or a [`ConfigError`] out.
//!
//! The two filters are one module with one configuration format, told apart by the key `filter`. What is refused here
//! stops Envoy's start (or the update), so whatever a request could stumble over must be refused here.

mod json_text;
pub mod protobuf_struct;
pub mod section;

use std::time::Duration;

use serde_json::Value;

pub(crate) use section::shorten;
pub use section::{ConfigError, Section};

use crate::client_ip::ClientIp;
use crate::policy::{LbIdleTimeout, Policy};

/// The configuration of one filter.
#[derive(Debug)]
pub enum Config {
    /// `"filter": "http"`.
    Http(Box<HttpConfig>),
    /// `"filter": "connection"`.
    Connection(ConnectionConfig),
}

/// The configuration of the HTTP filter.
#[derive(Debug)]
pub struct HttpConfig {
    /// Policies by the name of the route's cluster.
    pub destinations: Vec<(String, Policy)>,
    /// The policy of every cluster that has none of its own (`"*"`).
    pub any_destination: Option<Policy>,
    /// Who the client is; `None` leaves all headers alone.
    pub client_ip: Option<ClientIp>,
    /// The `Keep-Alive: timeout` that HTTP/1.1 clients are told, in whole seconds (`advertise_keep_alive`).
    pub advertise_keep_alive: Option<Duration>,
}

/// The configuration of the connection filter.
#[derive(Debug)]
pub struct ConnectionConfig {
    /// The name under which the HTTP filter knows the cluster.
    pub destination: String,
    /// What holds for its connections.
    pub policy: Policy,
    /// Connections that one worker tracks, those of other destinations included (`max_tracked_connections`).
    pub max_tracked: usize,
}

/// What [`ConnectionConfig::max_tracked`] is if nothing is said.
const MAX_TRACKED: u32 = 100_000;

/// A configuration, and what its author should know about it.
#[derive(Debug)]
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// What is allowed but probably not meant, each a whole sentence that starts with the key.
    pub warnings: Vec<String>,
}

/// Reads a plugin configuration: JSON, or a serialized `google.protobuf.Struct`.
///
/// ```
/// use idleguard::config::{Config, parse};
/// let json = r#"{"filter": "connection", "destination": "payments", "policy": {"lb_idle_timeout": "60s"}}"#;
/// assert!(matches!(parse(json.as_bytes()).unwrap().config, Config::Connection(_)));
/// let error = parse(br#"{"filter": "connection"}"#).unwrap_err();
/// assert_eq!(error.to_string(), "destination: null is not allowed: the name of the cluster, as the HTTP filter knows it");
/// ```
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(json: &[u8]) -> Result<Checked, ConfigError> {
    let value: Value = match serde_json::from_slice(json) {
        Ok(value) => value,
        Err(error) => protobuf_struct::parse(json).filter(|_| !json.is_empty()).ok_or_else(|| ConfigError {
            key: String::new(),
            given: if json.is_empty() { "nothing".into() } else { format!("text that is no JSON ({error})") },
            allowed: r#"a JSON object such as {"filter": "http", "destinations": {"payments": {}}}"#.into(),
        })?,
    };
    let mut section = Section::try_new("", value)?;
    #[derive(Clone, Copy)]
    enum Kind {
        Http,
        Connection,
    }
    const KINDS: [(&str, Kind); 2] = [("http", Kind::Http), ("connection", Kind::Connection)];
    match section.take_word("filter", &KINDS)? {
        Some(Kind::Http) => parse_http(section),
        Some(Kind::Connection) => parse_connection(section),
        None => Err(section.error("filter", &Value::Null, "\"http\" or \"connection\"")),
    }
}

fn parse_http(mut section: Section) -> Result<Checked, ConfigError> {
    let mut warnings = Vec::new();
    let (mut destinations, mut any_destination) = (Vec::new(), None);
    if let Some(named) = section.take_section("destinations")? {
        let (path, entries) = named.into_entries();
        for (name, value) in entries {
            let path = format!("{path}.{name}");
            let policy = Section::try_new(&path, value).and_then(Policy::from_section)?;
            warnings.extend(warning_of_probe(&path, &policy));
            match name.as_str() {
                "*" => any_destination = Some(policy),
                _ => destinations.push((name, policy)),
            }
        }
    }
    let client_ip = match section.take_section("client_ip")? {
        None => None,
        Some(section) => {
            let (client_ip, found) = ClientIp::from_section(section)?;
            warnings.extend(found);
            Some(client_ip)
        }
    };
    let longest = Duration::from_secs(7 * 24 * 3600);
    let advertise_keep_alive = section.take_duration("advertise_keep_alive", Duration::from_secs(1), longest)?;
    section.finish()?;
    let config = Config::Http(Box::new(HttpConfig { destinations, any_destination, client_ip, advertise_keep_alive }));
    Ok(Checked { config, warnings })
}

fn parse_connection(mut section: Section) -> Result<Checked, ConfigError> {
    const NAME: &str = "the name of the cluster, as the HTTP filter knows it";
    let name = section.take_with("destination", NAME, |value| {
        value.as_str().filter(|name| !name.is_empty() && *name != "*").map(str::to_owned)
    })?;
    let Some(destination) = name else { return Err(section.error("destination", &Value::Null, NAME)) };
    let policy = match section.take_section("policy")? {
        Some(policy) => policy,
        None => Section::try_new("policy", Value::Object(serde_json::Map::new()))?,
    };
    let policy = Policy::from_section(policy)?;
    let max_tracked = section.take_whole_number("max_tracked_connections", 1)?.unwrap_or(MAX_TRACKED) as usize;
    section.finish()?;
    let warnings = warning_of_probe("policy", &policy).into_iter().collect();
    Ok(Checked { config: Config::Connection(ConnectionConfig { destination, policy, max_tracked }), warnings })
}

/// Says that a probe is configured in vain.
fn warning_of_probe(path: &str, policy: &Policy) -> Option<String> {
    let is_known = policy.lb_idle_timeout != LbIdleTimeout::Learn;
    (is_known && policy.probe.is_some()).then(|| {
        format!("{path}.probe: no probes are sent, because lb_idle_timeout is given; \"learn\" would use them")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_beside_a_known_timeout_is_accepted_with_a_warning() {
        let warnings = |policy: &str| {
            let json = format!(r#"{{"filter": "connection", "destination": "x", "policy": {policy}}}"#);
            parse(json.as_bytes()).unwrap().warnings
        };
        let vain = warnings(r#"{"lb_idle_timeout": "60s", "probe": {"path": "/healthz"}}"#);
        assert!(vain[0].starts_with("policy.probe: no probes are sent, because lb_idle_timeout is given"), "{vain:?}");
        assert!(warnings(r#"{"probe": {"path": "/healthz"}}"#).is_empty());
    }

    fn refusal(json: &str) -> String {
        parse(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_destination_may_have_any_name_and_a_star_is_the_rest() {
        let json = r#"{"filter": "http", "destinations": {"a.b|c": {"lb_idle_timeout": "60s"}, "*": {}}}"#;
        let Config::Http(http) = parse(json.as_bytes()).unwrap().config else { panic!("not http") };
        assert_eq!(http.destinations.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a.b|c"]);
        assert!(http.any_destination.is_some() && http.client_ip.is_none());
    }

    #[test]
    fn a_refusal_names_the_key_what_was_given_and_what_is_allowed() {
        for (json, message) in [
            ("", "configuration: nothing is not allowed"),
            ("[]", "configuration: [] is not allowed: a JSON object"),
            (
                "{",
                "configuration: text that is no JSON (EOF while parsing an object at line 1 column 1) is not allowed",
            ),
            ("{}", "filter: null is not allowed: \"http\" or \"connection\""),
            (r#"{"filter": "tcp"}"#, "filter: \"tcp\" is not allowed: \"http\" or \"connection\""),
            (
                r#"{"filter": "http", "destinations": {"payments": {"lb_idle_timeout": "60s", "margin": "120%"}}}"#,
                "destinations.payments.margin: \"120%\" is not allowed: a percentage below 50% or a duration below half of \
                 lb_idle_timeout",
            ),
            (r#"{"filter": "http", "destinations": []}"#, "destinations: [] is not allowed: a JSON object"),
            (
                r#"{"filter": "http", "destination": "x"}"#,
                "destination: \"x\" is not allowed: an unknown key; the keys here",
            ),
            (
                r#"{"filter": "connection", "destination": ""}"#,
                "destination: \"\" is not allowed: the name of the cluster",
            ),
            (r#"{"filter": "connection", "destination": "*"}"#, "destination: \"*\" is not allowed: the name"),
            (
                r#"{"filter": "connection", "destination": "x", "policy": {"marginn": "1s"}}"#,
                "policy.marginn: \"1s\" is not allowed: an unknown key; the keys here are lb_idle_timeout, initial_limit,",
            ),
        ] {
            let refusal = refusal(json);
            assert!(refusal.starts_with(message), "{refusal}");
        }
    }
}
