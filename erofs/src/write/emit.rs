//! Writes inodes, and the blocks of directories.

use std::io::{self, Write};

use crate::format::{BLOCK, CHUNK_INDEX_BYTES};
use crate::tree::InodeId;
use crate::write::output::Output;
use crate::write::place::Places;
use crate::write::source::{Data, Source, kind};

/// The inodes to write, and their places.
pub(super) struct Emitter<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) places: &'a Places,
}

impl Emitter<'_> {
    /// Writes an inode with all that follows it, and returns the number of blocks of its stream.
    /// `block` is the first of these blocks.
    pub(super) fn write_inode(
        &self,
        (id, ino): (InodeId, u32),
        block: u32,
        output: &mut Output<impl Write>,
    ) -> io::Result<u32> {
        let mut described = self.source.describe_checked(id);
        // The number of all blocks has 32 bits.
        let blocks = described.stream().map_or(0, |stream| stream.blocks);
        let blocks = u32::try_from(blocks).map_err(io::Error::other)?;
        described.inode.ino = ino;
        // Files and devices have no stream. Their value is the format of chunks or the device
        // number.
        if blocks > 0 {
            described.inode.value = block;
        }
        let mut bytes = Vec::with_capacity(BLOCK);
        described.inode.encode(self.source.reachable.epoch, &mut bytes);
        self.source.xattrs.encode(self.source.tree.stored_metadata(id).xattrs, &mut bytes);
        output.write(&bytes)?;
        match described.data {
            Data::File(chunks, file) => {
                // The attributes end at a multiple of 4 bytes, but Linux reads places of chunks at
                // multiples of 8.
                output.pad_to(output.position().next_multiple_of(CHUNK_INDEX_BYTES))?;
                chunks.write(file, output)?;
            }
            // A target is shorter than a block, so it is inline as a whole or not at all.
            Data::Target(target, stream) if stream.inline_bytes > 0 => output.write(target)?,
            Data::Directory(directory, stream) if stream.inline_bytes > 0 => {
                directory.each_block(
                    |id| self.entry(id),
                    |block, is_last| if is_last { output.write(block) } else { Ok(()) },
                )?;
            }
            Data::None | Data::Target(..) | Data::Directory(..) => {}
        }
        Ok(blocks)
    }

    /// Writes the blocks of the stream of an inode, without its inline bytes.
    pub(super) fn write_blocks(
        &self,
        id: InodeId,
        output: &mut Output<impl Write>,
    ) -> io::Result<()> {
        match self.source.describe_checked(id).data {
            Data::Target(target, stream) if stream.blocks > 0 => {
                output.write(target)?;
                output.pad_to_block()
            }
            Data::Directory(directory, stream) if stream.blocks > 0 => directory.each_block(
                |id| self.entry(id),
                |block, is_last| {
                    // The last block is already behind the inode.
                    if is_last && stream.inline_bytes > 0 {
                        return Ok(());
                    }
                    output.write(block)?;
                    output.pad_to_block()
                },
            ),
            _ => Ok(()),
        }
    }

    /// Returns number and type of an inode for its entries in directories.
    fn entry(&self, id: InodeId) -> (u64, u8) {
        (u64::from(self.places.of(id)), kind(self.source.tree, id).in_directory())
    }
}
