//! The configuration reference, as tables in Markdown made from the schema.

use serde_json::Value;

/// What a type of the schema is called where it has a section of its own.
const SECTIONS: [(&str, &str); 2] =
    [("Destination", "a [destination](#a-destination)"), ("ClientIp", "[below](#client_ip)")];

/// The table of the part of the schema at this JSON pointer: `/oneOf/0`, `/$defs/Policy`.
///
/// None if nothing is there.
pub fn table(schema: &Value, pointer: &str) -> Option<String> {
    let mut rows = String::from("| key | value | default | meaning |\n| --- | --- | --- | --- |\n");
    add_rows(schema, schema.pointer(pointer)?, "", &mut rows)?;
    Some(rows)
}

fn add_rows(schema: &Value, object: &Value, prefix: &str, rows: &mut String) -> Option<()> {
    let required: Vec<&str> = strings(object.get("required"));
    for (key, property) in object.get("properties")?.as_object()? {
        let (name, definition) = resolved(schema, property);
        let default = match property.get("default") {
            Some(default) => format!("`{}`", default.to_string().replace("\",\"", "\", \"")),
            None if required.contains(&key.as_str()) => "must be given".to_owned(),
            None => "none".to_owned(),
        };
        let value = value_of(schema, name, definition);
        let meaning = match definition.get("const") {
            Some(_) => "Says which filter this is.".to_owned(),
            None => one_line(property.get("description")),
        };
        rows.push_str(&format!("| `{prefix}{key}` | {value} | {default} | {meaning} |\n"));
        if definition.get("properties").is_some() && !SECTIONS.iter().any(|(section, _)| name == Some(section)) {
            add_rows(schema, definition, &format!("{prefix}{key}."), rows)?;
        }
    }
    Some(())
}

/// What a property may be, in words.
fn value_of(schema: &Value, name: Option<&str>, definition: &Value) -> String {
    if let Some((_, link)) = SECTIONS.iter().find(|(section, _)| name == Some(section)) {
        return (*link).to_owned();
    }
    let constant = |value: &Value| format!("`{value}`");
    if let Some(constant_value) = definition.get("const") {
        return constant(constant_value);
    }
    if let Some(values) = definition.get("enum").and_then(Value::as_array) {
        return values.iter().map(constant).collect::<Vec<_>>().join(", ");
    }
    if let Some(kinds) = definition.get("oneOf").and_then(Value::as_array) {
        let kinds = kinds.iter().map(|kind| {
            let value = kind.get("const").map(constant).unwrap_or_default();
            format!("{value}: {}", lowered(&one_line(kind.get("description"))))
        });
        return kinds.collect::<Vec<_>>().join("; ");
    }
    match definition.get("type").and_then(Value::as_str) {
        Some("boolean") => "`true`, `false`".to_owned(),
        Some("array") => {
            let (name, items) = resolved(schema, definition.get("items").unwrap_or(&Value::Null));
            format!("a list: {}", value_of(schema, name, items))
        }
        Some("object") if definition.get("properties").is_none() => {
            let (name, values) = resolved(schema, definition.get("additionalProperties").unwrap_or(&Value::Null));
            format!("by name, {}", value_of(schema, name, values))
        }
        Some("object") => "an object".to_owned(),
        _ if name.is_some() => lowered(&one_line(definition.get("description"))),
        _ => "text".to_owned(),
    }
}

/// The definition that a property refers to, with its name, or the property itself.
fn resolved<'a>(schema: &'a Value, property: &'a Value) -> (Option<&'a str>, &'a Value) {
    let reference = property.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#'));
    match reference.and_then(|pointer| Some((pointer, schema.pointer(pointer)?))) {
        Some((pointer, definition)) => (pointer.rsplit('/').next(), definition),
        None => (None, property),
    }
}

fn strings(list: Option<&Value>) -> Vec<&str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

fn one_line(text: Option<&Value>) -> String {
    let text = text.and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// A sentence as a part of another: no capital (unless an abbreviation begins it), no full stop.
fn lowered(sentence: &str) -> String {
    let sentence = sentence.trim_end_matches('.');
    let mut letters = sentence.chars();
    match (letters.next(), letters.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => {
            first.to_lowercase().collect::<String>() + letters.as_str()
        }
        _ => sentence.to_owned(),
    }
}
