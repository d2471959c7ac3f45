//! What protobuf does, on protobuf's JSON: merging messages, and naming fields.

use serde_json::Value;

/// Fields of which a message has one at most, as far as the patches touch them.
const ONEOFS: [&[&str]; 3] = [
    &["cluster", "cluster_header", "weighted_clusters", "cluster_specifier_plugin", "inline_cluster_specifier_plugin"],
    &["route", "redirect", "direct_response", "filter_action", "non_forwarding_action"],
    &["rds", "route_config", "scoped_routes"],
];

/// Merges a message into another of the same type: messages field by field, lists by appending, all else by replacing.
pub(crate) fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            assert!(
                into.get("@type").is_none_or(|kind| from.get("@type").is_none_or(|other| kind == other)),
                "a message merged into one of another type: {into:?}, {from:?}"
            );
            for (key, value) in from {
                for other in ONEOFS.iter().filter(|fields| fields.contains(&key.as_str())).copied().flatten() {
                    if other != key {
                        into.remove(*other);
                    }
                }
                match into.get_mut(key) {
                    Some(old) => merge(old, value),
                    None => drop(into.insert(key.clone(), value.clone())),
                }
            }
        }
        (Value::Array(into), Value::Array(from)) => into.extend(from.iter().cloned()),
        (into, from) => *into = from.clone(),
    }
}

/// Writes field names as in the `.proto` files (`route_config_name`), whichever way they came.
pub(crate) fn proto_names(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, mut value) in std::mem::take(object) {
                proto_names(&mut value);
                object.insert(proto_name(&key), value);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(proto_names),
        _ => {}
    }
}

fn proto_name(key: &str) -> String {
    // Keys of maps (cluster names, domains) are no field names.
    let is_field = key.starts_with(|first: char| first.is_ascii_lowercase())
        && key.chars().all(|character| character.is_ascii_alphanumeric());
    if !is_field {
        return key.to_owned();
    }
    let mut name = String::new();
    for character in key.chars() {
        if character.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(character.to_ascii_lowercase());
    }
    name
}

#[test]
fn messages_merge_as_protobuf_does() {
    let mut route = serde_json::json!({"name": "a", "route": {"weighted_clusters": {}, "timeout": "0s"}, "list": [1]});
    merge(&mut route, &serde_json::json!({"route": {"cluster": "b"}, "list": [2]}));
    let expected = serde_json::json!({"name": "a", "route": {"cluster": "b", "timeout": "0s"}, "list": [1, 2]});
    assert_eq!(route, expected);
}

#[test]
fn fields_are_named_as_in_proto_files() {
    for (given, named) in [("routeConfigName", "route_config_name"), ("ads", "ads"), ("@type", "@type"), ("a/B", "a/B")]
    {
        assert_eq!(proto_name(given), named);
    }
}
