//! Writes a value as YAML that Envoy reads back as the same value.

use serde_json::Value;

/// The value in block style; one that fits is written in one line. Ends without a line break.
pub fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    text.trim_start_matches('\n').to_owned()
}

/// The text of a scalar or an empty collection; none of anything else.
fn inline(value: &Value) -> Option<String> {
    match value {
        Value::Object(entries) if entries.is_empty() => Some("{}".to_owned()),
        Value::Array(items) if items.is_empty() => Some("[]".to_owned()),
        Value::Object(_) | Value::Array(_) => None,
        Value::String(text) if is_plain(text) => Some(text.clone()),
        other => Some(other.to_string()), // JSON is YAML
    }
}

fn write(out: &mut String, value: &Value, indent: usize) {
    let blank = " ".repeat(indent);
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            for (key, value) in entries {
                out.push('\n');
                out.push_str(&blank);
                out.push_str(&inline(&Value::String(key.clone())).unwrap_or_default());
                out.push(':');
                match (inline(value), value) {
                    (_, Value::String(text)) if is_block_text(text) => {
                        out.push_str(" |");
                        for line in text.lines() {
                            out.push_str(&format!("\n{blank}  {line}"));
                        }
                    }
                    (Some(text), _) => out.push_str(&format!(" {text}")),
                    (None, Value::Array(_)) => write(out, value, indent),
                    (None, _) => write(out, value, indent + 2),
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                out.push_str(&format!("\n{blank}- "));
                match inline(item) {
                    Some(text) => out.push_str(&text),
                    None => {
                        let mut nested = String::new();
                        write(&mut nested, item, indent + 2);
                        out.push_str(nested.trim_start());
                    }
                }
            }
        }
        other => out.push_str(&inline(other).unwrap_or_default()),
    }
}

/// Whether a text may stand without quotes: it starts with a letter and is no word that means something else, or it is a
/// duration or an IPv4 address.
fn is_plain(text: &str) -> bool {
    const OTHERWISE: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_duration = text.strip_suffix('s').is_some_and(|number| number.split('.').all(is_number));
    let is_address = text.split('.').count() == 4 && text.split('.').all(is_number);
    let is_name = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./=".contains(c))
        && !OTHERWISE.contains(&text.to_ascii_lowercase().as_str());
    is_name || is_duration || is_address
}

/// Whether a text reads better as a literal block, and stays the same in it.
fn is_block_text(text: &str) -> bool {
    let lines = || text.lines();
    text.ends_with('\n')
        && !text.ends_with("\n\n")
        && lines().next().is_some_and(|first| !first.starts_with(' ') && !first.is_empty())
        && lines().all(|line| line.chars().all(|c| c == ' ' || !(c.is_control() || c.is_whitespace())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_back_the_same() {
        let value = json!({
            "list": [1, "1", true, "yes", null, [], {}, ["nested", {"deep": [[2]]}], {"a": 1, "b": {"c": "x: #y"}}],
            "@type": "type.googleapis.com/x.Y", "60s": "60s", "block": "{\n  \"a\": 1\n}\n", "text": "two\nlines",
            "quote": "\"'\\\té", "empty": "", "on": "on",
        });
        let text = yaml(&value);
        assert_eq!(Document::parse(&text).unwrap().value(), &value, "{text}");
        assert!(text.contains("block: |\n  {\n    \"a\": 1\n  }"), "{text}");
    }
}
