//! The blocks of file content in a layer file.
//!
//! The content of each file starts at a new block, because EROFS maps whole blocks. A block of
//! zeros is not written: it becomes a hole, which takes neither disk nor page cache. The rest of a
//! file's last block is filled with zeros, because a process that maps the file can see it.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;

use a3s_box_erofs::BLOCK_BYTES;

use super::index::BlockRange;

/// Size of a block as the length of a buffer.
pub(super) const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_BYTES, "the two sizes are the same number");

/// Size of the writes: large enough that system calls cost little.
const WRITE_BYTES: usize = 1 << 20;

/// Bytes of at least this size are written from where they are. A system call costs less than the
/// copy of them.
const DIRECT_BYTES: usize = 64 << 10;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The growing layer file. It is written from its beginning to its end, in large writes.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    buffer: Vec<u8>,
    blocks: u32,
}

impl Output {
    pub(super) fn new(file: File) -> Self {
        Self { file, buffer: Vec::with_capacity(WRITE_BYTES), blocks: 0 }
    }

    /// Returns the number of blocks so far.
    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Appends blocks, and returns the range of numbers that they have got.
    fn push(&mut self, blocks: &[[u8; BLOCK]]) -> io::Result<Range<u32>> {
        let start = self.blocks;
        // EROFS numbers blocks by 32 bits, so that a layer file has at most 16 TiB.
        let count = u32::try_from(blocks.len()).map_err(|_large| io::ErrorKind::FileTooLarge)?;
        self.blocks = start.checked_add(count).ok_or(io::ErrorKind::FileTooLarge)?;
        self.append(blocks.as_flattened())?;
        Ok(start..self.blocks)
    }

    /// Writes what is still in memory, and returns the file.
    pub(super) fn finish(mut self) -> io::Result<File> {
        self.file.write_all(&self.buffer)?;
        Ok(self.file)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let is_direct = bytes.len() >= DIRECT_BYTES;
        if is_direct || self.buffer.len() + bytes.len() > WRITE_BYTES {
            self.file.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        if is_direct {
            return self.file.write_all(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }
}

/// Bytes behind the data: the index and the trailer.
impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The content of one file, while it is written.
#[derive(Debug)]
pub(super) struct Body {
    /// The start of a block whose rest has not come yet.
    block: Box<[u8; BLOCK]>,
    filled: usize,
    runs: Runs,
}

/// The blocks of one file so far.
#[derive(Debug, Default)]
struct Runs {
    /// The next block of the file.
    next: u64,
    /// The range that the next block can extend.
    open: Option<BlockRange>,
    closed: Vec<BlockRange>,
}

impl Body {
    pub(super) fn new() -> Self {
        Self { block: Box::new([0; BLOCK]), filled: 0, runs: Runs::default() }
    }

    /// Returns the ranges that are complete, and forgets them. Callers take them regularly, so that
    /// a file with many holes does not fill the memory.
    pub(super) fn take_ranges(&mut self) -> impl Iterator<Item = BlockRange> {
        self.runs.closed.drain(..)
    }

    /// Appends content at the current position of the file. Returns how many of its bytes are zeros
    /// that fill a block of the file. A part of a block at the start or the end of `bytes` counts as
    /// well, because the rest of the block can be in another call.
    pub(super) fn write(&mut self, output: &mut Output, mut bytes: &[u8]) -> io::Result<u64> {
        let mut zero_bytes = 0;
        while !bytes.is_empty() {
            if self.filled == 0 && bytes.len() >= BLOCK {
                let (blocks, rest) = bytes.as_chunks();
                for alike in blocks.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
                    zero_bytes += self.runs.append(output, alike)?;
                }
                bytes = rest;
                continue;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            zero_bytes += if *part == ZEROS[..part.len()] { part.len() as u64 } else { 0 };
            self.block[self.filled..][..part.len()].copy_from_slice(part);
            self.filled += part.len();
            bytes = rest;
            if self.filled == BLOCK {
                self.fill_block(output)?;
            }
        }
        Ok(zero_bytes)
    }

    /// Moves the position of the file forward to `offset` in bytes. The bytes in between are zeros.
    pub(super) fn skip_to(&mut self, output: &mut Output, offset: u64) -> io::Result<()> {
        let (block, inside) = (offset / BLOCK_BYTES, offset % BLOCK_BYTES);
        if block > self.runs.next {
            if self.filled > 0 {
                self.fill_block(output)?;
            }
            self.runs.skip_to(block);
        }
        // A position is below the size of a block, which is the length of a buffer.
        let inside = usize::try_from(inside).unwrap_or_default();
        self.block[self.filled..inside.max(self.filled)].fill(0);
        self.filled = inside.max(self.filled);
        Ok(())
    }

    /// Completes the file, so that [`Self::take_ranges`] returns the rest of its ranges. The next
    /// file starts at a new block.
    pub(super) fn finish(&mut self, output: &mut Output) -> io::Result<()> {
        if self.filled > 0 {
            self.fill_block(output)?;
        }
        self.runs.close();
        self.runs.next = 0;
        Ok(())
    }

    /// Appends the current block, with zeros in the part that has no content.
    fn fill_block(&mut self, output: &mut Output) -> io::Result<()> {
        self.block[self.filled..].fill(0);
        self.filled = 0;
        self.runs.append(output, std::slice::from_ref(&*self.block)).map(drop)
    }
}

impl Runs {
    /// Appends blocks, either only ones of zeros or none. Returns the number of bytes that become a
    /// hole.
    fn append(&mut self, output: &mut Output, blocks: &[[u8; BLOCK]]) -> io::Result<u64> {
        let file_block = self.next;
        self.next += blocks.len() as u64;
        if blocks.first().is_none_or(is_zero) {
            self.close();
            return Ok(blocks.len() as u64 * BLOCK_BYTES);
        }
        let numbers = output.push(blocks)?;
        let count = numbers.end - numbers.start;
        match &mut self.open {
            // No other file writes in between, so that the blocks follow each other.
            Some(range) => range.blocks += count,
            None => {
                self.open = Some(BlockRange { file_block, block: numbers.start, blocks: count });
            }
        }
        Ok(0)
    }

    fn skip_to(&mut self, file_block: u64) {
        if file_block > self.next {
            self.next = file_block;
            self.close();
        }
    }

    fn close(&mut self) {
        self.closed.extend(self.open.take());
    }
}

/// Returns whether a block becomes a hole.
fn is_zero(block: &[u8; BLOCK]) -> bool {
    *block == ZEROS
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;
    use crate::unpack::body::write_at;

    const B: usize = BLOCK;

    /// Writes pieces at offsets. Returns the ranges as triples, and the data.
    fn write(pieces: &[(usize, &[u8])]) -> (Vec<(u64, u32, u32)>, Vec<u8>) {
        let mut output = Output::new(tempfile::tempfile().unwrap());
        let mut body = Body::new();
        // An earlier file must not show in the next one.
        body.write(&mut output, &[9; 10]).unwrap();
        body.finish(&mut output).unwrap();
        body.take_ranges().for_each(drop);
        for (offset, bytes) in pieces {
            body.skip_to(&mut output, *offset as u64).unwrap();
            body.write(&mut output, bytes).unwrap();
        }
        body.finish(&mut output).unwrap();
        let ranges =
            body.take_ranges().map(|range| (range.file_block, range.block, range.blocks)).collect();
        let blocks = output.blocks();
        let mut file = output.finish().unwrap();
        let mut data = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut data).unwrap();
        assert_eq!(data.len(), blocks as usize * B);
        (ranges, data.split_off(B))
    }

    #[test]
    fn content_in_pieces_of_any_size_is_one_range_padded_by_zeros() {
        let content: Vec<u8> =
            (0..3 * B + 100).map(|at| u8::try_from(at % 251).unwrap() + 1).collect();
        for size in [1, 7, B - 1, B, B + 1, 2 * B + 5, content.len()] {
            let pieces: Vec<(usize, &[u8])> = content
                .chunks(size)
                .enumerate()
                .map(|(number, piece)| (number * size, piece))
                .collect();
            let (ranges, data) = write(&pieces);
            assert_eq!(ranges, [(0, 1, 4)], "{size}");
            assert_eq!(data[..content.len()], content, "{size}");
            assert!(data[content.len()..].iter().all(|byte| *byte == 0), "{size}");
        }
    }

    #[test]
    fn blocks_of_zeros_are_holes() {
        let mut content = vec![0; 5 * B];
        (content[B], content[3 * B - 1], content[4 * B + 1]) = (1, 2, 3);
        let (ranges, data) = write(&[(0, &content)]);
        assert_eq!(ranges, [(1, 1, 2), (4, 3, 1)]);
        assert_eq!(data, [&content[B..3 * B], &content[4 * B..]].concat());
        assert_eq!(write(&[(0, &[0; 2 * B])]).0, []);
        assert_eq!(write(&[]).0, []);
    }

    #[test]
    fn long_runs_are_written_behind_what_is_in_the_buffer() {
        let long = DIRECT_BYTES + B;
        let mut content = vec![1; 3 * long];
        // The hole divides the runs, and the last one is short.
        content[long..long + B].fill(0);
        content.truncate(2 * long + 2 * B);
        let (ranges, data) = write(&[(0, &content[..100]), (100, &content[100..])]);
        let (long, all) = (u32::try_from(long / B).unwrap(), content.len() / B);
        let rest = u32::try_from(all).unwrap() - long - 1;
        assert_eq!(ranges, [(0, 1, long), (u64::from(long) + 1, 1 + long, rest)]);
        assert_eq!(data, vec![1; (all - 1) * B]);
    }

    #[test]
    fn zeros_are_counted_as_the_unpacker_counts_them() {
        // Each letter stands for a part of 1000 bytes, and `0` for zeros.
        for pattern in ["", "0", "a0", "0a", "000000000a", "a00000b000000000000", "a0b0c0000000d"] {
            let bytes: Vec<u8> = pattern
                .bytes()
                .flat_map(|letter| [if letter == b'0' { 0 } else { letter }; 1000])
                .collect();
            for size in [1, 512, B - 1, B, B + 1, 9000, 1 << 20] {
                let mut output = Output::new(tempfile::tempfile().unwrap());
                let (mut body, file) = (Body::new(), tempfile::tempfile().unwrap());
                let mut offset = 0;
                for part in bytes.chunks(size) {
                    let expected = write_at(&file, part, offset).unwrap();
                    let found = body.write(&mut output, part).unwrap();
                    assert_eq!(found, expected, "{pattern} in parts of {size}, at {offset}");
                    offset += part.len() as u64;
                }
            }
        }
    }

    #[test]
    fn skipped_bytes_are_zeros_in_the_same_block_and_holes_elsewhere() {
        let (ranges, data) = write(&[(10, b"a"), (20, b"b"), (5 * B + 1, b"c"), (9 * B, b"d")]);
        assert_eq!(ranges, [(0, 1, 1), (5, 2, 1), (9, 3, 1)]);
        let mut expected = vec![0; 3 * B];
        (expected[10], expected[20], expected[B + 1], expected[2 * B]) = (b'a', b'b', b'c', b'd');
        assert_eq!(data, expected);
    }

    #[test]
    fn skip_from_the_end_of_a_block_leaves_a_hole() {
        let (ranges, _) = write(&[(0, &[1; B]), (B, b"x"), (2 * B, &[1; B]), (4 * B, b"y")]);
        assert_eq!(ranges, [(0, 1, 3), (4, 4, 1)]);
        let (ranges, _) = write(&[(3 * B, &[1; B])]);
        assert_eq!(ranges, [(3, 1, 1)]);
    }
}
