//! EROFS, the read-only file system of a block root.
//!
//! A [`Tree`] is a file system in memory: inodes with their metadata, directories with their names,
//! and regular files whose data are blocks of other files, the devices.

pub mod tree;

pub use tree::{
    Content, ContentRef, DataRange, FileData, InodeId, Metadata, Tree, TreeError, Xattr,
};

/// Size of a block in bytes. It is the page size of the guest kernels, and the alignment of data.
pub const BLOCK_BYTES: u64 = 4096;
