//! One JSON object of the plugin configuration, key by key: JSON or a serialized `Struct` in, values or a [`ConfigError`] out.
//!
//! What the keys mean is said where they are used ([`plugin`](crate::plugin), [`timeout`](crate::timeout),
//! [`client_ip`](crate::client_ip)).

mod json_text;
pub mod protobuf_struct;
pub mod section;

use serde_json::Value;

pub use section::{ConfigError, Section, shorten};

/// Reads what Envoy hands over: JSON, or a serialized `google.protobuf.Struct`.
///
/// # Errors
/// If it is neither, or nothing.
pub fn read(bytes: &[u8]) -> Result<Value, ConfigError> {
    serde_json::from_slice(bytes).or_else(|error| {
        protobuf_struct::parse(bytes).filter(|_| !bytes.is_empty()).ok_or_else(|| ConfigError {
            key: String::new(),
            given: if bytes.is_empty() { "nothing".into() } else { format!("text that is no JSON ({error})") },
            allowed: r#"a JSON object such as {"filter": "http", "destinations": {"payments": {}}}"#.into(),
        })
    })
}
