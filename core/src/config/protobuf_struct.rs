//! Reads a `google.protobuf.Struct` in protobuf's wire format.
//!
//! Envoy hands over the value of a `StringValue`, but the bare bytes of any other message (seen on 1.36 to 1.40, although
//! its documentation promises JSON for a `Struct`). YAML in place of JSON in a string is what a `Struct` is for.

use serde_json::{Map, Number, Value};

/// Deeper nesting is refused: the configuration needs four levels.
const DEEPEST: usize = 32;

/// The JSON value of a serialized `google.protobuf.Struct`; `None` if the bytes are none.
pub fn parse(bytes: &[u8]) -> Option<Value> {
    parse_struct(bytes, DEEPEST)
}

/// `message Struct { map<string, Value> fields = 1; }`
fn parse_struct(mut bytes: &[u8], depth: usize) -> Option<Value> {
    let mut object = Map::new();
    while !bytes.is_empty() {
        let (1, Field::Bytes(mut entry)) = take_field(&mut bytes)? else { return None };
        let (mut key, mut value) = (String::new(), Value::Null);
        while !entry.is_empty() {
            match take_field(&mut entry)? {
                (1, Field::Bytes(text)) => key = String::from_utf8(text.to_vec()).ok()?,
                (2, Field::Bytes(nested)) => value = parse_value(nested, depth.checked_sub(1)?)?,
                _ => return None,
            }
        }
        object.insert(key, value);
    }
    Some(Value::Object(object))
}

/// `message Value { oneof kind { null = 1, number = 2, string = 3, bool = 4, struct = 5, list = 6 } }`
fn parse_value(mut bytes: &[u8], depth: usize) -> Option<Value> {
    let mut value = Value::Null;
    while !bytes.is_empty() {
        value = match take_field(&mut bytes)? {
            (1, Field::Number(_)) => Value::Null,
            (2, Field::Double(number)) => Value::Number(Number::from_f64(number)?),
            (3, Field::Bytes(text)) => Value::String(String::from_utf8(text.to_vec()).ok()?),
            (4, Field::Number(number)) => Value::Bool(number != 0),
            (5, Field::Bytes(nested)) => parse_struct(nested, depth)?,
            (6, Field::Bytes(list)) => parse_list(list, depth)?,
            _ => return None,
        };
    }
    Some(value)
}

/// `message ListValue { repeated Value values = 1; }`
fn parse_list(mut bytes: &[u8], depth: usize) -> Option<Value> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let (1, Field::Bytes(element)) = take_field(&mut bytes)? else { return None };
        list.push(parse_value(element, depth.checked_sub(1)?)?);
    }
    Some(Value::Array(list))
}

enum Field<'a> {
    Number(u64),
    Double(f64),
    Bytes(&'a [u8]),
}

/// Takes one field with its number (<https://protobuf.dev/programming-guides/encoding/>).
fn take_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = take_varint(bytes)?;
    let field = match tag & 7 {
        0 => Field::Number(take_varint(bytes)?),
        1 => {
            let (number, rest) = bytes.split_first_chunk::<8>()?;
            *bytes = rest;
            Field::Double(f64::from_le_bytes(*number))
        }
        2 => {
            let size = usize::try_from(take_varint(bytes)?).ok()?;
            let (field, rest) = bytes.split_at_checked(size)?;
            *bytes = rest;
            Field::Bytes(field)
        }
        _ => return None,
    };
    Some((tag >> 3, field))
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tagged(tag: u8, bytes: &[u8]) -> Vec<u8> {
        let size = u8::try_from(bytes.len()).unwrap();
        assert!(size < 0x80);
        [&[tag, size], bytes].concat()
    }

    fn write(value: &Value) -> Vec<u8> {
        match value {
            Value::Null => vec![0x08, 0],
            Value::Bool(given) => vec![0x20, u8::from(*given)],
            Value::Number(number) => [&[0x11][..], &number.as_f64().unwrap().to_le_bytes()].concat(),
            Value::String(text) => tagged(0x1a, text.as_bytes()),
            Value::Array(list) => {
                tagged(0x32, &list.iter().flat_map(|value| tagged(0x0a, &write(value))).collect::<Vec<_>>())
            }
            Value::Object(_) => tagged(0x2a, &write_struct(value)),
        }
    }

    fn write_struct(value: &Value) -> Vec<u8> {
        let entries = value.as_object().unwrap().iter();
        entries
            .flat_map(|(key, value)| {
                tagged(0x0a, &[tagged(0x0a, key.as_bytes()), tagged(0x12, &write(value))].concat())
            })
            .collect()
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let value =
            json!({"text": "60s", "list": ["a", true, null, 2.5], "nested": {"on": false, "deep": {}}, "n": -1.0});
        assert_eq!(parse(&write_struct(&value)), Some(value));
        assert_eq!(parse(b""), Some(json!({})));
    }

    #[test]
    fn what_is_cut_or_something_else_is_none() {
        let whole = write_struct(&json!({"nested": {"list": ["a", 1.0]}}));
        for end in 1..whole.len() {
            assert_eq!(parse(&whole[..end]), None, "{end}");
        }
        for other in [
            &b"{\"filter\": 1}"[..],
            b"\n{\"filter\": 1}",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0a\x02\x12\x00\x13",
        ] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = (0..9).fold(json!({}), |inner, _| json!({"a": inner}));
        assert!(parse(&write_struct(&deep)).is_some());
        let mut bytes = Vec::new();
        for _ in 0..200 {
            let nested = [&[0x2a][..], &varint(bytes.len()), &bytes].concat();
            let entry = [&[0x12][..], &varint(nested.len()), &nested].concat();
            bytes = [&[0x0a][..], &varint(entry.len()), &entry].concat();
        }
        assert_eq!(parse(&bytes), None);
    }

    fn varint(mut number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
            number >>= 7;
        }
        bytes.push(u8::try_from(number).unwrap());
        bytes
    }
}
