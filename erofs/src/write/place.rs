//! The place of each inode.

use crate::format::{BLOCK, SLOT_BYTES};
use crate::tree::InodeId;
use crate::write::error::WriteError;
use crate::write::source::{Source, Stream};

/// Maximum number of chunks of all files.
// The chunks of a sparse file can be as small as a block, and a file can have 2⁶³ bytes. So one
// inode of a hostile image could ask for 2⁵¹ chunks.
const MAX_CHUNKS: u64 = 1 << 27;

/// The places of all inodes, and the sizes of the parts of the image that depend on them.
pub(super) struct Places {
    /// The number of each inode of the tree, 0 if it is not reachable.
    slots: Vec<u32>,
    /// Bytes of the inodes with their extended attributes, chunks and inline bytes.
    pub(super) inode_bytes: u64,
    /// Blocks of directories and targets that are not behind their inodes.
    pub(super) stream_blocks: u64,
}

impl Places {
    /// The number of the root. It is the first inode, because the superblock has 16 bits for its
    /// number. The number is not 0, because `readdir(3)` of some C libraries skips entries with the
    /// inode number 0.
    pub(super) const ROOT: u16 = 1;

    /// Chooses the places of all inodes in their order.
    pub(super) fn choose(source: &Source<'_>) -> Result<Self, WriteError> {
        let mut slots = vec![0; source.tree.len()];
        // Slot 0 stays unused, so 0 can stand for an unreachable inode in `slots`.
        let mut position = u64::from(Self::ROOT) * SLOT_BYTES;
        let (mut stream_blocks, mut chunks) = (0, 0_u64);
        for id in &source.reachable.order {
            let described = source.describe(*id)?;
            chunks = chunks.saturating_add(described.chunks().map_or(0, |chunks| chunks.count));
            if chunks > MAX_CHUNKS {
                return Err(WriteError::TooManyChunks);
            }
            let stream = described.stream();
            let start = align(position, described.head_bytes(), stream);
            let slot = u32::try_from(start / SLOT_BYTES).map_err(|_large| WriteError::TooLarge)?;
            slots[id.index()] = slot;
            position = start + described.bytes();
            stream_blocks += stream.map_or(0, |stream| stream.blocks);
        }
        Ok(Self { slots, inode_bytes: position, stream_blocks })
    }

    /// Returns the number of an inode.
    pub(super) fn of(&self, inode: InodeId) -> u32 {
        self.slots[inode.index()]
    }
}

/// Returns the first place from `position` on for an inode. Inline bytes may not cross the end
/// of a block. If they would, the inode begins with the next block.
fn align(position: u64, head_bytes: u64, stream: Option<Stream>) -> u64 {
    let start = position.next_multiple_of(SLOT_BYTES);
    let inline = stream.map_or(0, |stream| stream.inline_bytes);
    // An inode with its inline bytes fits into one block, because `Stream::of` has limited them.
    let is_crossing = start % BLOCK as u64 + head_bytes + inline > BLOCK as u64;
    // Linux reads inodes, attributes and chunks across the end of a block, so these need no
    // padding.
    if inline > 0 && is_crossing { start.next_multiple_of(BLOCK as u64) } else { start }
}
