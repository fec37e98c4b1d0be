//! [`EventLines`]: reads the events from the standard output of a shim.

use std::io;

use a3s_box_core::{Event, EventDecoder, EventLineError};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Size of a read in bytes. Most events are shorter.
const CHUNK_BYTES: usize = 8 * 1024;

/// Why no more events can be read from the output of the shim.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error(transparent)]
    Line(#[from] EventLineError),
    #[error("cannot read from the shim")]
    Read { source: io::Error },
}

/// A reader, and the decoder of its events.
#[derive(Debug)]
pub(crate) struct EventLines<R> {
    reader: R,
    decoder: EventDecoder,
    chunk: Box<[u8]>,
}

impl<R: AsyncRead + Unpin> EventLines<R> {
    pub(crate) fn new(reader: R) -> Self {
        let chunk = vec![0; CHUNK_BYTES].into_boxed_slice();
        Self { reader, decoder: EventDecoder::of_stream(), chunk }
    }

    /// Returns the next event, or `None` at the end of the stream. A last line without its line
    /// feed is ignored, because the shim ended while it wrote the line.
    ///
    /// The future may be dropped at any time without a loss: a read that was not completed has
    /// taken nothing from the reader.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, StreamError> {
        loop {
            if let Some(event) = self.decoder.next_event()? {
                return Ok(Some(event));
            }
            let read = self.reader.read(&mut self.chunk).await;
            match read.map_err(|source| StreamError::Read { source })? {
                0 => return Ok(None),
                count => self.decoder.push(self.chunk.get(..count).unwrap_or_default()),
            }
        }
    }
}
