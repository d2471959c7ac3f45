//! Any text as the configuration: it is taken or refused with a sentence that names a key, what was given and what is allowed;
//! and a `Struct` of the same content gets the same answer.
#![no_main]

mod struct_writer;

use idleguard_core::config::{ConfigError, protobuf_struct};
use idleguard_core::plugin::parse;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use struct_writer::{as_struct_has_it, write_struct};

/// What becomes of a configuration: its warnings, or the key and the words of the refusal. What was given is left out: a `Struct`
/// has doubles where JSON may have whole numbers.
fn answer(bytes: &[u8]) -> Result<(String, Vec<String>), (String, String)> {
    match parse(bytes) {
        Ok(checked) => Ok((format!("{:?}", checked.config), checked.warnings)),
        Err(ConfigError { key, allowed, .. }) => Err((key, allowed)),
    }
}

fuzz_target!(|data: &[u8]| {
    if let Err(error) = parse(data) {
        assert!(!error.allowed.is_empty() && !error.given.is_empty(), "{error:?}");
        assert!(error.given.chars().count() <= 400 || error.key.is_empty(), "a log line as long as the input: {error:?}");
    }
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    let Some(doubles) = as_struct_has_it(&value).filter(Value::is_object) else { return };
    let bytes = write_struct(&doubles);
    // Text that could be either is JSON; an empty `Struct` is no byte, as no configuration is; bytes that nest deeper than any
    // configuration are refused.
    let is_json = serde_json::from_slice::<Value>(&bytes).is_ok();
    if bytes.is_empty() || is_json || protobuf_struct::parse(&bytes).is_none() {
        return;
    }
    assert_eq!(protobuf_struct::parse(&bytes).as_ref(), Some(&doubles));
    assert_eq!(answer(&bytes), answer(doubles.to_string().as_bytes()));
    assert_eq!(answer(&bytes), answer(data));
});
