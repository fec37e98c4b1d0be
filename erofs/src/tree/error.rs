//! The error of a tree: something that EROFS, or Linux, cannot represent.

use thiserror::Error;

/// An inode or a name that a tree does not accept.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TreeError {
    /// There are too many inodes, ranges, sets of extended attributes, or bytes of names.
    #[error("the tree is full")]
    Full,
    /// A name that no directory can have.
    #[error("invalid name {:?}", Bytes(name))]
    Name {
        /// The name, as it was given.
        name: Vec<u8>,
    },
    /// A name was to be linked in an inode that is not a directory.
    #[error("not a directory")]
    NotDirectory,
    /// A directory, or the root, was to get a second name.
    #[error("the directory to be linked as {:?} has a name already", Bytes(name))]
    DirectoryLinked {
        /// The second name.
        name: Vec<u8>,
    },
    /// A mode has more than the permissions, set-id and sticky bits.
    #[error("invalid mode {mode:#o}")]
    Mode {
        /// The mode, as it was given.
        mode: u16,
    },
    /// The nanoseconds of a time make a second or more.
    #[error("invalid nanoseconds {nanoseconds}")]
    Nanoseconds {
        /// The nanoseconds, as they were given.
        nanoseconds: u32,
    },
    /// The name of an extended attribute has no prefix that EROFS can store, is too long, contains
    /// NUL, or occurs twice.
    #[error("invalid extended attribute {:?}", Bytes(name))]
    XattrName {
        /// The full name.
        name: Vec<u8>,
    },
    /// The value of an extended attribute has more than 65,535 bytes.
    #[error("the value of the extended attribute {:?} is too long: {bytes} bytes", Bytes(name))]
    XattrValue {
        /// The full name.
        name: Vec<u8>,
        /// The length of the value.
        bytes: usize,
    },
    /// The extended attributes of an inode take more than 256 KiB.
    #[error("the extended attributes of an inode take {bytes} bytes")]
    Xattrs {
        /// The bytes that they take on the disk.
        bytes: usize,
    },
    /// The target of a symbolic link is empty, has 4,096 bytes or more, or contains NUL.
    #[error("invalid target of a symbolic link: {:?}", Bytes(target))]
    Target {
        /// The target, as it was given.
        target: Vec<u8>,
    },
    /// A device number has more than 12 bits in its major, or more than 20 in its minor part.
    #[error("invalid device number {major}:{minor}")]
    DeviceNumber {
        /// The major part.
        major: u32,
        /// The minor part.
        minor: u32,
    },
    /// A file has more bytes than Linux can address.
    #[error("invalid size of a file: {size_bytes} bytes")]
    FileSize {
        /// The size, as it was given.
        size_bytes: u64,
    },
    /// A range of a file is empty, overlaps the one before it, or ends behind the file or behind
    /// the last block that a device can have.
    #[error("invalid range of a file: {blocks} blocks at block {file_block}")]
    Range {
        /// The first block of the range in the file.
        file_block: u64,
        /// The number of blocks.
        blocks: u32,
    },
}

/// Formats at most 64 bytes of a name for an error message.
struct Bytes<'a>(&'a [u8]);

impl std::fmt::Debug for Bytes<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = self.0.get(..64).unwrap_or(self.0);
        write!(formatter, "\"{}\"", shown.escape_ascii())?;
        if shown.len() < self.0.len() { formatter.write_str("…") } else { Ok(()) }
    }
}
