//! Reads the events of a file, one line at a time.

use std::io::{self, BufRead};

use a3s_box_core::event::EVENT_VERSION;
use a3s_box_core::{Event, EventDecoder, EventLineError, MAX_EVENT_LINE_BYTES};

use super::plain;

/// Most characters of an invalid line that an error shows.
const EXCERPT_CHARS: usize = 80;

/// The file has a line that is not an event, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error("line {number}: expected an event, found `{excerpt}` ({reason})")]
    NotAnEvent { number: u64, excerpt: String, reason: String },
    #[error("line {number}: longer than {MAX_EVENT_LINE_BYTES} bytes")]
    TooLong { number: u64 },
    #[error("line {number}: version {found} of the event format, expected {EVENT_VERSION}")]
    Version { number: u64, found: u32 },
    #[error("line {number}")]
    Read { number: u64, source: io::Error },
}

impl From<EventLineError> for LineError {
    fn from(error: EventLineError) -> Self {
        match error {
            EventLineError::NotAnEvent { number, excerpt, source } => {
                // The parser gets a single line and reports it as line 1. The error already has the
                // true number of the line, so only the column is kept.
                let reason = source.to_string().replace(" at line 1 column ", " at column ");
                Self::NotAnEvent { number, excerpt: shown(&excerpt), reason }
            }
            EventLineError::TooLong { number } => Self::TooLong { number },
            EventLineError::Version { number, found } => Self::Version { number, found },
        }
    }
}

/// The events of a reader, in their order.
#[derive(Debug)]
pub(crate) struct EventLines<R> {
    reader: R,
    decoder: EventDecoder,
}

impl<R: BufRead> EventLines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, decoder: EventDecoder::of_file() }
    }

    /// Returns the next event, or `None` at the end.
    ///
    /// # Errors
    ///
    /// Fails if reading fails, or at a line that is too long, not an event, or of another version.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, LineError> {
        loop {
            if let Some(event) = self.decoder.next_event()? {
                return Ok(Some(event));
            }
            // A read error belongs to the line that is incomplete so far.
            let number = self.decoder.lines() + 1;
            let chunk =
                self.reader.fill_buf().map_err(|source| LineError::Read { number, source })?;
            if chunk.is_empty() {
                return Ok(self.decoder.finish()?);
            }
            let count = chunk.len();
            self.decoder.push(chunk);
            self.reader.consume(count);
        }
    }
}

/// Returns the start of a line, with an escape for each character that a terminal could interpret.
fn shown(line: &str) -> String {
    let mut chars = line.chars();
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
    fn accepts_a_truncated_line_at_the_end_of_a_run() {
        let (first, second) = (event(0), event(1));
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(read(&format!("{first}\n\n{second}")), Ok(vec![0, 1]));
        assert_eq!(read(&format!("{first}\n{}", &second[..30])), Ok(vec![0]));
        assert_eq!(read(&format!("{first}\n{}{first}\n", &second[..30])), Ok(vec![0, 0]));
    }

    #[test]
    fn reports_an_invalid_line_with_its_number() {
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
            &format!("{first}\n{}", "x".repeat(MAX_EVENT_LINE_BYTES + 1)),
            "line 2: longer than 1048576 bytes",
        );
    }
}
