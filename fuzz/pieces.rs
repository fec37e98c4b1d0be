//! A stream that arrives in pieces, so that the fuzzer also decides where reads end.
//!
//! The first byte of an input is the number of sizes. The sizes follow, one byte each. The rest is
//! the stream. Sizes can be in units, so that pieces can be larger than 256 bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// The number of sizes is taken modulo this, so that most of an input is the stream.
const MAX_SIZES: u8 = 16;

/// Size of the buffer with which the shim reads from a guest.
pub const READ_BYTES: usize = 4096;

/// A stream with the sizes of its pieces.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    stream: &'a [u8],
    sizes: &'a [u8],
    next_size: usize,
    unit_bytes: usize,
}

impl<'a> Pieces<'a> {
    /// Divides an input into sizes and stream.
    #[must_use]
    pub fn new(input: &'a [u8]) -> Self {
        let (count, rest) = input.split_first().unwrap_or((&0, &[]));
        let count = usize::from(count % MAX_SIZES).min(rest.len());
        let (sizes, stream) = rest.split_at(count);
        Self { stream, sizes, next_size: 0, unit_bytes: 1 }
    }

    /// Divides an input whose sizes are in units.
    #[must_use]
    pub fn in_units(unit_bytes: usize, input: &'a [u8]) -> Self {
        Self { unit_bytes, ..Self::new(input) }
    }

    /// Returns the part of the stream that was not read yet.
    #[must_use]
    pub fn stream(&self) -> &'a [u8] {
        self.stream
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    /// Returns the next piece. The sizes repeat. Without sizes, each piece fills the shim's buffer.
    fn next(&mut self) -> Option<&'a [u8]> {
        let size = match self.sizes.get(self.next_size) {
            Some(size) => (usize::from(*size) + 1) * self.unit_bytes,
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
        // No piece is longer than the buffers of the readers here, so `put_slice` does not panic.
        buffer.put_slice(self.next().unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}
