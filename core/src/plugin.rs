//! The plugin configuration as a whole: bytes in, a [`Config`] or a [`ConfigError`] out.
//!
//! Both filters are one module with one configuration format, told apart by the key `filter`. What is refused here stops Envoy's
//! start (or the update), so whatever a request could stumble over must be refused here.

use std::time::Duration;

use serde_json::Value;

use crate::client_ip::ClientIp;
use crate::config::{self, ConfigError, Section};
use crate::timeout::Policy;

/// The configuration of one filter.
#[derive(Debug)]
pub enum Config {
    /// `"filter": "http"`.
    Http(Box<HttpConfig>),
    /// `"filter": "scout"`.
    Scout(ScoutConfig),
}

/// The configuration of the HTTP filter.
#[derive(Debug)]
pub struct HttpConfig {
    /// By name; no two have a cluster in common.
    pub destinations: Vec<(String, Policy)>,
    /// Who the client is; `None` leaves all headers alone.
    pub client_ip: Option<ClientIp>,
}

/// The configuration of the scout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoutConfig {
    /// Whose idle timeout it finds out.
    pub destination: String,
    /// The cluster that leads to the internal listener on which the scout stands.
    pub cluster: String,
    /// The path of its requests.
    pub path: String,
    /// Their authority.
    pub host: String,
    /// How long it waits on one connection.
    pub max_wait: Duration,
}

/// A configuration, and what its author should know about it.
#[derive(Debug)]
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// What is allowed but probably not meant, each a whole sentence that starts with the key.
    pub warnings: Vec<String>,
}

/// Destinations of one filter.
const MAX_DESTINATIONS: usize = 1_000;

/// Bytes in the name of a destination: it becomes a part of the names of metrics, and of a header's value.
const MAX_NAME: usize = 256;

/// Reads a plugin configuration: JSON, or a serialized `google.protobuf.Struct`.
///
/// ```
/// use idleguard_core::plugin::{Config, parse};
/// let json = r#"{"filter": "http", "destinations": {"payments": {"lanes": {"payments-4s": "4s"}}}}"#;
/// assert!(matches!(parse(json.as_bytes()).unwrap().config, Config::Http(_)));
/// let error = parse(br#"{"filter": "scout"}"#).unwrap_err();
/// assert_eq!(error.to_string(), "destination: null is not allowed: the name of the destination, as the HTTP filter has it");
/// ```
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Checked, ConfigError> {
    const FILTERS: &str = "\"http\" or \"scout\"";
    let mut section = Section::try_new("", config::read(bytes)?)?;
    let filter = section.take("filter").unwrap_or(Value::Null);
    match filter.as_str() {
        Some("http") => parse_http(section),
        Some("scout") => parse_scout(section),
        Some("connection") => Err(section.error(
            "filter",
            &filter,
            format!(
                "{FILTERS}. The connection filter of idleguard 0.1 is gone: take it out, with its internal listener and the \
                 cluster behind that, and give the destination lanes (CHANGELOG.md, 0.2; idleguard inject writes them)"
            ),
        )),
        _ => Err(section.error("filter", &filter, FILTERS)),
    }
}

fn parse_http(mut section: Section) -> Result<Checked, ConfigError> {
    let destinations = match section.take_section("destinations")? {
        Some(named) => take_destinations(named)?,
        None => Vec::new(),
    };
    let (client_ip, warnings) = match section.take_section("client_ip")? {
        Some(section) => {
            let (client_ip, warnings) = ClientIp::from_section(section)?;
            (Some(client_ip), warnings)
        }
        None => (None, Vec::new()),
    };
    if destinations.is_empty() && client_ip.is_none() {
        return Err(section.error("destinations", &Value::Null, "at least one destination, or client_ip beside it"));
    }
    section.finish_without(&[(
        "advertise_keep_alive",
        "response_headers_to_add of the route configuration writes a keep-alive header",
    )])?;
    Ok(Checked { config: Config::Http(Box::new(HttpConfig { destinations, client_ip })), warnings })
}

fn take_destinations(named: Section) -> Result<Vec<(String, Policy)>, ConfigError> {
    let (path, entries) = named.into_entries();
    let mut destinations: Vec<(String, Policy)> = Vec::new();
    for (name, value) in entries {
        let refuse = |key: &str, given: &str, allowed: &str| {
            let given = config::shorten(&given.into());
            Err(ConfigError { key: format!("{path}.{key}"), given, allowed: allowed.into() })
        };
        if name == "*" {
            return refuse(
                "*",
                &name,
                "the name of one destination: lanes are made for a cluster, so there is no rest",
            );
        }
        if name.is_empty() || name.len() > MAX_NAME || name.contains(|c: char| c == '=' || c.is_control()) {
            return refuse(&name, &name, "a name of up to 256 bytes, without \"=\" and control characters");
        }
        if destinations.len() >= MAX_DESTINATIONS {
            return refuse(&name, &name, "at most 1000 destinations");
        }
        let policy = Policy::from_section(&name, Section::try_new(format!("{path}.{name}"), value)?)?;
        let taken =
            |cluster: &&str| destinations.iter().any(|(_, other)| other.clusters().any(|known| known == *cluster));
        if let Some(cluster) = policy.clusters().find(taken) {
            return refuse(&name, cluster, "clusters that no other destination has, as its base or a lane");
        }
        destinations.push((name, policy));
    }
    Ok(destinations)
}

fn parse_scout(mut section: Section) -> Result<Checked, ConfigError> {
    const DESTINATION: &str = "the name of the destination, as the HTTP filter has it";
    const CLUSTER: &str = "the cluster that leads to the internal listener of this filter";
    const PATH: &str = "a path that starts with \"/\", without blanks";
    const HOST: &str = "a host, with or without a port";
    let is_name = |text: &&str| {
        !text.is_empty() && text.len() <= MAX_NAME && !text.contains(|c: char| c == '=' || c.is_control())
    };
    let is_plain = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let mut take = |key, allowed: &str, is_allowed: &dyn Fn(&&str) -> bool| {
        section.take_with(key, allowed, |value| value.as_str().filter(is_allowed).map(str::to_owned))
    };
    let destination = take("destination", DESTINATION, &is_name)?;
    let cluster = take("cluster", CLUSTER, &|name| !name.is_empty())?;
    let path = take("path", PATH, &|path| path.starts_with('/') && is_plain(path))?.unwrap_or_else(|| "/".into());
    let host = take("host", HOST, &is_plain)?;
    let max_wait = section
        .take_duration("max_wait", Duration::from_secs(1), Duration::from_secs(24 * 3600))?
        .unwrap_or(Duration::from_secs(3600));
    let Some(destination) = destination else { return Err(section.error("destination", &Value::Null, DESTINATION)) };
    let Some(cluster) = cluster else { return Err(section.error("cluster", &Value::Null, CLUSTER)) };
    section.finish()?;
    let host = host.unwrap_or_else(|| destination.clone());
    let config = Config::Scout(ScoutConfig { destination, cluster, path, host, max_wait });
    Ok(Checked { config, warnings: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> String {
        parse(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_scout_asks_for_the_root_of_its_destination_unless_told() {
        let json = r#"{"filter": "scout", "destination": "payments", "cluster": "payments-scout"}"#;
        let Config::Scout(scout) = parse(json.as_bytes()).unwrap().config else { panic!("no scout") };
        assert_eq!((scout.path.as_str(), scout.host.as_str()), ("/", "payments"));
        assert_eq!(scout.max_wait, Duration::from_secs(3600));
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
            ("{}", "filter: null is not allowed: \"http\" or \"scout\""),
            (r#"{"filter": "tcp"}"#, "filter: \"tcp\" is not allowed: \"http\" or \"scout\""),
            (
                r#"{"filter": "connection", "destination": "x"}"#,
                "filter: \"connection\" is not allowed: \"http\" or \"scout\". The connection filter of idleguard 0.1 is gone",
            ),
            (r#"{"filter": "http"}"#, "destinations: null is not allowed: at least one destination, or client_ip"),
            (r#"{"filter": "http", "destinations": []}"#, "destinations: [] is not allowed: a JSON object"),
            (
                r#"{"filter": "http", "destinations": {"*": {}}}"#,
                "destinations.*: \"*\" is not allowed: the name of one",
            ),
            (
                r#"{"filter": "http", "destinations": {"a=b": {}}}"#,
                "destinations.a=b: \"a=b\" is not allowed: a name of up to",
            ),
            (
                r#"{"filter": "http", "destinations": {"a": {"lanes": {"x": "4s"}}, "b": {"cluster": "x"}}}"#,
                "destinations.b: \"x\" is not allowed: clusters that no other destination has",
            ),
            (
                r#"{"filter": "http", "client_ip": {}, "destination": "x"}"#,
                "destination: \"x\" is not allowed: an unknown key",
            ),
            (
                r#"{"filter": "http", "client_ip": {}, "advertise_keep_alive": "5s"}"#,
                "advertise_keep_alive: \"5s\" is not allowed: a key of idleguard 0.1: response_headers",
            ),
            (
                r#"{"filter": "scout", "destination": "x", "cluster": "y", "path": "z"}"#,
                "path: \"z\" is not allowed: a path",
            ),
        ] {
            let refusal = refusal(json);
            assert!(refusal.starts_with(message), "{refusal}");
        }
    }
}
