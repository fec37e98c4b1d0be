//! Reads an untrusted metadata image.
//!
//! The reader accepts the images of [`write`](crate::write()), and few others. In these, each byte
//! belongs to one part. So the reader counts the bytes of all parts, and reports an error when they
//! are more than those of the image. This bounds time and memory, however the parts of a hostile
//! image refer to each other.

mod data;
mod directory;
mod error;
mod file;
mod inode;
mod walk;
mod xattrs;

use crate::format::superblock::{DEVICE_SLOT_BYTES, Superblock, decode_device};
use crate::format::{BLOCK, field};
use crate::read::file::Bounded;
use crate::tree::Tree;
use crate::write::Device;

pub use crate::read::error::ReadError;
pub use crate::read::file::ReadAt;

/// A metadata image whose superblock and device table are correct.
#[derive(Debug)]
pub struct Image<F> {
    file: F,
    superblock: Superblock,
    devices: Vec<Device>,
}

impl<F: ReadAt> Image<F> {
    /// Checks the superblock with its checksum, and the device table. `file` may be the image or
    /// the disk that begins with it.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or does not begin with an image of this crate.
    pub fn open(file: F) -> Result<Self, ReadError> {
        let mut first = [0; BLOCK];
        file.read_exact_at(&mut first, 0).map_err(ReadError::File)?;
        let superblock = Superblock::decode(&first)?;
        let table = u64::from(superblock.device_slot) * DEVICE_SLOT_BYTES as u64;
        let mut bounded = Bounded::new(&file, superblock.blocks);
        let mut devices = Vec::new();
        let mut start = u64::from(superblock.blocks);
        for number in 0..u64::from(superblock.devices) {
            let slot =
                bounded.read(table + number * DEVICE_SLOT_BYTES as u64, DEVICE_SLOT_BYTES)?;
            let (blocks, mapped) = decode_device(&field(slot, 0));
            // A device at another place could overlap the metadata or another device. The sum
            // cannot overflow, because it has at most 2¹⁶ terms of 32 bits.
            if u64::from(mapped) != start {
                return Err(ReadError::DeviceTable);
            }
            start += u64::from(blocks);
            devices.push(Device { blocks });
        }
        // The writer has the same limit, so no block of a device has the number of a hole.
        if start > u64::from(u32::MAX) {
            return Err(ReadError::DeviceTable);
        }
        Ok(Self { file, superblock, devices })
    }

    /// Returns the devices in their order.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Returns the file of the image.
    pub fn file(&self) -> &F {
        &self.file
    }

    /// Returns the file of the image, and ends the reading.
    pub fn into_file(self) -> F {
        self.file
    }

    /// Returns the UUID of the file system.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.superblock.uuid
    }

    /// Returns the size of the metadata image in bytes. The first device begins there.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        u64::from(self.superblock.blocks) * BLOCK as u64
    }

    /// Reads all inodes that the root reaches, and checks them and their names, link counts and
    /// places.
    ///
    /// Time and memory grow with the size of the image and with nothing else, except that sets of
    /// extended attributes may share attributes. They may take 64 MiB more in all.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or the image is damaged.
    pub fn tree(&self) -> Result<Tree, ReadError> {
        // The count of claimed bytes begins anew, so that the tree can be read more than once.
        walk::walk(
            Bounded::new(&self.file, self.superblock.blocks),
            &self.superblock,
            &self.devices,
        )
    }
}

#[cfg(test)]
mod tests;
