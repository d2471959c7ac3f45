//! The schema says what the filter's own parser says.

use idleguard_core::plugin;
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

fn destination(destination: &Value) -> Value {
    json!({"filter": "http", "destinations": {"x": destination}})
}

fn client_ip(client_ip: &Value) -> Value {
    json!({"filter": "http", "client_ip": client_ip})
}

fn scout(more: &Value) -> Value {
    let mut scout = json!({"filter": "scout", "destination": "x", "cluster": "x-scout"});
    scout.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    scout
}

#[test]
fn schema_and_parser_agree() {
    let schema = idleguard_cli::schema::schema();
    let accepted = [
        json!({"filter": "http", "destinations": {"a.b|c": {"lb_idle_timeout": "60s"}, "b": {}}}),
        json!({"filter": "http", "destinations": {}, "client_ip": {}}),
        destination(&json!({})),
        destination(&json!({"cluster": "outbound|443||api", "idle_timeout": "0s", "all_requests": true})),
        destination(&json!({"lanes": {"x-54s": "54s", "x-900ms": "900ms"}})),
        destination(&json!({"lb_idle_timeout": "learn", "initial_limit": "750ms"})),
        destination(&json!({"lb_idle_timeout": "4m", "margin": "0s"})),
        destination(&json!({"margin": "49.999%"})),
        destination(&json!({"margin": "010%"})),
        scout(&json!({})),
        scout(&json!({"path": "/healthz", "host": "a:80", "max_wait": "5m"})),
        client_ip(&json!({})),
        client_ip(&json!({"trusted_proxies": ["10.0.0.0/8", "::1", "private", "loopback", "unix"], "trusted_hops": 2})),
        client_ip(&json!({"trusted_hops": 2.0})),
        client_ip(&json!({"sources": ["cip", "forwarded"], "set": [], "strip": ["X-Odd_1"]})),
        client_ip(&json!({"on_invalid": "reject", "on_missing": "omit", "peer_filter_state": "p"})),
    ];
    let refused = [
        json!([]),
        json!({}),
        json!({"filter": "tcp"}),
        json!({"filter": "connection", "destination": "x"}),
        json!({"filter": "http", "client_ip": {}, "destination": "x"}),
        json!({"filter": "http", "destinations": []}),
        json!({"filter": "http", "destinations": {"x": null}}),
        json!({"filter": "http", "client_ip": null}),
        json!({"filter": "http", "client_ip": {}, "advertise_keep_alive": "55s"}),
        destination(&json!({"lb_idle_timeout": 60})),
        destination(&json!({"lb_idle_timeout": "60"})),
        destination(&json!({"lb_idle_timeout": "0s"})),
        destination(&json!({"lb_idle_timeout": "1.5s"})),
        destination(&json!({"lb_idle_timeout": null})),
        destination(&json!({"lb_idle_timeout": "60s "})),
        destination(&json!({"initial_limit": "learn"})),
        destination(&json!({"idle_timeout": "learn"})),
        destination(&json!({"margin": "50%"})),
        destination(&json!({"margin": "120%"})),
        destination(&json!({"margin": "-1%"})),
        destination(&json!({"all_requests": "yes"})),
        destination(&json!({"cluster": ""})),
        destination(&json!({"lanes": {"x-4s": "0s"}})),
        destination(&json!({"lanes": {"x-4s": 4}})),
        destination(&json!({"lanes": ["4s"]})),
        destination(&json!({"retry_stale": "off"})),
        destination(&json!({"marginn": "10%"})),
        json!({"filter": "scout", "destination": "x"}),
        json!({"filter": "scout", "cluster": "x"}),
        scout(&json!({"destination": "a=b"})),
        scout(&json!({"cluster": ""})),
        scout(&json!({"path": "healthz"})),
        scout(&json!({"path": "/a b"})),
        scout(&json!({"host": ""})),
        scout(&json!({"max_wait": "0s"})),
        scout(&json!({"policy": {}})),
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
        json!({"filter": "http"}),
        json!({"filter": "http", "destinations": {"*": {}}}),
        destination(&json!({"lb_idle_timeout": "99ms"})),
        destination(&json!({"idle_timeout": "169h"})),
        destination(&json!({"lanes": {"a": "4s", "b": "4000ms"}})),
        destination(&json!({"lb_idle_timeout": "60s", "margin": "30s"})),
        client_ip(&json!({"trusted_proxies": ["10.0.0.0/33"]})),
    ];
    let parser = |json: &Value| plugin::parse(json.to_string().as_bytes()).is_ok();
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
    let parts = [
        ("/$defs/Destination", destination as fn(&Value) -> Value, 6),
        ("/$defs/ClientIp", client_ip, 5),
        ("/oneOf/1", scout, 2),
    ];
    for (part, wrap, least) in parts {
        let properties = schema.pointer(part).expect("its part")["properties"].as_object().expect("properties");
        let defaults: Map<String, Value> = properties
            .iter()
            .filter_map(|(key, property)| Some((key.clone(), property.get("default")?.clone())))
            .collect();
        assert!(defaults.len() >= least, "{part}: {defaults:?}");
        let read =
            |json: &Value| format!("{:?}", plugin::parse(wrap(json).to_string().as_bytes()).expect("accepted").config);
        assert_eq!(read(&Value::Object(defaults)), read(&json!({})), "{part}");
    }
}
