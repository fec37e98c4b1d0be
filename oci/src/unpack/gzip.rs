//! Gzip as layers have it: members one after the other, and perhaps zeros behind the last.
//!
//! RFC 1952, 2.2 allows any number of members. Zeros behind them are what tape drives and some
//! registries' tools leave, and what `gzip` itself passes over; anything else there is an error.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// All members of a gzip stream, as one.
pub(super) struct Members<B>(State<B>);

enum State<B> {
    Member(Box<GzDecoder<B>>),
    Behind(B),
    Ended,
}

impl<B: BufRead> Members<B> {
    /// Takes a stream that begins with a member.
    pub(super) fn new(stream: B) -> Self {
        Self(State::Member(Box::new(GzDecoder::new(stream))))
    }
}

impl<B: BufRead> Read for Members<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Nothing follows an error.
            match std::mem::replace(&mut self.0, State::Ended) {
                State::Member(mut member) => {
                    let count = member.read(buffer)?;
                    if count > 0 || buffer.is_empty() {
                        self.0 = State::Member(member);
                        return Ok(count);
                    }
                    self.0 = State::Behind(member.into_inner());
                }
                State::Behind(mut stream) => {
                    if has_member(&mut stream)? {
                        *self = Self::new(stream);
                    }
                }
                State::Ended => return Ok(0),
            }
        }
    }
}

/// Whether another member follows; without one the stream is read to its end.
fn has_member(stream: &mut impl BufRead) -> io::Result<bool> {
    if stream.fill_buf()?.first() == Some(&0x1f) {
        return Ok(true);
    }
    loop {
        let bytes = stream.fill_buf()?;
        let length = bytes.len();
        if length == 0 {
            return Ok(false);
        }
        if bytes.iter().any(|byte| *byte != 0) {
            let text =
                "expected zeros or another member behind a gzip member, found something else";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        stream.consume(length);
    }
}
