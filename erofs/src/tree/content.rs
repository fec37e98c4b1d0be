//! The type and content of an inode, and the blocks of a file.

use crate::tree::arena::reserve;
use crate::tree::error::TreeError;

/// Size of a block in bytes. It is the page size of the guest kernels, and the alignment of data.
pub const BLOCK_BYTES: u64 = 4096;

/// The type of an inode, with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A directory without names.
    Directory,
    /// A regular file.
    File(FileData),
    /// A symbolic link with its target: 1 to 4,095 bytes without NUL.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice {
        /// The major number, below 4096.
        major: u32,
        /// The minor number, below 1,048,576.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// The major number, below 4096.
        major: u32,
        /// The minor number, below 1,048,576.
        minor: u32,
    },
}

/// Size and data of a regular file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileData {
    /// The size in bytes, at most 2⁶³ − 1.
    pub size_bytes: u64,
    /// Where the data are, ascending by `file_block` and without overlap. A block without a
    /// range is a hole.
    ///
    /// A process that maps the file into its memory sees the last block as a whole, so the bytes
    /// between the end of the file and the end of the block must be zero on the device.
    pub ranges: Vec<DataRange>,
}

/// Blocks of a file that follow each other on one device. A block has [`BLOCK_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRange {
    /// The first block, counted from the beginning of the file.
    pub file_block: u64,
    /// The device, counted from 1.
    pub device: u16,
    /// The first block, counted from the beginning of the device.
    pub block: u32,
    /// The number of blocks, at least 1.
    pub blocks: u32,
}

/// The type of an inode with its content, borrowed from the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentRef<'a> {
    /// A directory, whose names [`Tree::children`](crate::Tree::children) returns.
    Directory,
    /// A regular file.
    File {
        /// The size in bytes.
        size_bytes: u64,
        /// Where the data are, ascending.
        ranges: &'a [DataRange],
    },
    /// A symbolic link with its target.
    Symlink(&'a [u8]),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice {
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
}

/// Maximum length of the target of a symbolic link: `PATH_MAX` of Linux without the NUL.
pub(crate) const MAX_TARGET_BYTES: usize = 4095;

/// Maximum size of a file: `MAX_LFS_FILESIZE` of Linux, the largest `loff_t`.
pub(crate) const MAX_FILE_BYTES: u64 = i64::MAX.unsigned_abs();

/// Bits of the two parts of a device number, which has 32 bits: `MINORBITS` of Linux,
/// `include/linux/kdev_t.h`.
const MAJOR_BITS: u32 = 12;
const MINOR_BITS: u32 = 20;

impl Content {
    /// Checks that EROFS can represent the content.
    pub(super) fn check(&self) -> Result<(), TreeError> {
        match self {
            Self::File(file) => file.check(),
            Self::Symlink(target) => {
                // `symlink(2)` refuses an empty target too. The kernel would end a target at its
                // first NUL.
                let is_long = target.len() > MAX_TARGET_BYTES;
                if target.is_empty() || is_long || target.contains(&0) {
                    return Err(TreeError::Target { target: target.clone() });
                }
                Ok(())
            }
            Self::CharDevice { major, minor } | Self::BlockDevice { major, minor } => {
                if major >> MAJOR_BITS != 0 || minor >> MINOR_BITS != 0 {
                    return Err(TreeError::DeviceNumber { major: *major, minor: *minor });
                }
                Ok(())
            }
            Self::Directory | Self::Fifo | Self::Socket => Ok(()),
        }
    }
}

impl FileData {
    fn check(&self) -> Result<(), TreeError> {
        if self.size_bytes > MAX_FILE_BYTES {
            return Err(TreeError::FileSize { size_bytes: self.size_bytes });
        }
        let file_blocks = self.size_bytes.div_ceil(BLOCK_BYTES);
        let mut free = 0;
        for range in &self.ranges {
            let end = range.file_block.checked_add(u64::from(range.blocks));
            let end = end.filter(|end| *end <= file_blocks && range.file_block >= free);
            // EROFS counts the metadata image as device 0. The end on a device must have 32 bits,
            // as its number of blocks has. The tree does not have the devices, so the writer
            // checks the rest.
            let is_on_device = range.device > 0 && range.block.checked_add(range.blocks).is_some();
            match end {
                Some(end) if range.blocks > 0 && is_on_device => free = end,
                _ => {
                    let DataRange { file_block, blocks, .. } = *range;
                    return Err(TreeError::Range { file_block, blocks });
                }
            }
        }
        Ok(())
    }
}

/// The type of an inode with its content, as the arena stores it.
#[derive(Debug)]
pub(super) enum Stored {
    /// The number of the directory.
    Directory(u32),
    /// Size, and the ranges in their arena.
    File {
        size_bytes: u64,
        first_range: u32,
        ranges: u32,
    },
    Symlink(Box<[u8]>),
    Fifo,
    Socket,
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
}

/// The arena of the ranges of all files.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<DataRange>);

impl Ranges {
    /// Appends the ranges of a file.
    pub(super) fn store(&mut self, file: &FileData) -> Result<Stored, TreeError> {
        let full = |_overflow| TreeError::Full;
        // Two numbers of 32 bits are smaller than a `Vec` for each file.
        let first_range = u32::try_from(self.0.len()).map_err(full)?;
        let ranges = u32::try_from(file.ranges.len()).map_err(full)?;
        reserve(&mut self.0, file.ranges.len());
        self.0.extend_from_slice(&file.ranges);
        Ok(Stored::File { size_bytes: file.size_bytes, first_range, ranges })
    }

    /// Returns the bytes that the arena has allocated.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.0.capacity() * size_of::<DataRange>()
    }

    /// Returns the ranges of a file.
    pub(super) fn load(&self, first: u32, count: u32) -> &[DataRange] {
        let first = first as usize;
        &self.0[first..first + count as usize]
    }
}
