//! A config, as the shim reads it from its standard input.

#![no_main]

use a3s_box_core::BoxConfig;
use ground::memory;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Stands for a secret, as text and as a number.
const SECRET: u64 = 730_193_842_173;

/// Memory for each byte of a config: an argument `"",` is a `String` of 24 bytes and two `Value`s of 32
/// in lists that double, and each object of a list is two maps of 632 bytes at least.
const MEMORY_FACTOR: usize = 128;

/// Memory for a config of any size: its defaults as a `Value`, and an error.
const MEMORY_BYTES: usize = 64 << 10;

fuzz_target!(|json: &[u8]| {
    let limit_bytes = MEMORY_BYTES + MEMORY_FACTOR * json.len();
    if let Ok(config) = memory::within(limit_bytes, || BoxConfig::from_json(json)) {
        #[expect(clippy::unwrap_used, reason = "each path came from JSON")]
        let again = config.to_json().unwrap();
        assert_eq!(BoxConfig::from_json(&again).as_ref(), Ok(&config), "{}", again.escape_ascii());
    }
    check_secrets(json);
});

/// Checks that no value of the environment is shown: neither of one that is as it should be, nor of one
/// that is not.
fn check_secrets(json: &[u8]) {
    let secret = SECRET.to_string();
    let Ok(mut document) = serde_json::from_slice(json) else { return };
    hide_in_environment(&mut document);
    let document = document.to_string();
    // The input has it elsewhere.
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

/// Puts the secret into the place of each value of `process.env`. In an array, which serde reads as an
/// object's fields in their order, any element may be it.
fn hide_in_environment(document: &mut Value) {
    let of_process = |process: &mut Value| match process {
        Value::Object(fields) => fields.get_mut("env").map_or((), hide),
        Value::Array(_) => hide(process),
        _ => {}
    };
    match document {
        Value::Object(fields) => fields.get_mut("process").map_or((), of_process),
        Value::Array(fields) => fields.iter_mut().for_each(of_process),
        _ => {}
    }
}

fn hide(value: &mut Value) {
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => *number = SECRET.into(),
        Value::String(text) => *text = SECRET.to_string(),
        Value::Array(values) => values.iter_mut().for_each(hide),
        Value::Object(fields) => fields.values_mut().for_each(hide),
    }
}
