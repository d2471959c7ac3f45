//! Writes JSON as a serialized `google.protobuf.Struct`.

use serde_json::{Map, Number, Value};

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn tagged(tag: u8, bytes: &[u8]) -> Vec<u8> {
    [&[tag][..], &varint(bytes.len()), bytes].concat()
}

fn write(value: &Value) -> Vec<u8> {
    match value {
        Value::Null => vec![0x08, 0],
        Value::Bool(given) => vec![0x20, u8::from(*given)],
        Value::Number(number) => [&[0x11][..], &number.as_f64().unwrap().to_le_bytes()].concat(),
        Value::String(text) => tagged(0x1a, text.as_bytes()),
        Value::Array(list) => tagged(0x32, &list.iter().flat_map(|value| tagged(0x0a, &write(value))).collect::<Vec<_>>()),
        Value::Object(_) => tagged(0x2a, &write_struct(value)),
    }
}

/// `value`, which is an object, in protobuf's wire format.
pub fn write_struct(value: &Value) -> Vec<u8> {
    let entries = value.as_object().into_iter().flatten();
    entries
        .flat_map(|(key, value)| tagged(0x0a, &[tagged(0x0a, key.as_bytes()), tagged(0x12, &write(value))].concat()))
        .collect()
}

/// The same with every number as a double, which is all that a `Struct` knows.
#[allow(dead_code)] // each target is a crate of its own, and one does not need it
pub fn as_struct_has_it(value: &Value) -> Option<Value> {
    Some(match value {
        Value::Number(number) => Value::Number(Number::from_f64(number.as_f64()?)?),
        Value::Array(list) => Value::Array(list.iter().map(as_struct_has_it).collect::<Option<_>>()?),
        Value::Object(entries) => {
            let entries = entries.iter().map(|(key, value)| Some((key.clone(), as_struct_has_it(value)?)));
            Value::Object(entries.collect::<Option<Map<_, _>>>()?)
        }
        other => other.clone(),
    })
}
