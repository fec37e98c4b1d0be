//! The control protocol: frames in pieces, read by the shim (`GuestMessage`) and by PID 1 of the guest
//! (`ShimMessage`).

#![no_main]

use std::fmt::Debug;
use std::iter;

use a3s_box_proto::control::{GuestMessage, ShimMessage};
use a3s_box_proto::frame::{FrameBuffer, FrameError, MAX_PAYLOAD_BYTES};
use ground::memory;
use ground::pieces::{Pieces, READ_BYTES};
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// What a buffer may hold, four times: it doubles when it grows, into new memory, and a message may
/// come of it.
const MEMORY_BYTES: usize = 4 * (MAX_PAYLOAD_BYTES + 4 + READ_BYTES);

/// What a peer goes on with, more than `MEMORY_BYTES`. As a length it is too much.
const MORE: [u8; READ_BYTES] = [1; READ_BYTES];
const TIMES_MORE: usize = MEMORY_BYTES / READ_BYTES * 2;

fuzz_target!(|input: &[u8]| {
    let pieces = Pieces::new(input);
    check::<GuestMessage>(&pieces);
    check::<ShimMessage>(&pieces);
});

fn check<M: Message + Default + PartialEq + Debug>(pieces: &Pieces<'_>) {
    let expected = by_the_book::<M>(pieces.stream());
    assert_eq!(shown(&read::<M>(pieces.clone())), shown(&expected), "in pieces");
    assert_eq!(shown(&read::<M>(iter::once(pieces.stream()))), shown(&expected), "in one");
    for message in expected.0 {
        let again = M::decode(message.encode_to_vec().as_slice());
        assert_eq!(again.as_ref(), Ok(&message));
    }
    memory::within(MEMORY_BYTES, || {
        let more = iter::repeat_n(MORE.as_slice(), TIMES_MORE);
        let mut buffer = FrameBuffer::default();
        for piece in pieces.clone().chain(more) {
            buffer.push(piece);
            loop {
                match buffer.next_message::<M>() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
        panic!("{TIMES_MORE} pieces are no end of the stream");
    });
}

type Read<M> = (Vec<M>, Result<(), FrameError>);

fn shown(read: &Read<impl Debug>) -> String {
    format!("{read:?}")
}

/// Reads all messages up to an error.
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

/// Does the same with the whole stream at hand.
fn by_the_book<M: Message + Default>(mut stream: &[u8]) -> Read<M> {
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
