//! Fuzzes the control protocol: frames in pieces, as the shim reads them (`GuestMessage`) and as
//! the guest program reads them (`ShimMessage`).

#![no_main]

use std::fmt::Debug;
use std::iter;

use a3s_box_proto::control::{GuestMessage, ShimMessage};
use a3s_box_proto::frame::{FrameBuffer, FrameError, MAX_PAYLOAD_BYTES};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use scratch::memory;
use scratch::pieces::{Pieces, READ_BYTES};

/// Most memory of a reader: four times the content of a full buffer. A buffer doubles when it
/// grows, old and new memory exist for a moment, and a decoded message takes memory as well.
const MEMORY_BYTES: usize = 4 * (MAX_PAYLOAD_BYTES + 4 + READ_BYTES);

/// Pieces that follow an input, in all more than [`MEMORY_BYTES`]. As a length prefix their bytes
/// are above the limit, so a reader reports an error at the latest there.
const PADDING: [u8; READ_BYTES] = [1; READ_BYTES];
const PADDING_COUNT: usize = MEMORY_BYTES / READ_BYTES * 2;

fuzz_target!(|input: &[u8]| {
    let pieces = Pieces::new(input);
    check::<GuestMessage>(&pieces);
    check::<ShimMessage>(&pieces);
});

/// Checks that the reader finds the expected messages however the stream is cut, that each message
/// survives a round trip, and that an endless stream does not take endless memory.
fn check<M: Message + Default + PartialEq + Debug>(pieces: &Pieces<'_>) {
    let expected = read_whole::<M>(pieces.stream());
    assert_eq!(shown(&read::<M>(pieces.clone())), shown(&expected), "in pieces");
    assert_eq!(shown(&read::<M>(iter::once(pieces.stream()))), shown(&expected), "in one piece");
    for message in expected.0 {
        let again = M::decode(message.encode_to_vec().as_slice());
        assert_eq!(again.as_ref(), Ok(&message));
    }
    memory::within(MEMORY_BYTES, || {
        let padding = iter::repeat_n(PADDING.as_slice(), PADDING_COUNT);
        let mut buffer = FrameBuffer::default();
        for piece in pieces.clone().chain(padding) {
            buffer.push(piece);
            loop {
                match buffer.next_message::<M>() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
        panic!("no error after {PADDING_COUNT} pieces with an invalid length");
    });
}

/// The messages of a stream, and the error that ended it, if any.
type Read<M> = (Vec<M>, Result<(), FrameError>);

/// Formats messages and error. `FrameError` cannot be compared with `==`.
fn shown(read: &Read<impl Debug>) -> String {
    format!("{read:?}")
}

/// Reads all messages up to an error with the reader under test.
fn read<'a, M: Message + Default>(pieces: impl Iterator<Item = &'a [u8]>) -> Read<M> {
    let (mut buffer, mut messages) = (FrameBuffer::default(), Vec::new());
    for piece in pieces {
        buffer.push(piece);
        loop {
            match buffer.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Err(error)),
            }
        }
    }
    (messages, Ok(()))
}

/// Reads all messages up to an error, without a buffer: the reference for the reader under test.
fn read_whole<M: Message + Default>(mut stream: &[u8]) -> Read<M> {
    let mut messages = Vec::new();
    while let Some((prefix, rest)) = stream.split_first_chunk() {
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_PAYLOAD_BYTES {
            return (messages, Err(FrameError::TooLong { found: length }));
        }
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        match M::decode(payload) {
            Ok(message) => messages.push(message),
            Err(error) => return (messages, Err(error.into())),
        }
        stream = rest;
    }
    (messages, Ok(()))
}
