//! Errors about parts of a config that may contain secrets: `process`, and a document that is no
//! object.
//!
//! The environment of a workload contains secrets, and so do its arguments. A mistake in the shape of
//! `process` can put them into any place: `"process": "TOKEN=x"`, or `"TOKEN=x"` as the name of a
//! field. Errors therefore describe what was found by its type and length, and by its line and column,
//! and never quote it. A whole document can be a text with the document in it, if it was encoded
//! twice.

use serde_json::Value;
use serde_path_to_error::{Error, Segment};

/// The fields of `process`, each with the expected type.
const FIELDS: [(&str, &str); 5] = [
    ("entrypoint", "an array of strings"),
    ("args", "an array of strings"),
    ("env", "an object of strings"),
    ("cwd", "a string"),
    ("user", "a string"),
];

/// An error that does not quote the value that was found.
pub(super) struct Unquoted {
    pub(super) path: String,
    pub(super) found: String,
    pub(super) expected: String,
}

/// Returns the error of the parser without the value that was found. Returns nothing for an error in
/// a part of the config without secrets.
pub(super) fn unquoted(error: &Error<serde_json::Error>, json: &[u8]) -> Option<Unquoted> {
    // This message of serde has the name of a known field, and nothing else.
    if error.inner().to_string().starts_with("duplicate field") {
        return None;
    }
    let mut path = error.path().iter();
    // An error can come before a mistake in the syntax, with which there is no document.
    let document: Option<Value> = serde_json::from_slice(json).ok();
    let (line, column) = (error.inner().line(), error.inner().column());
    let invalid = |path: String, found: String, expected: &str| {
        let found = format!("{found} at line {line}, column {column}");
        Some(Unquoted { path, found, expected: expected.to_owned() })
    };
    match path.next() {
        None if document.as_ref().is_some_and(Value::is_object) => return None,
        None => return invalid("config".to_owned(), description(document.as_ref()), "an object"),
        Some(Segment::Map { key }) if key == "process" => {}
        Some(_) => return None,
    }
    let process = document.as_ref().and_then(|document| document.get("process"));
    let Some(field) = path.next() else {
        return invalid("process".to_owned(), description(process), "an object");
    };
    let known = FIELDS.iter().find(|(name, _)| is_key(field, name));
    let Some((name, expected)) = known else {
        let names: Vec<_> = FIELDS.iter().map(|(name, _)| format!("`{name}`")).collect();
        let expected = format!("one of {}", names.join(", "));
        return invalid("process".to_owned(), unknown_field(field), &expected);
    };
    let value = process.and_then(|process| process.get(name));
    let mut field = format!("process.{name}");
    let (value, expected) = match path.next() {
        None => (value, *expected),
        Some(Segment::Seq { index }) => {
            field += &format!("[{index}]");
            (value.and_then(|value| value.get(index)), "a string")
        }
        Some(Segment::Map { key }) => {
            field = variable_path(key);
            (value.and_then(|value| value.get(key)), "a string")
        }
        Some(_) => (value, *expected),
    };
    invalid(field, description(value), expected)
}

/// Returns the JSON path of a variable in `process.env`, for errors. A name that looks unlike one can
/// be a secret that is in the wrong place, and is left out.
#[must_use]
pub fn variable_path(name: &str) -> String {
    let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_name =
        name.starts_with(is_start) && name.chars().all(|c| is_start(c) || c.is_ascii_digit());
    if is_name { format!("process.env.{name}") } else { "process.env".to_owned() }
}

fn is_key(segment: &Segment, name: &str) -> bool {
    matches!(segment, Segment::Map { key } if key == name)
}

fn unknown_field(segment: &Segment) -> String {
    match segment {
        Segment::Map { key } => format!("an unknown field with a name of {} bytes", key.len()),
        _ => "an unknown field".to_owned(),
    }
}

/// Describes the value at the path of an error by its type and length.
fn description(value: Option<&Value>) -> String {
    match value {
        None => "another value".to_owned(),
        Some(Value::Null) => "null".to_owned(),
        Some(Value::Bool(_)) => "a boolean".to_owned(),
        Some(Value::Number(_)) => "a number".to_owned(),
        Some(Value::String(text)) => format!("a string of {} bytes", text.len()),
        Some(Value::Array(values)) => format!("an array of {} values", values.len()),
        Some(Value::Object(fields)) => format!("an object of {} fields", fields.len()),
    }
}
