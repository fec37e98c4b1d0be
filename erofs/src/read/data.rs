//! Reads the content of an inode: targets, device numbers, chunks, and the blocks of directories.

use crate::format::inode::{Kind, Layout, decode_device_number};
use crate::format::{BLOCK, CHUNK_BITS_MASK, CHUNK_INDEX_BYTES, CHUNK_INDEXES, HOLE, field};
use crate::read::error::ReadError;
use crate::read::file::{Bounded, ReadAt};
use crate::read::inode::FoundInode;
use crate::tree::{Content, DataRange, FileData, MAX_FILE_BYTES, MAX_TARGET_BYTES};
use crate::write::Device;

/// Reads the content of an inode. The walk reads the names of a directory later.
pub(super) fn content(
    image: &mut Bounded<'_, impl ReadAt>,
    devices: &[Device],
    found: &FoundInode,
) -> Result<Content, ReadError> {
    let (major, minor) = decode_device_number(found.inode.value);
    let content = match found.inode.kind {
        Kind::Directory => return Ok(Content::Directory),
        Kind::Symlink => return target(image, found).map(Content::Symlink),
        Kind::File if found.inode.layout == Layout::Chunks => {
            return chunks(image, devices, found).map(Content::File);
        }
        Kind::File => Content::File(FileData::default()),
        Kind::Fifo => Content::Fifo,
        Kind::Socket => Content::Socket,
        Kind::CharDevice => Content::CharDevice { major, minor },
        Kind::BlockDevice => Content::BlockDevice { major, minor },
    };
    // The other types have no data. A file without chunks is empty, as the writer stores it.
    let is_empty = found.inode.layout == Layout::Plain && found.inode.size_bytes == 0;
    if is_empty { Ok(content) } else { Err(found.damaged()) }
}

/// Calls `each` with each block of a directory or target. The last block ends with the size of the
/// inode.
pub(super) fn each_block(
    image: &mut Bounded<'_, impl ReadAt>,
    found: &FoundInode,
    mut each: impl FnMut(&[u8]) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let block = BLOCK as u64;
    let size = found.inode.size_bytes;
    let (whole, tail) = (size / block, size % block);
    let tail_bytes = usize::try_from(tail).unwrap_or_default();
    let start = u64::from(found.inode.value) * block;
    // A size that is too large ends the loop with an error, at the latest when all bytes of the
    // image are claimed. So `each` may collect the blocks.
    for number in 0..whole {
        // The image has less than 2⁶⁴ bytes, and ends before the sum does.
        each(image.claim(start.saturating_add(number * block), BLOCK)?)?;
    }
    match found.inode.layout {
        // The kernel requires that inline bytes are in one block.
        Layout::Inline if tail > 0 && found.end() % block + tail <= block => {
            each(image.claim(found.end(), tail_bytes)?)
        }
        // The zeros behind the tail are claimed too, because no other part has them.
        Layout::Plain if tail > 0 => {
            each(&image.claim(start.saturating_add(whole * block), BLOCK)?[..tail_bytes])
        }
        Layout::Plain => Ok(()),
        Layout::Inline | Layout::Chunks => Err(found.damaged()),
    }
}

fn target(image: &mut Bounded<'_, impl ReadAt>, found: &FoundInode) -> Result<Vec<u8>, ReadError> {
    // The size is checked first, because the target is collected in memory.
    if found.inode.size_bytes > MAX_TARGET_BYTES as u64 {
        return Err(found.damaged());
    }
    let mut target = Vec::new();
    each_block(image, found, |bytes| {
        target.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(target)
}

fn chunks(
    image: &mut Bounded<'_, impl ReadAt>,
    devices: &[Device],
    found: &FoundInode,
) -> Result<FileData, ReadError> {
    let size_bytes = found.inode.size_bytes;
    let format = found.inode.value;
    // Chunks without a device number are another format, which the writer does not use.
    let is_known = format & !CHUNK_BITS_MASK == CHUNK_INDEXES;
    if !is_known || size_bytes == 0 || size_bytes > MAX_FILE_BYTES {
        return Err(found.damaged());
    }
    let file_blocks = size_bytes.div_ceil(BLOCK as u64);
    let chunk_blocks = 1_u64 << (format & CHUNK_BITS_MASK);
    let start = found.end().next_multiple_of(CHUNK_INDEX_BYTES);
    let mut ranges: Vec<DataRange> = Vec::new();
    for number in 0..file_blocks.div_ceil(chunk_blocks) {
        // Claiming each place bounds the loop, however large the size of the file is.
        let offset = start.saturating_add(number * CHUNK_INDEX_BYTES);
        let index = image.claim(offset, 8)?;
        let device = u16::from_le_bytes(field(index, 2));
        let block = u32::from_le_bytes(field(index, 4));
        if block == HOLE {
            continue;
        }
        let file_block = number * chunk_blocks;
        // The last chunk may end behind the file, where its device may have no blocks.
        let blocks = chunk_blocks.min(file_blocks - file_block);
        let on = usize::from(device).checked_sub(1).and_then(|place| devices.get(place));
        let is_on = on.is_some_and(|on| u64::from(block) + blocks <= u64::from(on.blocks));
        let blocks = u32::try_from(blocks).ok().filter(|_| is_on);
        let blocks = blocks.ok_or(ReadError::Chunk { inode: found.number })?;
        push(&mut ranges, DataRange { file_block, device, block, blocks });
    }
    Ok(FileData { size_bytes, ranges })
}

/// Appends a range, or extends the last range if the new one continues it.
fn push(ranges: &mut Vec<DataRange>, range: DataRange) {
    // Chunks of equal size split data that follow each other. Joining them keeps the list short.
    if let Some(last) = ranges.last_mut() {
        let blocks = u64::from(last.blocks);
        let continues = last.device == range.device
            && last.file_block + blocks == range.file_block
            && u64::from(last.block) + blocks == u64::from(range.block);
        // Both are on one device, which has less than 2³² blocks.
        if let Some(blocks) = last.blocks.checked_add(range.blocks).filter(|_| continues) {
            last.blocks = blocks;
            return;
        }
    }
    ranges.push(range);
}
