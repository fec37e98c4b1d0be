//! The superblock, its checksum and the device table.

use crc::{CRC_32_ISCSI, Crc};

use crate::format::{BLOCK, BLOCK_BITS, field};

/// Place of the superblock in the image (`EROFS_SUPER_OFFSET`).
pub(crate) const SUPERBLOCK_START: usize = 1024;

/// Size of the superblock without extension (`struct erofs_super_block`).
pub(crate) const SUPERBLOCK_BYTES: usize = 128;

/// Size and alignment of an entry of the device table (`struct erofs_deviceslot`).
pub(crate) const DEVICE_SLOT_BYTES: usize = 128;

/// The device table follows the superblock. Its place is counted in slots.
pub(crate) const DEVICE_TABLE_START: usize = SUPERBLOCK_START + SUPERBLOCK_BYTES;

const MAGIC: u32 = 0xE0F5_E1E2;
// Linux refuses an image with an incompatible feature that it does not support, and ignores a
// compatible one. `COMPAT_MTIME` marks the times of inodes as times of modification.
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;
const INCOMPAT_DEVICE_TABLE: u32 = 8;

/// The fields of the superblock that differ between images. All others are constant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// The number of the root directory (`root_nid`).
    pub(crate) root: u16,
    /// The number of inodes (`inos`).
    pub(crate) inodes: u64,
    /// The time of all compact inodes (`build_time`, `epoch` in Linux 6.15).
    pub(crate) epoch_s: i64,
    /// Its nanoseconds (`build_time_nsec`, `fixed_nsec`).
    pub(crate) epoch_ns: u32,
    /// The number of blocks of the metadata image (`blocks`).
    pub(crate) blocks: u32,
    /// The block at which the inodes begin (`meta_blkaddr`).
    pub(crate) inode_block: u32,
    /// The block at which the shared extended attributes begin (`xattr_blkaddr`).
    pub(crate) xattr_block: u32,
    /// The number of devices beside the metadata image (`extra_devices`).
    pub(crate) devices: u16,
    /// The place of the device table in slots (`devt_slotoff`).
    pub(crate) device_slot: u16,
    /// The identity of the file system (`uuid`).
    pub(crate) uuid: [u8; 16],
}

/// The reason why this crate cannot read an image with a superblock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// The image does not have the magic number of EROFS.
    #[error("no EROFS image: the magic number is {magic:#x}")]
    Magic {
        /// The number in its place.
        magic: u32,
    },
    /// The checksum is missing, or does not match the first block.
    #[error("the checksum of the superblock is wrong")]
    Checksum,
    /// The image uses features of the format that this crate does not support.
    #[error("unknown features {features:#x}")]
    Features {
        /// The bits of `feature_incompat`.
        features: u32,
    },
    /// The size of a block is not 4 KiB, or there is an extension of the superblock.
    #[error("unknown form of the superblock")]
    Form,
}

impl Superblock {
    /// Returns the superblock without its checksum.
    pub(crate) fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let table = if self.devices == 0 { 0 } else { INCOMPAT_DEVICE_TABLE };
        let mut bytes = [0; SUPERBLOCK_BYTES];
        let mut set = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        // `seal` sets the checksum at 4, because it depends on the rest of the block. Fields that
        // are not set stay zero.
        set(0, &MAGIC.to_le_bytes());
        set(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        set(12, &[BLOCK_BITS]);
        set(14, &self.root.to_le_bytes());
        set(16, &self.inodes.to_le_bytes());
        set(24, &self.epoch_s.to_le_bytes());
        set(32, &self.epoch_ns.to_le_bytes());
        set(36, &self.blocks.to_le_bytes());
        set(40, &self.inode_block.to_le_bytes());
        set(44, &self.xattr_block.to_le_bytes());
        set(48, &self.uuid);
        set(80, &(INCOMPAT_CHUNKED_FILE | table).to_le_bytes());
        set(86, &self.devices.to_le_bytes());
        set(88, &self.device_slot.to_le_bytes());
        bytes
    }

    /// Reads the superblock of the first block of an image, and checks its checksum.
    pub(crate) fn decode(block: &[u8; BLOCK]) -> Result<Self, SuperblockError> {
        let bytes = &block[SUPERBLOCK_START..];
        let magic = u32::from_le_bytes(field(bytes, 0));
        if magic != MAGIC {
            return Err(SuperblockError::Magic { magic });
        }
        // The checksum is checked before all other fields. So a damaged superblock is not reported
        // as one with unknown features. The writer always stores a checksum, so one is required.
        let compat = u32::from_le_bytes(field(bytes, 8));
        let stored = u32::from_le_bytes(field(bytes, 4));
        if compat & COMPAT_CHECKSUM == 0 || stored != checksum(block) {
            return Err(SuperblockError::Checksum);
        }
        let features = u32::from_le_bytes(field(bytes, 80));
        // Compatible features are not checked. They do not change how the fields below are read.
        if features & !(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE) != 0 {
            return Err(SuperblockError::Features { features });
        }
        // Byte 13 counts extension slots, and byte 90 is the size of a block of directories.
        if bytes[12] != BLOCK_BITS || bytes[13] != 0 || bytes[90] != 0 {
            return Err(SuperblockError::Form);
        }
        // Without the feature, Linux ignores the number of devices.
        let has_table = features & INCOMPAT_DEVICE_TABLE != 0;
        Ok(Self {
            root: u16::from_le_bytes(field(bytes, 14)),
            inodes: u64::from_le_bytes(field(bytes, 16)),
            epoch_s: i64::from_le_bytes(field(bytes, 24)),
            epoch_ns: u32::from_le_bytes(field(bytes, 32)),
            blocks: u32::from_le_bytes(field(bytes, 36)),
            inode_block: u32::from_le_bytes(field(bytes, 40)),
            xattr_block: u32::from_le_bytes(field(bytes, 44)),
            devices: if has_table { u16::from_le_bytes(field(bytes, 86)) } else { 0 },
            device_slot: u16::from_le_bytes(field(bytes, 88)),
            uuid: field(bytes, 48),
        })
    }
}

/// Writes the checksum into the superblock of the first block.
pub(crate) fn seal(block: &mut [u8; BLOCK]) {
    let checksum = checksum(block);
    block[SUPERBLOCK_START + 4..SUPERBLOCK_START + 8].copy_from_slice(&checksum.to_le_bytes());
}

/// Returns CRC-32C from the superblock to the end of its block, with zeros in place of the checksum
/// itself (`erofs_superblock_csum_verify` of `fs/erofs/super.c`). The kernel does not invert the
/// result, as the standard does.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
    let mut digest = CRC.digest();
    digest.update(&block[SUPERBLOCK_START..SUPERBLOCK_START + 4]);
    digest.update(&[0; 4]);
    digest.update(&block[SUPERBLOCK_START + 8..]);
    !digest.finalize()
}

/// Returns an entry of the device table: the device's blocks, and the block of the disk at which it
/// begins (`blocks` and `mapped_blkaddr`).
pub(crate) fn encode_device(blocks: u32, start: u32) -> [u8; DEVICE_SLOT_BYTES] {
    // The first 64 bytes are a tag, which stays empty. Linux 6.6 needs no tag if the mount has no
    // option for devices, because it then reads all devices from the disk of the image.
    let mut bytes = [0; DEVICE_SLOT_BYTES];
    bytes[64..68].copy_from_slice(&blocks.to_le_bytes());
    bytes[68..72].copy_from_slice(&start.to_le_bytes());
    bytes
}

/// Reads an entry of the device table: blocks and start.
pub(crate) fn decode_device(bytes: &[u8; DEVICE_SLOT_BYTES]) -> (u32, u32) {
    (u32::from_le_bytes(field(bytes, 64)), u32::from_le_bytes(field(bytes, 68)))
}
