//! A gRPC server that sends given answers. Its HTTP/2 frames follow RFC 9113 and RFC 7541.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Length of the preface that a client sends before its first frame (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

/// Initial value of SETTINGS_MAX_FRAME_SIZE: a client accepts a payload of this length by default.
const FRAME_BYTES: usize = 16 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// One answer.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// A message with its prefix, and the status OK.
    Message(&'a [u8]),
    /// Raw bytes in place of a message and its prefix, and the status OK.
    Body(&'a [u8]),
    /// A status, and a text for people, truncated to 126 bytes.
    Status(u8, &'a [u8]),
}

/// Answers one request after the other until the client closes the connection.
///
/// # Errors
///
/// Returns the error of the closed connection. There is no other end.
pub async fn serve(mut client: UnixStream, answers: &[Answer<'_>]) -> io::Result<()> {
    client.read_exact(&mut [0; PREFACE_BYTES]).await?;
    client.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let mut answers = answers.iter();
    loop {
        // The head of a frame: length (24 bits), type, flags, stream (RFC 9113, section 4.1).
        let [a, b, c, kind, _flags, w, x, y, z] = {
            let mut head = [0; 9];
            client.read_exact(&mut head).await?;
            head
        };
        // The payload is discarded: each request gets the next answer, whatever it contains.
        client.read_exact(&mut vec![0; u32::from_be_bytes([0, a, b, c]) as usize]).await?;
        if kind == HEADERS
            && let Some(answer) = answers.next()
        {
            client.write_all(&answer.frames(u32::from_be_bytes([w, x, y, z]))).await?;
        }
    }
}

impl Answer<'_> {
    /// Returns the frames of the answer on a stream.
    fn frames(self, stream: u32) -> Vec<u8> {
        // HPACK: entry 8 of the static table is `:status: 200`, entry 31 is `content-type`.
        let mut head = b"\x88\x0f\x10\x10application/grpc".to_vec();
        let (body, status, text) = match self {
            Self::Message(message) => (prefixed(message), 0, &[][..]),
            Self::Body(body) => (body.to_vec(), 0, &[][..]),
            Self::Status(status, text) => (Vec::new(), status, text),
        };
        let mut tail = header(b"grpc-status", status.to_string().as_bytes());
        if !text.is_empty() {
            tail.extend(header(b"grpc-message", text));
        }
        // gRPC calls a response of one HEADERS frame "Trailers-Only".
        if body.is_empty() {
            head.extend(tail);
            return frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
        }
        let mut frames = frame(HEADERS, END_HEADERS, stream, &head);
        for part in body.chunks(FRAME_BYTES) {
            frames.extend(frame(DATA, 0, stream, part));
        }
        frames.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &tail));
        frames
    }
}

/// Returns a gRPC message with its prefix: the byte 0 for "not compressed", and the length.
fn prefixed(message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend(length(message).to_be_bytes());
    body.extend(message);
    body
}

/// Returns an HPACK field without an index. Values are truncated to 126 bytes, because longer
/// lengths do not fit into the one byte of the prefix (RFC 7541, section 5.1).
fn header(name: &[u8], value: &[u8]) -> Vec<u8> {
    let value = &value[..value.len().min(126)];
    let mut field = vec![0];
    for text in [name, value] {
        field.extend(length(text).to_be_bytes().last());
        field.extend(text);
    }
    field
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = length(payload).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}
