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
    /// Writes an inode with all that follows it, and returns the number of blocks that its stream
    /// has of its own, the first of which is `block`.
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
        if blocks > 0 {
            described.inode.value = block;
        }
        let mut bytes = Vec::with_capacity(BLOCK);
        described.inode.encode(self.source.reachable.epoch, &mut bytes);
        self.source.xattrs.encode(self.source.tree.stored_metadata(id).xattrs, &mut bytes);
        output.write(&bytes)?;
        match described.data {
            Data::File(chunks, file) => {
                output.pad_to(output.position().next_multiple_of(CHUNK_INDEX_BYTES))?;
                chunks.write(file, output)?;
            }
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

    /// Writes the blocks that the stream of an inode has of its own.
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
