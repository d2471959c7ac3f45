//! The schema says what the filter's own parser says.

use idleguard::config;
use regex_lite::Regex;
use serde_json::{Map, Value, json};

use super::project_file;

/// Judges by the keywords that the schema uses; any other is a failure, so that none is passed over.
fn is_valid(root: &Value, schema: &Value, value: &Value) -> bool {
    if let Value::Bool(verdict) = schema {
        return *verdict;
    }
    let own = |key: &str| schema.get(key);
    let empty = Map::new();
    let properties = own("properties").and_then(Value::as_object).unwrap_or(&empty);
    schema.as_object().expect("a schema").iter().all(|(keyword, rule)| match keyword.as_str() {
        "$schema" | "$defs" | "title" | "description" | "default" | "format" | "properties" => true,
        "$ref" => {
            let place = rule.as_str().and_then(|text| text.strip_prefix('#')).expect("a reference within");
            is_valid(root, root.pointer(place).expect("its target"), value)
        }
        "type" => match rule.as_str().expect("one type") {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            other => panic!("type {other}"),
        },
        "const" => value == rule,
        "enum" => rule.as_array().expect("a list").contains(value),
        "oneOf" => rule.as_array().expect("a list").iter().filter(|one| is_valid(root, one, value)).count() == 1,
        "required" => rule
            .as_array()
            .expect("a list")
            .iter()
            .all(|key| value.as_object().is_none_or(|object| object.contains_key(key.as_str().expect("a key")))),
        "additionalProperties" => {
            value.as_object().into_iter().flatten().all(|(key, value)| match properties.get(key) {
                Some(_) => true,
                None => is_valid(root, rule, value),
            })
        }
        "items" => value.as_array().into_iter().flatten().all(|item| is_valid(root, rule, item)),
        "pattern" => {
            let pattern = Regex::new(rule.as_str().expect("a pattern")).expect("a regular expression");
            value.as_str().is_none_or(|text| pattern.is_match(text))
        }
        "minLength" => {
            value.as_str().is_none_or(|text| text.chars().count() as u64 >= rule.as_u64().expect("a number"))
        }
        "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().expect("a number")),
        "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().expect("a number")),
        other => panic!("the keyword {other} is not known here"),
    }) && value
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, value)| properties.get(key).is_none_or(|property| is_valid(root, property, value)))
}

#[test]
fn the_committed_schema_is_the_one_that_the_tool_prints() {
    let committed: Value = serde_json::from_str(&project_file("docs/schema.json")).expect("docs/schema.json is JSON");
    assert!(committed == idleguard_cli::schema::schema(), "run: idleguard schema > docs/schema.json");
}

fn policy(policy: &Value) -> Value {
    json!({"filter": "connection", "destination": "x", "policy": policy})
}

fn client_ip(client_ip: &Value) -> Value {
    json!({"filter": "http", "client_ip": client_ip})
}

#[test]
fn schema_and_parser_agree() {
    let schema = idleguard_cli::schema::schema();
    let accepted = [
        json!({"filter": "http"}),
        json!({"filter": "http", "destinations": {}}),
        json!({"filter": "http", "destinations": {"a.b|c": {"lb_idle_timeout": "60s"}, "*": {}}}),
        json!({"filter": "http", "advertise_keep_alive": "55s"}),
        json!({"filter": "connection", "destination": "x"}),
        json!({"filter": "connection", "destination": "**"}),
        json!({"filter": "connection", "destination": "x", "max_tracked_connections": 1}),
        policy(&json!({})),
        policy(&json!({"lb_idle_timeout": "learn", "initial_limit": "750ms", "sentinel_max": "1h"})),
        policy(&json!({"lb_idle_timeout": "4m", "margin": "0s"})),
        policy(&json!({"margin": "49.999%"})),
        policy(&json!({"margin": "010%", "max_lifetime": "168h", "lifetime_jitter": "99.9%"})),
        policy(&json!({"honor_keep_alive": false, "retry_stale": "off"})),
        policy(&json!({"probe": {"path": "/healthz", "host": "a:80"}})),
        client_ip(&json!({})),
        client_ip(&json!({"trusted_proxies": ["10.0.0.0/8", "::1", "private", "loopback"], "trusted_hops": 2})),
        client_ip(&json!({"trusted_hops": 2.0})),
        client_ip(&json!({"sources": ["cip", "forwarded"], "set": [], "strip": ["X-Odd_1"]})),
        client_ip(&json!({"on_invalid": "reject", "on_missing": "omit", "peer_filter_state": "p"})),
    ];
    let refused = [
        json!([]),
        json!({}),
        json!({"filter": "tcp"}),
        json!({"filter": "http", "destination": "x"}),
        json!({"filter": "http", "destinations": []}),
        json!({"filter": "http", "destinations": {"x": null}}),
        json!({"filter": "http", "client_ip": null}),
        json!({"filter": "http", "advertise_keep_alive": "0s"}),
        json!({"filter": "connection"}),
        json!({"filter": "connection", "destination": ""}),
        json!({"filter": "connection", "destination": "*"}),
        json!({"filter": "connection", "destination": 1}),
        json!({"filter": "connection", "destination": "x", "max_tracked_connections": 0}),
        json!({"filter": "connection", "destination": "x", "max_tracked_connections": "1"}),
        json!({"filter": "http", "max_tracked_connections": 1}),
        policy(&json!({"lb_idle_timeout": 60})),
        policy(&json!({"lb_idle_timeout": "60"})),
        policy(&json!({"lb_idle_timeout": "0s"})),
        policy(&json!({"lb_idle_timeout": "1.5s"})),
        policy(&json!({"lb_idle_timeout": null})),
        policy(&json!({"lb_idle_timeout": "60s "})),
        policy(&json!({"initial_limit": "learn"})),
        policy(&json!({"margin": "50%"})),
        policy(&json!({"margin": "120%"})),
        policy(&json!({"margin": "-1%"})),
        policy(&json!({"lifetime_jitter": "100%"})),
        policy(&json!({"lifetime_jitter": "1s"})),
        policy(&json!({"honor_keep_alive": "yes"})),
        policy(&json!({"retry_stale": "always"})),
        policy(&json!({"probe": {}})),
        policy(&json!({"probe": {"path": "healthz"}})),
        policy(&json!({"probe": {"path": "/a b"}})),
        policy(&json!({"probe": {"path": "/", "port": 1}})),
        policy(&json!({"marginn": "10%"})),
        client_ip(&json!({"trusted_proxies": "10.0.0.0/8"})),
        client_ip(&json!({"trusted_proxies": ["lb.example"]})),
        client_ip(&json!({"trusted_proxies": ["10.0.0.1:80 "]})),
        client_ip(&json!({"trusted_hops": 0})),
        client_ip(&json!({"trusted_hops": 1.5})),
        client_ip(&json!({"sources": [""]})),
        client_ip(&json!({"set": ["x forwarded"]})),
        client_ip(&json!({"strip": [1]})),
        client_ip(&json!({"on_invalid": "drop"})),
        client_ip(&json!({"peer_filter_state": ""})),
        client_ip(&json!({"odd": 1})),
    ];
    // What a schema can't say: a duration's bounds, one key against another, an address.
    let refused_by_the_parser_alone = [
        policy(&json!({"lb_idle_timeout": "99ms"})),
        policy(&json!({"max_lifetime": "169h"})),
        policy(&json!({"lb_idle_timeout": "60s", "margin": "30s"})),
        client_ip(&json!({"trusted_proxies": ["10.0.0.0/33"]})),
    ];
    let parser = |json: &Value| config::parse(json.to_string().as_bytes()).is_ok();
    for json in &accepted {
        assert!(parser(json), "the parser refuses {json}");
        assert!(is_valid(&schema, &schema, json), "the schema refuses {json}");
    }
    for json in &refused {
        assert!(!parser(json), "the parser accepts {json}");
        assert!(!is_valid(&schema, &schema, json), "the schema accepts {json}");
    }
    for json in &refused_by_the_parser_alone {
        assert!(!parser(json) && is_valid(&schema, &schema, json), "{json}");
    }
}

/// The defaults that the schema tells are those of the parser.
#[test]
fn defaults_are_the_parsers() {
    let schema = idleguard_cli::schema::schema();
    for (definition, wrap) in [("Policy", policy as fn(&Value) -> Value), ("ClientIp", client_ip)] {
        let properties = schema["$defs"][definition]["properties"].as_object().expect("properties");
        let defaults: serde_json::Map<String, Value> = properties
            .iter()
            .filter_map(|(key, property)| Some((key.clone(), property.get("default")?.clone())))
            .collect();
        assert!(defaults.len() >= 7, "{definition}: {defaults:?}");
        let read = |json: &Value| match config::parse(wrap(json).to_string().as_bytes()).expect("accepted").config {
            config::Config::Http(http) => format!("{:?}", http.client_ip),
            config::Config::Connection(connection) => format!("{:?}", connection.policy),
        };
        assert_eq!(read(&Value::Object(defaults)), read(&json!({})), "{definition}");
    }
    let most = &schema["oneOf"][1]["properties"]["max_tracked_connections"]["default"];
    let connection = config::parse(br#"{"filter": "connection", "destination": "x"}"#).expect("accepted").config;
    let config::Config::Connection(connection) = connection else { panic!("another filter") };
    assert_eq!(most, connection.max_tracked);
}
