//! A file system in memory: an arena of inodes, linked by the names of directories.
//!
//! The tree is made for images with hundreds of thousands of inodes. A regular file without
//! extended attributes takes about 130 bytes with its name:
//!
//! - 56 bytes for its inode, and 24 for each range of its data,
//! - 12 to 24 bytes for its entry in the directory, and the bytes of the name,
//! - up to an eighth more, because the arenas grow in steps of an eighth of their length.
//!
//! Sets of extended attributes are interned, because an image has few different ones.

mod arena;
mod content;
mod directory;
mod error;
mod id;
mod metadata;

use crate::tree::arena::push;
use crate::tree::content::{Ranges, Stored};
use crate::tree::directory::{Directory, Names};
use crate::tree::metadata::StoredMetadata;

pub use crate::tree::content::{BLOCK_BYTES, Content, ContentRef, DataRange, FileData};
pub(crate) use crate::tree::content::{MAX_FILE_BYTES, MAX_TARGET_BYTES};
pub use crate::tree::error::TreeError;
pub use crate::tree::id::InodeId;
pub(crate) use crate::tree::metadata::{
    ENTRY_HEADER_BYTES, IBODY_HEADER_BYTES, XattrSets, entry_bytes, join_name, split_name,
};
pub use crate::tree::metadata::{Metadata, Xattr};

/// An inode as the arena stores it.
#[derive(Debug)]
struct Inode {
    metadata: StoredMetadata,
    content: Stored,
}

/// A file system in memory.
///
/// An inode has no path until a directory links it. Several names may link one inode as hard links,
/// but a directory is linked at most once. Inodes that cannot be reached from the root stay in the
/// arena until the tree is dropped.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
    // In an arena of their own, because a `Directory` would make every inode larger.
    directories: Vec<Directory>,
    ranges: Ranges,
    names: Names,
    xattrs: XattrSets,
}

impl Tree {
    /// Creates a tree that has only a root directory, which is empty.
    ///
    /// # Errors
    ///
    /// EROFS cannot represent `root`.
    pub fn new(root: Metadata) -> Result<Self, TreeError> {
        let mut tree = Self {
            inodes: Vec::new(),
            directories: Vec::new(),
            ranges: Ranges::default(),
            names: Names::default(),
            xattrs: XattrSets::default(),
        };
        // The first inode has place 0 in the arena, which is `InodeId::ROOT`.
        tree.add(root, Content::Directory)?;
        Ok(tree)
    }

    /// Adds an inode that no directory links yet.
    ///
    /// # Errors
    ///
    /// EROFS cannot represent `metadata` or `content`, or the tree is full.
    pub fn add(&mut self, metadata: Metadata, content: Content) -> Result<InodeId, TreeError> {
        let id = InodeId::at(self.inodes.len()).ok_or(TreeError::Full)?;
        // Content and metadata are checked before anything is stored, so an inode that is refused
        // takes no memory.
        content.check()?;
        let metadata = self.xattrs.store(metadata)?;
        let content = match content {
            Content::Directory => {
                let number = self.directories.len();
                push(&mut self.directories, Directory::default());
                // There are at most as many directories as inodes.
                Stored::Directory(u32::try_from(number).map_err(|_overflow| TreeError::Full)?)
            }
            Content::File(file) => self.ranges.store(&file)?,
            Content::Symlink(target) => Stored::Symlink(target.into_boxed_slice()),
            Content::Fifo => Stored::Fifo,
            Content::Socket => Stored::Socket,
            Content::CharDevice { major, minor } => Stored::CharDevice { major, minor },
            Content::BlockDevice { major, minor } => Stored::BlockDevice { major, minor },
        };
        push(&mut self.inodes, Inode { metadata, content });
        Ok(id)
    }

    /// Returns the inode that `directory` links by `name`, if `directory` is a directory and has
    /// that name.
    #[must_use]
    pub fn child(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        self.directory(directory)?.get(&self.names, name)
    }

    /// Links `inode` by `name` in `directory`, and returns the inode that had this name before.
    ///
    /// # Errors
    ///
    /// - `directory` is no directory.
    /// - `name` is empty, longer than 255 bytes, `.` or `..`, or contains `/` or NUL.
    /// - `inode` is the root, or a directory that has a name already. So the directories that the
    ///   root reaches are a tree and never a circle.
    /// - The names of the tree have more than 4 GiB in all.
    pub fn link(
        &mut self,
        directory: InodeId,
        name: &[u8],
        inode: InodeId,
    ) -> Result<Option<InodeId>, TreeError> {
        // The writer adds `.` and `..` to each directory.
        if name.is_empty()
            || name.len() > MAX_NAME_BYTES
            || matches!(name, b"." | b"..")
            || name.iter().any(|byte| matches!(byte, b'/' | 0))
        {
            return Err(TreeError::Name { name: name.to_vec() });
        }
        let Some(number) = self.directory_number(directory) else {
            return Err(TreeError::NotDirectory);
        };
        // The root never gets a name, so its flag is not set, and it is compared instead. A
        // directory that has no name can be linked below itself. This circle is unreachable,
        // because each directory in it has its only name there.
        if self.directory(inode).is_some_and(Directory::is_linked) || inode == InodeId::ROOT {
            return Err(TreeError::DirectoryLinked { name: name.to_vec() });
        }
        // This is the last step that can fail. So the flags change only together with the names.
        let replaced = self.directories[number].insert(&mut self.names, name, inode)?;
        if let Some(replaced) = replaced {
            self.set_linked(replaced, false);
        }
        self.set_linked(inode, true);
        Ok(replaced)
    }

    /// Removes `name` from `directory`, and returns the inode that had it.
    pub fn unlink(&mut self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        let number = self.directory_number(directory)?;
        let removed = self.directories[number].remove(&self.names, name)?;
        self.set_linked(removed, false);
        Some(removed)
    }

    /// Removes all names from `directory`. Anything but a directory has none.
    pub fn clear(&mut self, directory: InodeId) {
        let Some(number) = self.directory_number(directory) else {
            return;
        };
        for inode in self.directories[number].take_inodes() {
            self.set_linked(inode, false);
        }
    }

    /// Returns the metadata of an inode, with its extended attributes in the order of their names.
    #[must_use]
    pub fn metadata(&self, inode: InodeId) -> Metadata {
        self.xattrs.load(&self.inodes[inode.index()].metadata)
    }

    /// Replaces the metadata of an inode.
    ///
    /// # Errors
    ///
    /// EROFS cannot represent `metadata`.
    pub fn set_metadata(&mut self, inode: InodeId, metadata: Metadata) -> Result<(), TreeError> {
        self.inodes[inode.index()].metadata = self.xattrs.store(metadata)?;
        Ok(())
    }

    /// Returns the content of an inode.
    #[must_use]
    pub fn content(&self, inode: InodeId) -> ContentRef<'_> {
        match &self.inodes[inode.index()].content {
            Stored::Directory(_) => ContentRef::Directory,
            Stored::File { size_bytes, first_range, ranges } => ContentRef::File {
                size_bytes: *size_bytes,
                ranges: self.ranges.load(*first_range, *ranges),
            },
            Stored::Symlink(target) => ContentRef::Symlink(target),
            Stored::Fifo => ContentRef::Fifo,
            Stored::Socket => ContentRef::Socket,
            Stored::CharDevice { major, minor } => {
                ContentRef::CharDevice { major: *major, minor: *minor }
            }
            Stored::BlockDevice { major, minor } => {
                ContentRef::BlockDevice { major: *major, minor: *minor }
            }
        }
    }

    /// Returns the names of a directory with their inodes, in the order of the bytes of the names.
    /// Anything but a directory has none.
    pub fn children(&self, directory: InodeId) -> impl Iterator<Item = (&[u8], InodeId)> {
        self.directory(directory).into_iter().flat_map(|directory| directory.iter(&self.names))
    }

    /// Returns the number of inodes in the arena, also of those that have no name.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a tree always has its root")]
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Returns whether an inode is a directory.
    #[must_use]
    pub fn is_directory(&self, inode: InodeId) -> bool {
        self.directory_number(inode).is_some()
    }

    /// Interns a set of extended attributes, and returns its number.
    pub(crate) fn intern(&mut self, set: Vec<Xattr>) -> Result<u32, TreeError> {
        self.xattrs.intern(set)
    }

    /// Gives an inode an interned set of extended attributes.
    pub(crate) fn set_xattrs(&mut self, inode: InodeId, set: u32) {
        self.inodes[inode.index()].metadata.xattrs = set;
    }

    /// Returns the metadata of an inode without its extended attributes, which
    /// [`xattr_sets`](Self::xattr_sets) has.
    pub(crate) fn stored_metadata(&self, inode: InodeId) -> &StoredMetadata {
        &self.inodes[inode.index()].metadata
    }

    /// Returns the sets of extended attributes that the inodes refer to.
    pub(crate) fn xattr_sets(&self) -> &XattrSets {
        &self.xattrs
    }

    fn directory_number(&self, inode: InodeId) -> Option<usize> {
        match self.inodes[inode.index()].content {
            Stored::Directory(number) => Some(number as usize),
            _ => None,
        }
    }

    fn directory(&self, inode: InodeId) -> Option<&Directory> {
        self.directory_number(inode).map(|number| &self.directories[number])
    }

    fn set_linked(&mut self, inode: InodeId, is_linked: bool) {
        // Other inodes may have several names, so they need no flag.
        if let Some(number) = self.directory_number(inode) {
            self.directories[number].set_linked(is_linked);
        }
    }
}

/// Maximum length of a name in bytes: `NAME_MAX` of Linux, and `EROFS_NAME_LEN` of
/// `fs/erofs/erofs_fs.h`.
pub const MAX_NAME_BYTES: usize = 255;

#[cfg(test)]
mod tests;
