//! The liberties that protobuf's JSON takes, and Envoy with it: names in lowerCamelCase, and one item where a list is wanted.

use serde_json::{Map, Value};

/// Lists that people write as one item, where this tool looks.
const LISTS: &[&str] = &[
    "access_log",
    "bootstrap_extensions",
    "clusters",
    "configs",
    "domains",
    "early_header_mutation_extensions",
    "endpoints",
    "filter_chains",
    "filters",
    "headers",
    "health_checks",
    "http_filters",
    "lb_endpoints",
    "listener_filters",
    "listeners",
    "mutations",
    "on_downstream_data",
    "on_downstream_tls_handshake",
    "on_new_connection",
    "original_ip_detection_extensions",
    "request_headers_to_add",
    "request_headers_to_remove",
    "request_mirror_policies",
    "resources",
    "retriable_request_headers",
    "routes",
    "scoped_route_configurations",
    "stats_tags",
    "thresholds",
    "upgrade_configs",
    "virtual_clusters",
    "virtual_hosts",
];

/// Below these, names are somebody's own: `google.protobuf.Struct`s.
const OPAQUE: &[&str] = &["default_subset", "metadata", "static_layer", "transport_socket_matches"];

/// The names in these are somebody's own; what they stand for is not.
const NAMED: &[&str] = &["typed_extension_protocol_options", "typed_filter_metadata", "typed_per_filter_config"];

/// The same configuration with names in snake_case, and lists where lists are wanted.
pub fn canonical(raw: &Value) -> Value {
    match raw {
        Value::Object(entries) => {
            let is_struct = entries.get("@type").and_then(Value::as_str).is_some_and(|name| name.ends_with(".Struct"));
            let entry = |(name, value): (&String, &Value)| {
                let folded = folded(name).unwrap_or_else(|| name.clone());
                let value = match value {
                    _ if OPAQUE.contains(&folded.as_str()) || is_struct && name == "value" => value.clone(),
                    Value::Object(named) if NAMED.contains(&folded.as_str()) => {
                        named.iter().map(|(name, value)| (name.clone(), canonical(value))).collect()
                    }
                    Value::Array(_) | Value::Null => canonical(value),
                    one if LISTS.contains(&folded.as_str()) => Value::Array(vec![canonical(one)]),
                    other => canonical(other),
                };
                (folded, value)
            };
            Value::Object(entries.iter().map(entry).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.iter().map(canonical).collect(),
        other => other.clone(),
    }
}

/// Whether `name` is `wanted`, or its lowerCamelCase.
pub fn is_same(name: &str, wanted: &str) -> bool {
    name == wanted || folded(name).is_some_and(|folded| folded == wanted)
}

/// A name in lowerCamelCase as snake_case; none of any other.
fn folded(name: &str) -> Option<String> {
    let is_camel = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric())
        && name.chars().any(|c| c.is_ascii_uppercase());
    is_camel.then(|| {
        let mut folded = String::with_capacity(name.len() + 4);
        for c in name.chars() {
            if c.is_ascii_uppercase() {
                folded.push('_');
            }
            folded.push(c.to_ascii_lowercase());
        }
        folded
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_folded_but_not_those_that_people_choose() {
        let raw = json!({"staticResources": {"clusters": {"name": "camelCase", "metadata": {"filterMetadata": {"aB": 1}},
            "typedExtensionProtocolOptions": {"aB": {"autoConfig": {}}}}},
            "configuration": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"aB": {"cD": 1}}}});
        let expected = json!({"static_resources": {"clusters": [{"name": "camelCase", "metadata": {"filterMetadata": {"aB": 1}},
            "typed_extension_protocol_options": {"aB": {"auto_config": {}}}}]},
            "configuration": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"aB": {"cD": 1}}}});
        assert_eq!(canonical(&raw), expected);
        assert!(is_same("http2ProtocolOptions", "http2_protocol_options") && !is_same("HTTP", "http"));
    }
}
