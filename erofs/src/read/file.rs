//! The file of an image, and the bounds of reads from it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::format::BLOCK;
use crate::read::error::ReadError;

/// A file that can be read at any place.
pub trait ReadAt {
    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    ///
    /// The file ends before, or cannot be read.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let part =
            usize::try_from(offset).ok().and_then(|start| self.get(start..)?.get(..bytes.len()));
        bytes.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(bytes, offset)
    }
}

/// Number of blocks that are read at once. Inodes and directories are mostly read in their order.
const WINDOW_BLOCKS: u64 = 8;

/// The metadata image in its file.
pub(super) struct Bounded<'a, F> {
    file: &'a F,
    image_bytes: u64,
    /// Bytes that parts may still have.
    unclaimed_bytes: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl<'a, F: ReadAt> Bounded<'a, F> {
    /// Takes the first blocks of the file as the image.
    pub(super) fn new(file: &'a F, blocks: u32) -> Self {
        let image_bytes = u64::from(blocks) * BLOCK as u64;
        let window = Vec::new();
        Self { file, image_bytes, unclaimed_bytes: image_bytes, window, window_start: 0 }
    }

    /// Returns bytes of the image, which are a part of their own.
    pub(super) fn claim(&mut self, offset: u64, bytes: usize) -> Result<&[u8], ReadError> {
        // Each byte of a correct image belongs to one part. If the parts have more bytes than the
        // image, at least two of them overlap.
        let left = self.unclaimed_bytes.checked_sub(bytes as u64);
        self.unclaimed_bytes = left.ok_or(ReadError::Overlap)?;
        self.read(offset, bytes)
    }

    /// Returns bytes of the image.
    pub(super) fn read(&mut self, offset: u64, bytes: usize) -> Result<&[u8], ReadError> {
        let length = bytes as u64;
        let end = offset.checked_add(length).filter(|end| *end <= self.image_bytes);
        let end = end.ok_or(ReadError::Outside { offset, bytes: length })?;
        if offset < self.window_start || end > self.window_start + self.window.len() as u64 {
            let block = BLOCK as u64;
            let start = offset - offset % block;
            let end = end.max(start + WINDOW_BLOCKS * block).min(self.image_bytes);
            // If reading fails, there is no window. A later call must not return bytes of a window
            // that was not filled.
            self.window_start = 0;
            self.window.clear();
            let mut window = std::mem::take(&mut self.window);
            // `bytes` is the size of one part, at most 256 KiB.
            window.resize(usize::try_from(end - start).unwrap_or(BLOCK), 0);
            self.file.read_exact_at(&mut window, start).map_err(ReadError::File)?;
            (self.window, self.window_start) = (window, start);
        }
        let start = usize::try_from(offset - self.window_start).unwrap_or_default();
        Ok(&self.window[start..start + bytes])
    }
}
