//! The framing of the control protocol: length-prefixed messages on a byte stream.
//!
//! ```text
//! ┌──────────────────────────────┬─────────────────────┐
//! │ length n, 4 bytes, LE        │ message, n bytes    │   n is at most 16384
//! └──────────────────────────────┴─────────────────────┘
//! ```
//!
//! [`FrameBuffer`] checks the length before it waits for the payload. A peer that announces a huge
//! payload thus gets an error and no memory.

use prost::Message;

/// Longest payload that is accepted, in bytes. The largest message is `StartFailed`, whose text the
/// guest program cuts to 4 KiB. The rest is reserve for later versions.
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024;

/// Size of the length in front of each payload.
const PREFIX_BYTES: usize = 4;

/// Reason why a stream of frames cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced more than [`MAX_PAYLOAD_BYTES`].
    #[error("frame of {found} bytes, expected at most {MAX_PAYLOAD_BYTES}")]
    TooLong {
        /// Length that the prefix announced.
        found: usize,
    },
    /// The payload is not an encoding of the expected message.
    #[error("frame does not hold the expected message")]
    Malformed(#[from] prost::DecodeError),
}

/// Encodes one message as a frame. The message must not encode to more than [`MAX_PAYLOAD_BYTES`],
/// because the receiver would refuse it.
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

/// Collects received bytes and cuts them into messages.
///
/// The caller must take all messages with [`next_message`](Self::next_message) after each
/// [`push`](Self::push). The buffer then holds at most one incomplete frame between two pushes.
///
/// ```
/// use a3s_box_proto::control::GuestMessage;
/// use a3s_box_proto::frame::{FrameBuffer, encode};
///
/// let frame = encode(&GuestMessage::default());
/// let mut buffer = FrameBuffer::default();
/// buffer.push(&frame[..3]);
/// assert_eq!(buffer.next_message::<GuestMessage>()?, None);
/// buffer.push(&frame[3..]);
/// assert_eq!(buffer.next_message::<GuestMessage>()?, Some(GuestMessage::default()));
/// # Ok::<_, a3s_box_proto::frame::FrameError>(())
/// ```
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// Appends bytes that were read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Removes and returns the next message, or returns `None` if no frame is complete.
    ///
    /// # Errors
    ///
    /// - [`TooLong`](FrameError::TooLong): the length is above [`MAX_PAYLOAD_BYTES`].
    /// - [`Malformed`](FrameError::Malformed): the payload does not decode as an `M`.
    ///
    /// The caller must close the stream after an error, because the position of the next frame is
    /// unknown.
    pub fn next_message<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some((prefix, rest)) = self.bytes.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        // This check precedes the wait for the payload, so the buffer never grows to a length that
        // the peer invented.
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
    fn frames_that_arrive_in_two_parts_are_decoded_whole() {
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
    fn length_above_the_limit_is_refused_before_the_payload_arrives() {
        let mut buffer = FrameBuffer::default();
        buffer.push(&u32::MAX.to_le_bytes());
        let error = buffer.next_message::<GuestMessage>().unwrap_err();
        assert!(matches!(error, FrameError::TooLong { found } if found == u32::MAX as usize));
    }

    #[test]
    fn payload_that_is_no_message_is_refused() {
        let mut buffer = FrameBuffer::default();
        buffer.push(&[2, 0, 0, 0, 0xff, 0xff]);
        assert!(matches!(buffer.next_message::<GuestMessage>(), Err(FrameError::Malformed(_))));
    }
}
