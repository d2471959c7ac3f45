//! Writes a JSON value for a message. The serializer of `serde_json` would bring tables for fractions that are larger than the
//! rest of the configuration's code together, and no number in a configuration has one.

use std::fmt::{self, Write as _};

use serde_json::{Number, Value};

/// `value` as JSON, but for fractions of more than six digits and numbers beyond 10^15, which are described.
pub(crate) struct JsonText<'a>(pub(crate) &'a Value);

impl fmt::Display for JsonText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("null"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Number(number) => write_number(number, f),
            Value::String(text) => write_string(text, f),
            Value::Array(elements) => {
                f.write_char('[')?;
                for (at, element) in elements.iter().enumerate() {
                    write!(f, "{}{}", if at > 0 { "," } else { "" }, JsonText(element))?;
                }
                f.write_char(']')
            }
            Value::Object(entries) => {
                f.write_char('{')?;
                for (at, (key, value)) in entries.iter().enumerate() {
                    f.write_str(if at > 0 { "," } else { "" })?;
                    write_string(key, f)?;
                    write!(f, ":{}", JsonText(value))?;
                }
                f.write_char('}')
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
fn write_number(number: &Number, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if let Some(whole) = number.as_u64() {
        return write!(f, "{whole}");
    }
    if let Some(whole) = number.as_i64() {
        return write!(f, "{whole}");
    }
    let value = number.as_f64().unwrap_or_default();
    if value.abs() >= 1e15 {
        return f.write_str("a number beyond 10^15");
    }
    let millionths = (value.abs() * 1e6 + 0.5) as u128;
    let (whole, mut fraction) = (millionths / 1_000_000, millionths % 1_000_000);
    let mut digits = 6_usize;
    while digits > 1 && fraction % 10 == 0 {
        fraction /= 10;
        digits = digits.saturating_sub(1);
    }
    write!(f, "{}{whole}.{fraction:0digits$}", if value < 0.0 { "-" } else { "" })
}

/// RFC 8259 §7.
fn write_string(text: &str, f: &mut impl fmt::Write) -> fmt::Result {
    f.write_char('"')?;
    for character in text.chars() {
        match character {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            control if control < ' ' => write!(f, "\\u{:04x}", u32::from(control))?,
            other => f.write_char(other)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn values_are_json() {
        for value in [
            json!(null),
            json!([true, false, {}, [], {"a": 1, "b\n": [-7, "x"]}]),
            json!([0.5, -0.25, 2.0, 0.0, 1.001, 123_456.75, u64::MAX, i64::MIN]),
            json!("\u{1}\u{1f}\u{7f}é\"\\/\r\t"),
        ] {
            assert_eq!(JsonText(&value).to_string(), value.to_string());
        }
        assert_eq!(JsonText(&json!(-1e300)).to_string(), "a number beyond 10^15");
        assert_eq!(JsonText(&json!(0.123_456_789)).to_string(), "0.123457");
    }

    proptest! {
        #[test]
        fn strings_are_json(text in any::<String>()) {
            let value = Value::from(text);
            let text = JsonText(&value).to_string();
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
    }
}
