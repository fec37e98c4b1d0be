//! Writes the metadata image of a tree, from its beginning to its end.
//!
//! A first pass over the inodes chooses the place of each. A second pass writes the inodes, and a
//! third one writes the streams: the blocks of directories and targets that are not inline. Each
//! pass derives an inode from the tree again. So the writer needs 16 bytes of memory for each inode
//! of the tree, and some for extended attributes.

mod chunks;
mod directory;
mod emit;
mod error;
mod output;
mod place;
mod reachable;
mod source;
mod xattrs;

use std::io::{self, Write};

use crate::format::superblock::{
    DEVICE_SLOT_BYTES, DEVICE_TABLE_START, SUPERBLOCK_BYTES, SUPERBLOCK_START, Superblock,
    encode_device, seal,
};
use crate::format::{BLOCK, SLOT_BYTES};
use crate::tree::Tree;
use crate::write::emit::Emitter;
use crate::write::output::Output;
use crate::write::place::Places;
use crate::write::source::Source;

pub use crate::write::error::WriteError;
pub use crate::write::source::Device;

/// Counts and sizes of a written image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The number of inodes that the root reaches.
    pub inodes: u64,
    /// The size of the metadata image in bytes, a multiple of 4 KiB.
    pub metadata_bytes: u64,
    /// The size of the disk in bytes: the metadata image and all devices.
    pub disk_bytes: u64,
}

/// Writes the metadata image of the inodes that the root of `tree` reaches.
///
/// Followed by the devices in their order, each padded to its blocks, the image is a disk that
/// Linux 6.18 mounts without options. Older versions were not tried. The same tree, devices and
/// UUID always make the same image.
///
/// The UUID identifies the file system. The index of an overlayfs stores it with the inode numbers
/// of the image, so images with different content must have different UUIDs.
///
/// # Errors
///
/// - The tree uses a block that is not on its device, or the image would be too large. Nothing is
///   written in these cases.
/// - `output` fails.
pub fn write(
    tree: &Tree,
    devices: &[Device],
    uuid: [u8; 16],
    output: &mut impl Write,
) -> Result<Summary, WriteError> {
    // All that can be refused is refused here, before the first byte is written.
    let source = Source::new(tree, devices)?;
    let places = Places::choose(&source)?;
    let image = Image::arrange(&source, &places, devices, uuid)?;
    let mut output = Output::new(output);
    image.write(&mut output, devices).map_err(WriteError::Output)?;
    Ok(Summary {
        inodes: source.reachable.order.len() as u64,
        metadata_bytes: u64::from(image.superblock.blocks) * BLOCK as u64,
        disk_bytes: image.disk_blocks * BLOCK as u64,
    })
}

/// The parts of the image, arranged one behind the other.
struct Image<'a> {
    source: &'a Source<'a>,
    places: &'a Places,
    superblock: Superblock,
    /// The block at which the streams begin.
    stream_block: u32,
    /// The number of blocks of the metadata image and all devices.
    disk_blocks: u64,
}

impl<'a> Image<'a> {
    fn arrange(
        source: &'a Source<'a>,
        places: &'a Places,
        devices: &[Device],
        uuid: [u8; 16],
    ) -> Result<Self, WriteError> {
        let count = devices.len();
        let count = u16::try_from(count).map_err(|_large| WriteError::TooManyDevices { count })?;
        // Each part begins with a block, because the superblock stores the places of the shared
        // attributes and of the inodes in blocks.
        let xattr_block =
            (DEVICE_TABLE_START + DEVICE_SLOT_BYTES * devices.len()).div_ceil(BLOCK) as u64;
        let inode_block = xattr_block + source.xattrs.shared_bytes().div_ceil(BLOCK as u64);
        let stream_block = inode_block + places.inode_bytes.div_ceil(BLOCK as u64);
        let blocks = stream_block + places.stream_blocks;
        // The device table has 32 bits for a block of the disk, so the limit applies to the image
        // and all devices together.
        let data: u64 = devices.iter().map(|device| u64::from(device.blocks)).sum();
        // The last number stands for a hole.
        if blocks + data > u64::from(u32::MAX) {
            return Err(WriteError::TooLarge);
        }
        let block = |block: u64| u32::try_from(block).map_err(|_large| WriteError::TooLarge);
        let (epoch_s, epoch_ns) = source.reachable.epoch;
        let superblock = Superblock {
            root: Places::ROOT,
            inodes: source.reachable.order.len() as u64,
            epoch_s,
            epoch_ns,
            blocks: block(blocks)?,
            inode_block: block(inode_block)?,
            xattr_block: block(xattr_block)?,
            devices: count,
            device_slot: if count == 0 { 0 } else { DEVICE_TABLE_SLOT },
            uuid,
        };
        let stream_block = block(stream_block)?;
        Ok(Self { source, places, superblock, stream_block, disk_blocks: blocks + data })
    }

    fn write(&self, output: &mut Output<impl Write>, devices: &[Device]) -> io::Result<()> {
        let emitter = Emitter { source: self.source, places: self.places };
        output.write(&self.first_blocks(devices))?;
        self.source.xattrs.write_shared(output)?;
        output.pad_to_block()?;
        self.write_inodes(&emitter, output)?;
        output.pad_to_block()?;
        // The inodes refer to these blocks in the same order.
        for id in &self.source.reachable.order {
            emitter.write_blocks(*id, output)?;
        }
        output.finish()
    }

    /// Returns the blocks of the superblock and the device table.
    fn first_blocks(&self, devices: &[Device]) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_START];
        bytes.extend(self.superblock.encode());
        debug_assert_eq!(bytes.len(), SUPERBLOCK_START + SUPERBLOCK_BYTES);
        let mut start = self.superblock.blocks;
        for device in devices {
            bytes.extend(encode_device(device.blocks, start));
            // `arrange` has checked the sum.
            start = start.saturating_add(device.blocks);
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        // This comes last, because the checksum covers the part of the device table in the first
        // block.
        if let Some(first) = bytes.first_chunk_mut() {
            seal(first);
        }
        bytes
    }

    fn write_inodes(
        &self,
        emitter: &Emitter<'_>,
        output: &mut Output<impl Write>,
    ) -> io::Result<()> {
        let start = output.position();
        // The streams follow each other in the order of their inodes, so a sum gives their first
        // blocks. The inode numbers for 32-bit processes begin with 1.
        let mut block = self.stream_block;
        for (number, id) in (1..).zip(&self.source.reachable.order) {
            output.pad_to(start + u64::from(self.places.of(*id)) * SLOT_BYTES)?;
            block += emitter.write_inode((*id, number), block, output)?;
        }
        Ok(())
    }
}

/// The place of the device table: slot 9, behind the superblock.
const DEVICE_TABLE_SLOT: u16 = 9;
const _: () = assert!(DEVICE_TABLE_START == 9 * DEVICE_SLOT_BYTES);

#[cfg(test)]
mod tests;
