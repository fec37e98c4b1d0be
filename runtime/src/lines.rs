//! Reads events, one a line, from the shim's standard output.

use std::io;

use a3s_box_core::Event;
use a3s_box_core::event::EVENT_VERSION;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest line. The longest event is an `error` with its causes, some kilobytes.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Bytes asked for at once: what most events fit in.
const CHUNK_BYTES: usize = 8 * 1024;

/// How much of a line that is not an event is shown.
const EXCERPT_CHARS: usize = 80;

/// What came is not a stream of events.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("line {number} is not an event: `{excerpt}`")]
    NotAnEvent { number: u64, excerpt: String, source: serde_json::Error },
    #[error("line {number} is longer than {MAX_LINE_BYTES} bytes")]
    LineTooLong { number: u64 },
    #[error("line {number} has version {found} of the event format, expected {EVENT_VERSION}")]
    Version { number: u64, found: u32 },
    #[error("cannot read from the shim")]
    Read { source: io::Error },
}

/// Events from a reader.
#[derive(Debug)]
pub(crate) struct EventLines<R> {
    reader: R,
    /// What was read and not given out yet.
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` that hold no line feed.
    searched: usize,
    /// Number of the line that comes next, from 1.
    number: u64,
}

impl<R: AsyncRead + Unpin> EventLines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), searched: 0, number: 1 }
    }

    /// The next event, or `None` at the end of the stream. A last line without its line feed was
    /// cut by the end of the shim and is not looked at. Loses nothing when it is dropped midway.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, StreamError> {
        loop {
            if let Some(line) = self.take_line()? {
                return self.parse(&line).map(Some);
            }
            self.buffer.reserve(CHUNK_BYTES);
            let read = self.reader.read_buf(&mut self.buffer).await;
            if read.map_err(|source| StreamError::Read { source })? == 0 {
                return Ok(None);
            }
        }
    }

    fn take_line(&mut self) -> Result<Option<Vec<u8>>, StreamError> {
        let unsearched = self.buffer.iter().skip(self.searched);
        let Some(more) = unsearched.copied().position(|byte| byte == b'\n') else {
            self.searched = self.buffer.len();
            return self.refuse_longer_than_allowed(self.searched).map(|()| None);
        };
        let end = self.searched + more;
        self.refuse_longer_than_allowed(end)?;
        let rest = self.buffer.split_off(end + 1);
        self.searched = 0;
        Ok(Some(std::mem::replace(&mut self.buffer, rest)))
    }

    fn refuse_longer_than_allowed(&self, bytes: usize) -> Result<(), StreamError> {
        if bytes > MAX_LINE_BYTES {
            return Err(StreamError::LineTooLong { number: self.number });
        }
        Ok(())
    }

    fn parse(&mut self, line: &[u8]) -> Result<Event, StreamError> {
        let number = self.number;
        self.number += 1;
        let event: Event = serde_json::from_slice(line).map_err(|source| {
            let text = String::from_utf8_lossy(line);
            let excerpt = text.trim_end().chars().take(EXCERPT_CHARS);
            let excerpt = excerpt.flat_map(char::escape_debug).collect();
            StreamError::NotAnEvent { number, excerpt, source }
        })?;
        if event.v != EVENT_VERSION {
            return Err(StreamError::Version { number, found: event.v });
        }
        Ok(event)
    }
}
