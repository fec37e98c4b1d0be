//! EROFS, the read-only file system of a block root.
//!
//! A [`Tree`] is a file system in memory: inodes with their metadata, directories with their names,
//! and regular files whose data are blocks of other files, the devices.

mod format;
pub mod tree;
mod write;

pub use tree::{
    BLOCK_BYTES, Content, ContentRef, DataRange, FileData, InodeId, Metadata, Tree, TreeError,
    Xattr,
};
pub use write::{Device, Summary, WriteError, write};
