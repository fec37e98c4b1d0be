//! The messages between PID 1 and the child of a call, as frames on a socket.
//!
//! ```text
//! ┌───────────────────────┬──────┬────────────────────┐
//! │ length n, 4 bytes, LE │ kind │ message, n bytes   │   n is at most 73728
//! └───────────────────────┴──────┴────────────────────┘
//! ```

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use a3s_box_proto::files::FailureKind;
use prost::Message;

use super::failure::{FileError, Outcome};

/// Maximum number of bytes of content in a message.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// Maximum length of a message: a chunk, and its other fields with two paths.
pub(super) const MESSAGE_BYTES: usize = CHUNK_BYTES + 8 * 1024;

/// Length of a frame before its message.
pub(super) const HEADER_BYTES: usize = 5;

/// Time between two signs of life of a child that has nothing else to send.
const BEAT: Duration = Duration::from_secs(1);

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A message of the call.
    Message = 1,
    /// The last frame of a call that has succeeded.
    Done = 2,
    /// The last frame of a call that has failed: an encoded `Failed`.
    Failed = 3,
    /// A sign of life, without a message.
    Beat = 4,
}

/// The header of a frame.
pub(super) fn header(kind: Kind, length: usize) -> [u8; HEADER_BYTES] {
    // Both sides send messages of at most MESSAGE_BYTES, which the receiver checks.
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    [a, b, c, d, kind as u8]
}

/// Reads the header of a frame. Returns `None` if no such frame exists.
pub(super) fn parse_header(header: [u8; HEADER_BYTES]) -> Option<(Kind, usize)> {
    let [a, b, c, d, kind] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let kinds = [Kind::Message, Kind::Done, Kind::Failed, Kind::Beat];
    let kind = kinds.into_iter().find(|known| *known as u8 == kind)?;
    (length <= MESSAGE_BYTES).then_some((kind, length))
}

/// The child's end of the socket.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
    last_sent: Instant,
}

impl Channel {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, last_sent: Instant::now() }
    }

    /// Sends a message of the call.
    pub(super) fn send(&mut self, message: &impl Message) -> Outcome<()> {
        self.frame(Kind::Message, &message.encode_to_vec()).map_err(|_error| gone())
    }

    /// Sends a sign of life if none was sent for a while. Fails if PID 1 has given up the call.
    pub(super) fn beat(&mut self) -> Outcome<()> {
        if self.last_sent.elapsed() < BEAT {
            return Ok(());
        }
        self.frame(Kind::Beat, &[]).map_err(|_error| gone())
    }

    /// Receives the next message of the call.
    pub(super) fn receive<M: Message + Default>(&mut self) -> Outcome<M> {
        let mut header = [0; HEADER_BYTES];
        self.socket.read_exact(&mut header).map_err(|_error| gone())?;
        let (_, length) = parse_header(header).ok_or_else(gone)?;
        let mut message = vec![0; length];
        self.socket.read_exact(&mut message).map_err(|_error| gone())?;
        M::decode(message.as_slice())
            .map_err(|_error| FileError::invalid(b"", "a message is malformed"))
    }

    /// Sends the last frame.
    pub(super) fn end(&mut self, outcome: Outcome<()>) {
        let sent = match outcome {
            Ok(()) => self.frame(Kind::Done, &[]),
            Err(error) => self.frame(Kind::Failed, &error.0.encode_to_vec()),
        };
        // If it fails, PID 1 has given up the call, and nobody waits for its end.
        drop(sent);
    }

    fn frame(&mut self, kind: Kind, message: &[u8]) -> io::Result<()> {
        let frame = [&header(kind, message.len()), message].concat();
        self.socket.write_all(&frame)?;
        self.last_sent = Instant::now();
        Ok(())
    }
}

/// The stream of the call has ended before its last message.
fn gone() -> FileError {
    FileError::new(
        FailureKind::InvalidRequest,
        b"",
        "the stream of requests ended early: expected `finish` as the last message",
    )
}
