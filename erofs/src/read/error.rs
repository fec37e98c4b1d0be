//! The error of the reader.

use std::io;

use thiserror::Error;

use crate::format::superblock::SuperblockError;
use crate::tree::TreeError;

/// Why an image could not be read. Inodes are described by their number (`nid`).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file could not be read, or ends before the image does.
    #[error("reading the image failed")]
    File(#[source] io::Error),
    /// The superblock is damaged, or is of another format.
    #[error("the superblock cannot be used")]
    Superblock(#[from] SuperblockError),
    /// A device does not begin where the one before it ends.
    #[error("the device table is damaged")]
    DeviceTable,
    /// A part would end behind the image.
    #[error("{bytes} bytes at byte {offset} are not in the image")]
    Outside {
        /// Where the part begins.
        offset: u64,
        /// Its size.
        bytes: u64,
    },
    /// All parts together have more bytes than the image, so some of them overlap.
    #[error("parts of the image overlap")]
    Overlap,
    /// Sets of extended attributes have more than 64 MiB in all.
    #[error("the extended attributes are too large")]
    TooManyXattrs,
    /// An inode has an unknown format or type, or a size or place that its type does not have.
    #[error("inode {inode} is damaged")]
    Inode {
        /// Its number.
        inode: u64,
    },
    /// The extended attributes of an inode are damaged.
    #[error("the extended attributes of inode {inode} are damaged")]
    Xattrs {
        /// Its number.
        inode: u64,
    },
    /// A chunk of a file is on no device.
    #[error("a chunk of inode {inode} is on no device")]
    Chunk {
        /// Its number.
        inode: u64,
    },
    /// A directory has an entry that is damaged, of a wrong type, or not in the order of names.
    #[error("the directory {inode} is damaged")]
    Directory {
        /// Its number.
        inode: u64,
    },
    /// The link count of an inode differs from the links that were found.
    #[error("inode {inode} has {found} links and counts {stored}")]
    Links {
        /// Its number.
        inode: u64,
        /// The link count of the inode.
        stored: u32,
        /// The number of links that were found.
        found: u32,
    },
    /// The inode count of the superblock differs from the inodes that were found.
    #[error("the image has {found} inodes and counts {stored}")]
    Inodes {
        /// The count of the superblock.
        stored: u64,
        /// The number of inodes that the root reaches.
        found: u64,
    },
    /// EROFS cannot represent an inode or a name, or a directory has two names.
    #[error("inode {inode} cannot be used")]
    Tree {
        /// The number of the inode, or of the directory of the name.
        inode: u64,
        /// The cause.
        source: TreeError,
    },
}
