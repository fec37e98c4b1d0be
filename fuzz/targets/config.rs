//! Fuzzes the config that the shim reads from its standard input.

#![no_main]

use a3s_box_core::BoxConfig;
use libfuzzer_sys::fuzz_target;
use scratch::memory;
use serde_json::Value;

/// The secret that must not be printed. It can be a number or a text in JSON.
const SECRET: u64 = 730_193_842_173;

/// Most memory for each byte of a config, in bytes. An argument `"",` becomes a `String` of 24
/// bytes and two `Value`s of 32 bytes, in lists whose capacity doubles. Each object in a list
/// becomes two maps of at least 632 bytes.
const MEMORY_FACTOR: usize = 128;

/// Memory that does not depend on the size of the config: its defaults as a `Value`, and an error.
const MEMORY_BYTES: usize = 64 << 10;

fuzz_target!(|json: &[u8]| {
    let limit_bytes = MEMORY_BYTES + MEMORY_FACTOR * json.len();
    if let Ok(config) = memory::within(limit_bytes, || BoxConfig::from_json(json)) {
        #[expect(clippy::unwrap_used, reason = "each path came from JSON")]
        // A supervisor writes configs with these types, so writing must be the inverse of reading.
        let again = config.to_json().unwrap();
        assert_eq!(BoxConfig::from_json(&again).as_ref(), Ok(&config), "{}", again.escape_ascii());
    }
    check_secrets(json);
});

/// Checks that no value of the environment is printed, in a valid config or in the error of an
/// invalid one.
fn check_secrets(json: &[u8]) {
    let secret = SECRET.to_string();
    let Ok(mut document) = serde_json::from_slice(json) else { return };
    put_secret_into_environment(&mut document);
    let document = document.to_string();
    // An input that has the secret outside of the environment proves nothing.
    let is_elsewhere = json.windows(secret.len()).any(|window| window == secret.as_bytes());
    if is_elsewhere || !document.contains(&secret) {
        return;
    }
    let shown = match BoxConfig::from_json(document.as_bytes()) {
        Ok(config) => format!("{config:?}"),
        Err(error) => format!("{error} {error:?}"),
    };
    assert!(!shown.contains(&secret), "{document} is shown as {shown}");
}

/// Replaces each value of `process.env` by the secret.
///
/// serde also reads an object from an array, whose elements are the fields in their order. There
/// any element may be `process` or `env`, so all of them are replaced.
fn put_secret_into_environment(document: &mut Value) {
    let in_process = |process: &mut Value| match process {
        Value::Object(fields) => fields.get_mut("env").map_or((), replace_values),
        Value::Array(_) => replace_values(process),
        _ => {}
    };
    match document {
        Value::Object(fields) => fields.get_mut("process").map_or((), in_process),
        Value::Array(fields) => fields.iter_mut().for_each(in_process),
        _ => {}
    }
}

/// Replaces each number and text in `value` by the secret.
fn replace_values(value: &mut Value) {
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => *number = SECRET.into(),
        Value::String(text) => *text = SECRET.to_string(),
        Value::Array(values) => values.iter_mut().for_each(replace_values),
        Value::Object(fields) => fields.values_mut().for_each(replace_values),
    }
}
