//! Writes the content of files, and leaves out blocks of zeros.
//!
//! Logs of logins (`lastlog`), databases and disk images in layers are gigabytes of zeros. A file
//! system reads a range that was never written, a hole, as zeros. Holes take neither disk space nor
//! time to write, so such a layer costs little more than its compressed size.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Size of the blocks of a file: those of ext4, XFS and the page cache. A smaller hole would save no
/// disk space.
const BLOCK_BYTES: usize = 4096;

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Writes `bytes` at `offset` of a new file, and leaves out blocks of zeros. Returns the number of
/// bytes that were left out. A part of a block at the start or the end of `bytes` is left out as
/// well, because the rest of the block can be in another call.
///
/// The file must have no data at or behind `offset`. A caller sets the size of the file at its end,
/// because zeros at the end of a file are left out too.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<u64> {
    let mut left_out = 0;
    // The bytes from `start` to `at` hold data that is not written yet.
    let (mut start, mut at) = (0, 0);
    while at < bytes.len() {
        let (block, zeros) = first_block(&bytes[at..], offset + at as u64);
        if zeros == 0 {
            at += block;
            continue;
        }
        file.write_all_at(&bytes[start..at], offset + start as u64)?;
        left_out += zeros as u64;
        at += zeros;
        start = at;
    }
    file.write_all_at(&bytes[start..], offset + start as u64)?;
    Ok(left_out)
}

/// Returns the length of the first block of `bytes`, which are at `offset` of a file, and the length
/// of all blocks of zeros at the start of `bytes`. The first and the last block can be shorter than
/// others.
fn first_block(bytes: &[u8], offset: u64) -> (usize, usize) {
    // The remainder is smaller than the block, so the conversion does not fail.
    let into_block = usize::try_from(offset % BLOCK_BYTES as u64).unwrap_or_default();
    let first = bytes.len().min(BLOCK_BYTES - into_block);
    let mut zeros = 0;
    let mut block = first;
    // The comparison ends at the first byte that differs, so data costs nearly nothing here.
    while block > 0 && bytes[zeros..zeros + block] == ZEROS[..block] {
        zeros += block;
        block = (bytes.len() - zeros).min(BLOCK_BYTES);
    }
    (first, zeros)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Writes `bytes` in parts of `part` bytes. Returns the file, and the bytes that were left out.
    fn written(bytes: &[u8], part: usize) -> (File, u64) {
        let file = tempfile::tempfile().unwrap();
        let mut offset = 0;
        let left_out = bytes.chunks(part).map(|part| {
            offset += part.len() as u64;
            write_at(&file, part, offset - part.len() as u64).unwrap()
        });
        let left_out = left_out.sum();
        file.set_len(bytes.len() as u64).unwrap();
        (file, left_out)
    }

    #[test]
    fn content_with_zeros_is_the_same_in_parts_of_any_size() {
        // Each letter stands for a part of 1000 bytes, and `0` for zeros.
        for pattern in ["", "0", "a", "a0", "0a", "000000a", "a00000b000000000000", "a0b0c0000000d"]
        {
            let bytes: Vec<u8> = pattern
                .bytes()
                .flat_map(|letter| [if letter == b'0' { 0 } else { letter }; 1000])
                .collect();
            for part in [1, 511, 512, 4095, 4096, 4097, 9000, 1 << 20] {
                let (mut file, _) = written(&bytes, part);
                let mut found = Vec::new();
                io::Seek::rewind(&mut file).unwrap();
                file.read_to_end(&mut found).unwrap();
                assert!(found == bytes, "{pattern} in parts of {part}");
            }
        }
    }

    #[test]
    fn whole_blocks_of_zeros_become_holes() {
        let block = |byte| [byte; BLOCK_BYTES];
        let bytes = [block(1), block(0), block(0), block(2), block(0)].concat();
        for part in [1 << 20, BLOCK_BYTES, 2 * BLOCK_BYTES, 512, 5000] {
            let expected = 3 * BLOCK_BYTES as u64;
            let (file, found) = written(&bytes, part);
            assert_eq!(found, expected, "{part}");
            // `st_blocks` counts in units of 512 bytes (stat(2)).
            let allocated = file.metadata().unwrap().blocks() * 512;
            assert_eq!(allocated, bytes.len() as u64 - expected, "{part}");
        }
    }
}
