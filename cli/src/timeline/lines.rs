//! Reads events, one a line, in bounded memory.

use std::io::{self, BufRead};

use a3s_box_core::Event;
use a3s_box_core::event::EVENT_VERSION;

use super::plain;

/// Longest line. The longest event is an `error` with its causes, some kilobytes.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// How much of a line that is not an event is shown.
const EXCERPT_CHARS: usize = 80;

/// How an event begins.
const EVENT_START: &[u8] = b"{\"v\":";

/// What was read is not a stream of events.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error("line {number}: expected an event, found `{excerpt}` ({reason})")]
    NotAnEvent { number: u64, excerpt: String, reason: String },
    #[error("line {number}: longer than {MAX_LINE_BYTES} bytes")]
    TooLong { number: u64 },
    #[error("line {number}: version {found} of the event format, expected {EVENT_VERSION}")]
    Version { number: u64, found: u32 },
    #[error("line {number}")]
    Read { number: u64, source: io::Error },
}

/// Events from a reader.
#[derive(Debug)]
pub(crate) struct EventLines<R> {
    reader: R,
    line: Vec<u8>,
    /// Number of the line that was read last, from 1.
    number: u64,
    /// Events that were given out.
    count: u64,
}

impl<R: BufRead> EventLines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), number: 0, count: 0 }
    }

    /// The next event, or `None` at the end. Empty lines are nothing.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, LineError> {
        while self.read_line()? {
            if self.line.trim_ascii().is_empty() {
                continue;
            }
            let number = self.number;
            match parse(&self.line) {
                Ok(event) if event.v != EVENT_VERSION => {
                    return Err(LineError::Version { number, found: event.v });
                }
                Ok(event) => {
                    self.count += 1;
                    return Ok(Some(event));
                }
                // The shim was killed while it wrote, and nothing follows.
                Err(_) if self.count > 0 && !self.line.ends_with(b"\n") => return Ok(None),
                Err(error) => {
                    // The parser sees one line only, and calls it the first.
                    let reason = error.to_string().replace(" at line 1 column ", " at column ");
                    let excerpt = excerpt(&self.line);
                    return Err(LineError::NotAnEvent { number, excerpt, reason });
                }
            }
        }
        Ok(None)
    }

    /// Reads a line with its line feed, which the last one may lack.
    fn read_line(&mut self) -> Result<bool, LineError> {
        self.line.clear();
        self.number += 1;
        let number = self.number;
        loop {
            let chunk =
                self.reader.fill_buf().map_err(|source| LineError::Read { number, source })?;
            let end = chunk.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let taken = end.unwrap_or(chunk.len());
            if self.line.len() + taken > MAX_LINE_BYTES {
                return Err(LineError::TooLong { number });
            }
            self.line.extend(chunk.iter().take(taken));
            self.reader.consume(taken);
            if end.is_some() || taken == 0 {
                return Ok(!self.line.is_empty());
            }
        }
    }
}

/// Reads a line. A shim that was killed while it wrote leaves half a line, and the next shim's first
/// event is appended to that. A quote in a text of an event is escaped, so no text looks like one.
fn parse(line: &[u8]) -> Result<Event, serde_json::Error> {
    serde_json::from_slice(line).or_else(|error| {
        let start = line.windows(EVENT_START.len()).rposition(|window| window == EVENT_START);
        let rest = start.filter(|at| *at > 0).and_then(|at| line.get(at..));
        let appended: Option<Event> = rest.and_then(|rest| serde_json::from_slice(rest).ok());
        appended.filter(|event| event.seq == 0).ok_or(error)
    })
}

/// The start of a line, with what a terminal would obey written out.
fn excerpt(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut chars = text.trim_end().chars();
    let mut excerpt = String::new();
    for character in chars.by_ref().take(EXCERPT_CHARS) {
        if plain::is_shown(character) {
            excerpt.push(character);
        } else {
            excerpt.extend(character.escape_unicode());
        }
    }
    if chars.next().is_some() {
        excerpt.push('…');
    }
    excerpt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64) -> String {
        format!(
            r#"{{"v":1,"seq":{seq},"time":"","elapsed_ms":1,"box_id":"a","type":"prepare.done"}}"#
        )
    }

    fn read(text: &str) -> Result<Vec<u64>, String> {
        let mut lines = EventLines::new(io::BufReader::with_capacity(7, text.as_bytes()));
        let mut found = Vec::new();
        loop {
            match lines.next() {
                Ok(Some(event)) => found.push(event.seq),
                Ok(None) => return Ok(found),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    #[test]
    fn lines_are_events_and_a_cut_one_ends_or_begins_a_run() {
        let (first, second) = (event(0), event(1));
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(read(&format!("{first}\n\n{second}")), Ok(vec![0, 1]));
        assert_eq!(read(&format!("{first}\n{}", &second[..30])), Ok(vec![0]));
        assert_eq!(read(&format!("{first}\n{}{first}\n", &second[..30])), Ok(vec![0, 0]));
    }

    #[test]
    fn what_is_no_event_is_shown_with_its_line() {
        let (first, second) = (event(0), event(1));
        let expect = |text: &str, message: &str| {
            assert_eq!(read(text), Err(message.to_owned()));
        };
        expect(
            "garbage",
            "line 1: expected an event, found `garbage` (expected value at column 1)",
        );
        expect(
            &format!("{first}\n\u{1b}[2J\n"),
            "line 2: expected an event, found `\\u{1b}[2J` (expected value at column 1)",
        );
        let (long, shown) = ("x".repeat(81), "x".repeat(80));
        expect(
            &format!("{first}\n{long}\n{second}\n"),
            &format!("line 2: expected an event, found `{shown}…` (expected value at column 1)"),
        );
        expect(
            &second.replace("prepare.done", "vm.starting"),
            &format!(
                "line 1: expected an event, found `{}` (missing field `vcpus` at column 74)",
                second.replace("prepare.done", "vm.starting")
            ),
        );
        expect(
            &first.replace("\"v\":1", "\"v\":2"),
            "line 1: version 2 of the event format, expected 1",
        );
        expect(
            &format!("{first}\n{}", "x".repeat(MAX_LINE_BYTES + 1)),
            "line 2: longer than 1048576 bytes",
        );
    }
}
