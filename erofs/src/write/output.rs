//! The output, with its position and a buffer.

use std::io::{self, BufWriter, Write};

use crate::format::BLOCK;

/// Size of the buffer in bytes, which is the size of each write.
// Most inodes take less than 100 bytes. Each would cost a system call without a buffer.
const BUFFER_BYTES: usize = 256 * 1024;

/// A buffered output that counts its bytes.
pub(super) struct Output<W: Write> {
    inner: BufWriter<W>,
    // `Write` cannot report a position, because an output may be a pipe.
    position: u64,
}

impl<W: Write> Output<W> {
    /// Begins at position 0.
    pub(super) fn new(inner: W) -> Self {
        Self { inner: BufWriter::with_capacity(BUFFER_BYTES, inner), position: 0 }
    }

    /// Returns the number of bytes that were written.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Writes bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Writes zeros up to a position, if it is not reached yet.
    pub(super) fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        while self.position < position {
            let missing = usize::try_from(position - self.position).unwrap_or(BLOCK).min(BLOCK);
            self.write(&ZEROS[..missing])?;
        }
        Ok(())
    }

    /// Writes zeros up to the end of a block.
    pub(super) fn pad_to_block(&mut self) -> io::Result<()> {
        self.pad_to(self.position.next_multiple_of(BLOCK as u64))
    }

    /// Writes the rest of the buffer.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        // `BufWriter` would also write the rest when it is dropped, but it would ignore errors
        // then.
        self.inner.flush()
    }
}
