//! Chunks of a file: equal parts, each of which is a hole or in blocks that follow each other.

use std::io::{self, Write};

use crate::BLOCK_BYTES;
use crate::format::{CHUNK_INDEXES, HOLE, MAX_CHUNK_BITS};
use crate::tree::DataRange;
use crate::write::output::Output;

/// The chunks of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunks {
    /// Binary logarithm of the number of blocks of a chunk.
    bits: u8,
    /// The number of chunks. The last one may end behind the file.
    pub(super) count: u64,
}

impl Chunks {
    /// Chooses the largest chunks for a file: one for all of it if it has no holes and its data
    /// follow each other.
    pub(super) fn of(size_bytes: u64, ranges: &[DataRange]) -> Self {
        let file_blocks = size_bytes.div_ceil(BLOCK_BYTES);
        // One chunk may be larger than the file, because Linux ends the last chunk with the file.
        let mut bits = file_blocks.next_power_of_two().trailing_zeros();
        // Each segment must begin with a chunk. The first one begins with block 0, which all chunk
        // sizes divide.
        for segment in Segments::of(size_bytes, ranges).skip(1) {
            bits = bits.min(segment.file_block.trailing_zeros());
        }
        let bits = u8::try_from(bits).map_or(MAX_CHUNK_BITS, |bits| bits.min(MAX_CHUNK_BITS));
        Self { bits, count: file_blocks.div_ceil(1 << bits) }
    }

    /// Returns the format of chunks (`i_u.c.format`).
    pub(super) fn format(self) -> u32 {
        CHUNK_INDEXES | u32::from(self.bits)
    }

    /// Writes the places of all chunks.
    pub(super) fn write(
        self,
        (size_bytes, ranges): (u64, &[DataRange]),
        output: &mut Output<impl Write>,
    ) -> io::Result<()> {
        for segment in Segments::of(size_bytes, ranges) {
            // Only the last segment can end within a chunk, because each segment begins with one.
            for chunk in 0..segment.blocks.div_ceil(1 << self.bits) {
                let index = match segment.source {
                    Some((device, block)) => {
                        // A segment ends on its device, whose blocks have numbers of 32 bits.
                        let block = u64::from(block) + (chunk << self.bits);
                        encode(device, u32::try_from(block).unwrap_or(HOLE))
                    }
                    None => encode(0, HOLE),
                };
                output.write(&index)?;
            }
        }
        Ok(())
    }
}

/// Returns the place of a chunk: 2 unused bytes, the device, and the first block.
fn encode(device: u16, block: u32) -> [u8; 8] {
    let [d0, d1] = device.to_le_bytes();
    let [b0, b1, b2, b3] = block.to_le_bytes();
    [0, 0, d0, d1, b0, b1, b2, b3]
}

/// A longest part of a file that is one hole or in blocks that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    file_block: u64,
    blocks: u64,
    /// Device and block of the data, or none for a hole.
    source: Option<(u16, u32)>,
}

/// The segments of a file from its beginning to its end.
struct Segments<'a> {
    ranges: &'a [DataRange],
    at: u64,
    file_blocks: u64,
}

impl<'a> Segments<'a> {
    fn of(size_bytes: u64, ranges: &'a [DataRange]) -> Self {
        Self { ranges, at: 0, file_blocks: size_bytes.div_ceil(BLOCK_BYTES) }
    }
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        let start = self.at;
        if start >= self.file_blocks {
            return None;
        }
        let first = self.ranges.first().filter(|range| range.file_block == start).copied();
        let Some(first) = first else {
            self.at = self.ranges.first().map_or(self.file_blocks, |range| range.file_block);
            return Some(Segment { file_block: start, blocks: self.at - start, source: None });
        };
        // Ranges that continue each other are one segment, so that they can be in one chunk.
        while let Some((range, rest)) = self.ranges.split_first() {
            let offset = self.at - start;
            if range.file_block != self.at
                || range.device != first.device
                || u64::from(range.block) != u64::from(first.block) + offset
            {
                break;
            }
            self.at += u64::from(range.blocks);
            self.ranges = rest;
        }
        let source = Some((first.device, first.block));
        Some(Segment { file_block: start, blocks: self.at - start, source })
    }
}

#[cfg(test)]
mod tests {
    use super::{Chunks, DataRange};

    fn range(file_block: u64, device: u16, block: u32, blocks: u32) -> DataRange {
        DataRange { file_block, device, block, blocks }
    }

    fn chunks(blocks: u64, ranges: &[DataRange]) -> (u8, u64) {
        let chunks = Chunks::of(blocks * 4096, ranges);
        (chunks.bits, chunks.count)
    }

    #[test]
    fn contiguous_data_are_one_chunk() {
        assert_eq!(chunks(1, &[range(0, 1, 9, 1)]), (0, 1));
        assert_eq!(chunks(5, &[range(0, 1, 9, 5)]), (3, 1));
        assert_eq!(chunks(5, &[range(0, 1, 9, 2), range(2, 1, 11, 3)]), (3, 1));
    }

    #[test]
    fn a_file_without_data_is_one_chunk() {
        assert_eq!(chunks(1000, &[]), (10, 1));
    }

    #[test]
    fn chunks_begin_where_segments_do() {
        // A hole, another device, a jump on the device, and a hole at the end.
        assert_eq!(chunks(8, &[range(4, 1, 0, 4)]), (2, 2));
        assert_eq!(chunks(8, &[range(0, 1, 0, 4), range(4, 2, 4, 4)]), (2, 2));
        assert_eq!(chunks(8, &[range(0, 1, 0, 6), range(6, 1, 7, 2)]), (1, 4));
        assert_eq!(chunks(8, &[range(0, 1, 0, 7)]), (0, 8));
        assert_eq!(chunks(7, &[range(4, 1, 0, 3)]), (2, 2));
    }

    #[test]
    fn chunks_have_at_most_8_tib() {
        assert_eq!(Chunks::of(i64::MAX.unsigned_abs(), &[]), Chunks { bits: 31, count: 1 << 20 });
    }
}
