//! A stream, and the pieces in which it arrives: the first byte of an input says how many of those
//! after it are sizes, and the rest is the stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// Sizes that an input can have.
const MAX_SIZES: u8 = 16;

/// What the shim reads from a guest at once.
pub const READ_BYTES: usize = 4096;

/// A stream in pieces.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    stream: &'a [u8],
    sizes: &'a [u8],
    next_size: usize,
}

impl<'a> Pieces<'a> {
    /// Divides an input.
    #[must_use]
    pub fn new(input: &'a [u8]) -> Self {
        let (count, rest) = input.split_first().unwrap_or((&0, &[]));
        let count = usize::from(count % MAX_SIZES).min(rest.len());
        let (sizes, stream) = rest.split_at(count);
        Self { stream, sizes, next_size: 0 }
    }

    /// Returns all of it, as far as it was not taken.
    #[must_use]
    pub fn stream(&self) -> &'a [u8] {
        self.stream
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    /// The sizes come round; without any, pieces are what the shim reads.
    fn next(&mut self) -> Option<&'a [u8]> {
        let size = match self.sizes.get(self.next_size) {
            Some(size) => usize::from(*size) + 1,
            None => READ_BYTES,
        };
        self.next_size = (self.next_size + 1) % self.sizes.len().max(1);
        let (piece, rest) = self.stream.split_at(size.min(self.stream.len()));
        self.stream = rest;
        (!piece.is_empty()).then_some(piece)
    }
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A piece is shorter than what readers here have room for.
        buffer.put_slice(self.next().unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}
