//! Gzip streams of layers: any number of members, optionally followed by zeros.
//!
//! RFC 1952, 2.2 allows any number of members. Tape drives and the tools of some registries append
//! zeros, and `gzip` itself ignores them. Other bytes after the last member are an error.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// A reader of all members of a gzip stream.
pub(super) struct Members<B>(State<B>);

enum State<B> {
    /// Inside a member.
    Member(Box<GzDecoder<B>>),
    /// After a member: another member, zeros or the end of the stream follow.
    AfterMember(B),
    Ended,
}

impl<B: BufRead> Members<B> {
    /// Creates a reader of a stream that begins with a member.
    pub(super) fn new(stream: B) -> Self {
        Self(State::Member(Box::new(GzDecoder::new(stream))))
    }
}

impl<B: BufRead> Read for Members<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // After an error the state stays `Ended`, so that later reads return no bytes.
            match std::mem::replace(&mut self.0, State::Ended) {
                State::Member(mut member) => {
                    let count = member.read(buffer)?;
                    // A read into an empty buffer returns zero as well, without the end of the
                    // member.
                    if count > 0 || buffer.is_empty() {
                        self.0 = State::Member(member);
                        return Ok(count);
                    }
                    self.0 = State::AfterMember(member.into_inner());
                }
                State::AfterMember(mut stream) => {
                    if has_member(&mut stream)? {
                        *self = Self::new(stream);
                    }
                }
                State::Ended => return Ok(0),
            }
        }
    }
}

/// Returns whether another member follows. If not, reads the stream to its end and checks that it
/// holds only zeros.
fn has_member(stream: &mut impl BufRead) -> io::Result<bool> {
    // The first byte is enough: a wrong second byte makes the decoder fail with a clear error.
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
