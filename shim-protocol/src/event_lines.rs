//! [`EventDecoder`]: splits bytes into lines and reads an event from each, in bounded memory.
//!
//! The decoder does no input or output. Its callers read from a pipe or a file, each in its own
//! way, and push the bytes.

use std::collections::VecDeque;

use crate::event::{EVENT_VERSION, Event};

/// Longest line that is read. The longest event is an `error` with its causes, some kilobytes.
pub const MAX_EVENT_LINE_BYTES: usize = 1024 * 1024;

/// Characters of a line that an error keeps.
const EXCERPT_CHARS: usize = 80;

/// Start of every event: the version is its first field.
const EVENT_START: &[u8] = b"{\"v\":";

/// A line that is not an event of this version.
#[derive(Debug, thiserror::Error)]
pub enum EventLineError {
    /// The line is not JSON, or not an event.
    #[error("line {number} is not an event: `{}`", excerpt.chars().take(EXCERPT_CHARS).flat_map(char::escape_debug).collect::<String>())]
    NotAnEvent {
        /// Number of the line, from 1.
        number: u64,
        /// Start of the line as it is, with one character more than is shown if it is longer.
        excerpt: String,
        /// Why the parser refused it.
        source: serde_json::Error,
    },
    /// The line is longer than [`MAX_EVENT_LINE_BYTES`]. Nothing after it can be read.
    #[error("line {number} is longer than {MAX_EVENT_LINE_BYTES} bytes")]
    TooLong {
        /// Number of the line, from 1.
        number: u64,
    },
    /// The event has another version of the format.
    #[error("line {number} has version {found} of the event format, expected {EVENT_VERSION}")]
    Version {
        /// Number of the line, from 1.
        number: u64,
        /// The version of the event.
        found: u32,
    },
}

/// Reads events from bytes that arrive in pieces of any size.
///
/// ```
/// use a3s_box_core::EventDecoder;
///
/// let line = r#"{"v":1,"seq":0,"time":"","elapsed_ms":4,"box_id":"a","type":"prepare.done"}"#;
/// let mut decoder = EventDecoder::of_stream();
/// decoder.push(&line.as_bytes()[..20]);
/// assert!(decoder.next_event()?.is_none());
/// decoder.push(&line.as_bytes()[20..]);
/// decoder.push(b"\n");
/// assert_eq!(decoder.next_event()?.unwrap().elapsed_ms, 4);
/// # Ok::<(), a3s_box_core::EventLineError>(())
/// ```
#[derive(Debug)]
pub struct EventDecoder {
    buffer: VecDeque<u8>,
    /// Bytes at the start of `buffer` that hold no line feed.
    searched: usize,
    /// Number of the line that was taken last, from 1.
    number: u64,
    /// Whether an event was read.
    has_read: bool,
    is_of_file: bool,
}

impl EventDecoder {
    /// Reads the stream of one shim. Every line must be an event.
    #[must_use]
    pub fn of_stream() -> Self {
        let (buffer, searched, number) = (VecDeque::new(), 0, 0);
        Self { buffer, searched, number, has_read: false, is_of_file: false }
    }

    /// Reads an event file, to which several shims may have appended one after the other.
    ///
    /// A shim that was killed while it wrote leaves half a line. It is ignored at the end of the
    /// file, and where the first event of the next shim follows it in the same line. Blank lines
    /// are ignored.
    #[must_use]
    pub fn of_file() -> Self {
        Self { is_of_file: true, ..Self::of_stream() }
    }

    /// Appends bytes. Callers take all events before they append more than a few kilobytes, so that
    /// the decoder holds one line at most.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
    }

    /// Returns the next event, or nothing if no whole line is left.
    ///
    /// # Errors
    ///
    /// Fails if the line is not an event, has another version, or is too long. After the first two
    /// errors the next call reads the next line.
    pub fn next_event(&mut self) -> Result<Option<Event>, EventLineError> {
        while let Some(line) = self.take_line()? {
            if let Some(event) = self.read(&line)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Returns the number of lines that were taken.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.number
    }

    /// Returns the event of a last line that has no line feed. It is ignored if it was cut, and in
    /// a stream, whose shim always writes the line feed.
    ///
    /// # Errors
    ///
    /// Fails as [`Self::next_event`] does if an event file holds nothing but a line that is no
    /// event.
    pub fn finish(&mut self) -> Result<Option<Event>, EventLineError> {
        let line = self.buffer.drain(..).collect::<Vec<u8>>();
        self.searched = 0;
        if !self.is_of_file || line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        match self.read(&line) {
            Err(EventLineError::NotAnEvent { .. }) if self.has_read => Ok(None),
            read => read,
        }
    }

    fn take_line(&mut self) -> Result<Option<Vec<u8>>, EventLineError> {
        let rest = self.buffer.range(self.searched..);
        let end = rest.copied().position(|byte| byte == b'\n').map(|more| self.searched + more);
        self.searched = end.unwrap_or(self.buffer.len());
        if self.searched > MAX_EVENT_LINE_BYTES {
            return Err(EventLineError::TooLong { number: self.number + 1 });
        }
        let Some(end) = end else { return Ok(None) };
        let line = self.buffer.drain(..=end).collect();
        self.searched = 0;
        self.number += 1;
        Ok(Some(line))
    }

    fn read(&mut self, line: &[u8]) -> Result<Option<Event>, EventLineError> {
        let number = self.number;
        if self.is_of_file && line.trim_ascii().is_empty() {
            return Ok(None);
        }
        let event = parse(line, self.is_of_file).map_err(|source| {
            let text = String::from_utf8_lossy(line);
            let excerpt = text.trim_end().chars().take(EXCERPT_CHARS + 1).collect();
            EventLineError::NotAnEvent { number, excerpt, source }
        })?;
        if event.v != EVENT_VERSION {
            return Err(EventLineError::Version { number, found: event.v });
        }
        self.has_read = true;
        Ok(Some(event))
    }
}

/// Reads a line. In a file, half a line may be followed by the first event of the next shim. A
/// quote in a text of an event is escaped, so no text looks like the start of an event.
fn parse(line: &[u8], is_of_file: bool) -> Result<Event, serde_json::Error> {
    let whole = serde_json::from_slice(line);
    if !is_of_file {
        return whole;
    }
    whole.or_else(|error| {
        let start = line.windows(EVENT_START.len()).rposition(|window| window == EVENT_START);
        let rest = start.filter(|at| *at > 0).and_then(|at| line.get(at..));
        let appended: Option<Event> = rest.and_then(|rest| serde_json::from_slice(rest).ok());
        appended.filter(|event| event.seq == 0).ok_or(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64) -> String {
        format!(
            r#"{{"v":1,"seq":{seq},"time":"","elapsed_ms":1,"box_id":"a","type":"prepare.done"}}"#
        )
    }

    /// Pushes `text` in pieces of each size, and returns the events up to an error.
    fn decode(make: fn() -> EventDecoder, text: &str) -> (Vec<u64>, Option<String>) {
        let results = [1, 7, text.len().max(1)].map(|size| {
            let (mut decoder, mut found) = (make(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                decoder.push(piece);
                loop {
                    match decoder.next_event() {
                        Ok(Some(event)) => found.push(event.seq),
                        Ok(None) => break,
                        Err(error) => return (found, Some(error.to_string())),
                    }
                }
            }
            match decoder.finish() {
                Ok(last) => found.extend(last.map(|event| event.seq)),
                Err(error) => return (found, Some(error.to_string())),
            }
            (found, None)
        });
        assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
        results[0].clone()
    }

    #[test]
    fn stream_consists_of_whole_lines() {
        let (first, second) = (event(0), event(1));
        let of_stream = EventDecoder::of_stream;
        assert_eq!(decode(of_stream, &format!("{first}\n{second}\n")), (vec![0, 1], None));
        assert_eq!(decode(of_stream, &format!("{first}\n{second}")), (vec![0], None));
        let blank = Some("line 2 is not an event: ``".to_owned());
        assert_eq!(decode(of_stream, &format!("{first}\n\n{second}\n")), (vec![0], blank));
        let version = first.replace("\"v\":1", "\"v\":2");
        let refused = "line 1 has version 2 of the event format, expected 1".to_owned();
        assert_eq!(decode(of_stream, &format!("{version}\n")), (vec![], Some(refused)));
    }

    #[test]
    fn file_may_hold_cut_lines_of_killed_shims() {
        let (first, second) = (event(0), event(1));
        let of_file = EventDecoder::of_file;
        assert_eq!(decode(of_file, ""), (vec![], None));
        assert_eq!(decode(of_file, &format!("{first}\n\n{second}")), (vec![0, 1], None));
        let cut = &second[..30];
        assert_eq!(decode(of_file, &format!("{first}\n{cut}")), (vec![0], None));
        assert_eq!(decode(of_file, &format!("{first}\n{cut}{first}\n")), (vec![0, 0], None));
        let refused = Some("line 1 is not an event: `garbage`".to_owned());
        assert_eq!(decode(of_file, "garbage"), (vec![], refused));
    }

    #[test]
    fn line_of_the_greatest_length_is_read_and_a_longer_one_is_refused() {
        let longest = format!("{}{}", event(0), " ".repeat(MAX_EVENT_LINE_BYTES - event(0).len()));
        let mut decoder = EventDecoder::of_stream();
        decoder.push(longest.as_bytes());
        assert!(decoder.next_event().unwrap().is_none());
        decoder.push(b"\n");
        assert!(decoder.next_event().unwrap().is_some());
        decoder.push(longest.as_bytes());
        decoder.push(b" ");
        let error = decoder.next_event().unwrap_err();
        assert_eq!(error.to_string(), "line 2 is longer than 1048576 bytes");
    }

    #[test]
    fn decoding_goes_on_after_a_line_that_is_no_event() {
        let mut decoder = EventDecoder::of_stream();
        decoder.push(format!("noise\n{}\n", event(0)).as_bytes());
        decoder.next_event().unwrap_err();
        assert_eq!(decoder.next_event().unwrap().map(|event| event.seq), Some(0));
    }
}
