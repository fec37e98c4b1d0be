//! Length-prefixed messages on a byte stream: the framing of the control protocol.
//!
//! A frame is its payload's length (four bytes, little endian) and the payload. The
//! length is checked before a byte of the payload is kept, so a peer that lies about
//! it costs no memory.

use prost::Message;

/// Longest payload that is accepted. The largest honest message is `StartFailed`, whose
/// text the guest cuts at 4 KiB.
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024;

const PREFIX_BYTES: usize = 4;

/// Why a stream of frames cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced more than [`MAX_PAYLOAD_BYTES`].
    #[error("frame of {found} bytes, expected at most {MAX_PAYLOAD_BYTES}")]
    TooLong {
        /// Length that the prefix announced.
        found: usize,
    },
    /// The payload is not the expected message.
    #[error("frame does not hold the expected message")]
    Malformed(#[from] prost::DecodeError),
}

/// Encodes one message as a frame.
#[must_use]
pub fn encode(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    debug_assert!(length <= MAX_PAYLOAD_BYTES);
    let mut frame = Vec::with_capacity(PREFIX_BYTES + length);
    #[expect(clippy::cast_possible_truncation, reason = "bounded by MAX_PAYLOAD_BYTES")]
    frame.extend_from_slice(&(length as u32).to_le_bytes());
    frame.extend_from_slice(&message.encode_to_vec());
    frame
}

/// Bytes received so far, cut into messages.
///
/// Holds at most one frame and what one `push` added beyond it.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// Appends what was read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next complete message, if there is one.
    ///
    /// # Errors
    ///
    /// The stream is unusable after any error.
    pub fn next_message<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some((prefix, rest)) = self.bytes.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_PAYLOAD_BYTES {
            return Err(FrameError::TooLong { found: length });
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let message = M::decode(payload)?;
        self.bytes.drain(..PREFIX_BYTES + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{GuestMessage, Hello, guest_message};

    fn hello() -> GuestMessage {
        let hello = Hello { protocol_version: 1, guest_version: "1.2.3".into() };
        GuestMessage { message: Some(guest_message::Message::Hello(hello)) }
    }

    #[test]
    fn frames_cut_anywhere_arrive_whole() {
        let stream =
            [encode(&hello()), encode(&GuestMessage::default()), encode(&hello())].concat();
        for cut in 0..stream.len() {
            let mut buffer = FrameBuffer::default();
            let mut received = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                buffer.push(part);
                while let Some(message) = buffer.next_message::<GuestMessage>().unwrap() {
                    received.push(message);
                }
            }
            assert_eq!(received, [hello(), GuestMessage::default(), hello()], "cut at {cut}");
        }
    }

    #[test]
    fn an_announced_length_beyond_the_limit_is_refused_before_the_payload_comes() {
        let mut buffer = FrameBuffer::default();
        buffer.push(&u32::MAX.to_le_bytes());
        let error = buffer.next_message::<GuestMessage>().unwrap_err();
        assert!(matches!(error, FrameError::TooLong { found } if found == u32::MAX as usize));
    }

    #[test]
    fn a_payload_that_is_not_a_message_is_refused() {
        let mut buffer = FrameBuffer::default();
        buffer.push(&[2, 0, 0, 0, 0xff, 0xff]);
        assert!(matches!(buffer.next_message::<GuestMessage>(), Err(FrameError::Malformed(_))));
    }
}
