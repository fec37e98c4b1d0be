//! Records as lines on standard error: as text for people, or as JSON for programs.

use std::error::Error;
use std::fmt::{Debug, Write};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Map, Value, json};
use tracing::Event;
use tracing::field::{Field, Visit};

use super::phase::Phase;

/// Longest line. A pipe takes as many bytes as one piece and without blocking once `poll(2)`
/// reports it as writable (`PIPE_BUF`, pipe(7)).
const MAX_LINE_BYTES: usize = 4096;

/// Bytes of message and target that are kept of a record that is too long as JSON. JSON escapes a
/// byte as at most six, so both together take at most seven eighths of a line.
const CUT_MESSAGE_BYTES: usize = 512;
const CUT_TARGET_BYTES: usize = 64;

/// Format of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Json,
}

/// Writer to standard error that drops lines which cannot be written without blocking.
pub(super) struct Lines {
    form: Form,
    /// Held from the poll to the write, because another thread could fill the pipe in between and
    /// the write would block.
    writing: Mutex<()>,
}

impl Lines {
    pub(super) fn new(form: Form) -> Self {
        Self { form, writing: Mutex::new(()) }
    }

    /// Writes a record.
    pub(super) fn write(&self, event: &Event<'_>, box_id: &str, phase: Phase) {
        let record = Record::new(event, box_id, phase);
        let line = match self.form {
            Form::Text => record.text(),
            Form::Json => record.json(),
        };
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let stderr = io::stderr();
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready == 1) {
            // A failure to write the log has no other place to be reported.
            let _lost = nix::unistd::write(stderr.as_fd(), line.as_bytes());
        }
    }
}

/// The parts of a record.
struct Record<'a> {
    time: String,
    level: &'static str,
    box_id: &'a str,
    phase: &'static str,
    target: String,
    message: String,
    fields: Map<String, Value>,
}

impl<'a> Record<'a> {
    fn new(event: &Event<'_>, box_id: &'a str, phase: Phase) -> Self {
        let mut record = Self {
            time: format!("{:.3}", jiff::Timestamp::now()),
            level: event.metadata().level().as_str(),
            box_id,
            phase: phase.name(),
            target: event.metadata().target().to_owned(),
            message: String::new(),
            fields: Map::new(),
        };
        event.record(&mut record);
        record
    }

    /// Returns `TIME LEVEL BOX PHASE TARGET: MESSAGE FIELD=VALUE…`. Control characters are escaped,
    /// because text of a guest must not look like another record or act on a terminal.
    fn text(&self) -> String {
        let Self { time, level, phase, target, message, .. } = self;
        let box_id = if self.box_id.is_empty() { "-" } else { self.box_id };
        let mut text = format!("{time} {level:>5} {box_id} {phase} {target}: {message}");
        for (name, value) in &self.fields {
            // Writing to a string does not fail.
            let _infallible = match value {
                Value::String(value) => write!(text, " {name}={value}"),
                value => write!(text, " {name}={value}"),
            };
        }
        // All parts are escaped at once, because box id, target and fields can be foreign text,
        // too.
        let mut line = String::with_capacity(text.len() + 1);
        for character in text.chars() {
            match character.is_control() {
                true => line.extend(character.escape_default()),
                false => line.push(character),
            }
        }
        if line.len() >= MAX_LINE_BYTES {
            cut(&mut line, MAX_LINE_BYTES - "…\n".len());
            line.push('…');
        }
        line.push('\n');
        line
    }

    /// Returns a JSON object. A record that is too long loses its fields and the end of its
    /// message.
    fn json(mut self) -> String {
        let fields = Value::Object(std::mem::take(&mut self.fields));
        let whole = self.object([("fields", fields)]);
        if whole.len() <= MAX_LINE_BYTES {
            return whole;
        }
        cut(&mut self.message, CUT_MESSAGE_BYTES);
        cut(&mut self.target, CUT_TARGET_BYTES);
        self.object([("truncated", Value::Bool(true))])
    }

    fn object(&self, last: [(&str, Value); 1]) -> String {
        let Self { time, level, box_id, phase, target, message, .. } = self;
        let mut object = json!({
            "time": time, "level": level, "target": target, "box_id": box_id, "phase": phase,
            "message": message,
        });
        for (name, value) in last {
            object[name] = value;
        }
        let mut line = object.to_string();
        line.push('\n');
        line
    }

    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            // `tracing-log` adds fields that describe a record of the crate `log`. Its target is
            // the one of the record, and the other fields are of no use.
            ("log.target", Value::String(target)) => self.target = target,
            (name, _) if name.starts_with("log.") => {}
            (name, value) => self.fields.extend([(name.to_owned(), value)]),
        }
    }
}

impl Visit for Record<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.add(field, a3s_box_core::one_line(value).into());
    }
}

fn cut(text: &mut String, bytes: usize) {
    text.truncate(text.floor_char_boundary(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> Record<'_> {
        let mut fields = Map::new();
        fields.insert("layer".into(), "sha256:1".into());
        fields.insert("bytes".into(), 7.into());
        Record {
            time: "2026-01-02T03:04:05.678Z".into(),
            level: "WARN",
            box_id: "demo",
            phase: "rootfs",
            target: "a3s_box_oci::cache".into(),
            message: message.into(),
            fields,
        }
    }

    #[test]
    fn text_is_one_line_without_control_characters() {
        let line = record("first\nsecond \u{1b}[31mred").text();
        let expected = "2026-01-02T03:04:05.678Z  WARN demo rootfs a3s_box_oci::cache: \
                        first\\nsecond \\u{1b}[31mred bytes=7 layer=sha256:1\n";
        assert_eq!(line, expected);
        let unnamed = Record { box_id: "", ..record("early") }.text();
        assert!(unnamed.contains(" - rootfs "), "{unnamed}");
    }

    #[test]
    fn json_is_one_object_with_the_fields_apart() {
        let line = record("first\nsecond").json();
        assert_eq!(line.matches('\n').count(), 1);
        let found: Value = serde_json::from_str(&line).unwrap();
        let expected = json!({
            "time": "2026-01-02T03:04:05.678Z", "level": "WARN", "target": "a3s_box_oci::cache",
            "box_id": "demo", "phase": "rootfs", "message": "first\nsecond",
            "fields": {"layer": "sha256:1", "bytes": 7},
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn long_record_is_cut_and_stays_one_line() {
        // A byte that JSON escapes as six, and characters of three bytes that a cut could split.
        for message in ["\u{1}".repeat(9000), "x".repeat(5000), "€".repeat(3000)] {
            let text = record(&message).text();
            assert!(text.len() <= MAX_LINE_BYTES && text.ends_with("…\n"), "{text}");
            let json = record(&message).json();
            assert!(json.len() <= MAX_LINE_BYTES, "{}", json.len());
            let found: Value = serde_json::from_str(&json).unwrap();
            assert_eq!(found["truncated"], true);
            assert!(message.starts_with(found["message"].as_str().unwrap()));
        }
    }
}
