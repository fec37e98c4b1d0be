//! The tree that the layers of an image are applied to: resolves paths in it, and bounds its size.

use std::borrow::Cow;

use a3s_box_erofs::{Content, ContentRef, DataRange, InodeId, Metadata, Tree, TreeError};
use serde::{Deserialize, Serialize};

use crate::host::metadata::UNDESCRIBED_DIR_MODE;
use crate::unpack::entry_error::EntryError;
use crate::unpack::path::{EntryPath, NAME_BYTES, PATH_BYTES, PathError, SYMLINK_HOPS, components};
use crate::unpack::steps::{StepLimits, Steps, StepsError};

/// Limit on the depth of a directory. A path of [`PATH_BYTES`] has at most this many names. Symbolic
/// links of several layers could otherwise build a tree of any depth.
const DEPTH: usize = PATH_BYTES.div_ceil(2);

/// Bytes of memory of an inode with its name, without the bytes that its length decides.
const INODE_BYTES: u64 = 96;

/// Content of an inode that stands for a device. Devices are not part of a root, but they must be
/// known while the layers are applied: a hard link to a device is one more name of it.
pub(super) const DEVICE: Content = Content::CharDevice { major: 0, minor: 0 };

/// Limits on the memory and the time for the tree of an image, to which its layers are applied. A
/// block root that exceeds a limit is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeLimits {
    /// Number of inodes, including those that a later entry removes.
    pub inodes: u64,
    /// Bytes of memory, about: inodes, names, extended attributes, ranges of files, and the names
    /// that are kept until the end of a layer.
    pub bytes: u64,
    /// Names that are looked up on the way to the entries of each layer. Neither of the other limits
    /// bounds the time.
    pub steps: StepLimits,
}

impl Default for TreeLimits {
    /// The largest public images have about a million files, which take 150 MB and ten million
    /// steps. A layer may have five million entries. Their directories can need inodes, too.
    fn default() -> Self {
        Self { inodes: 6_000_000, bytes: 1 << 30, steps: StepLimits::default() }
    }
}

/// An entry that cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// The entry contradicts the entries before it.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// EROFS cannot represent the entry.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The way to the entry has too many names. Unlike other errors of an entry, it is never ignored.
    #[error(transparent)]
    Steps(#[from] StepsError),
    /// The caller has cancelled the work.
    #[error("merging was cancelled")]
    Cancelled,
    /// The tree is larger than a limit.
    #[error("the tree exceeds the limit on {what}")]
    Limit {
        /// The quantity that is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// The action for a directory that is missing in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Stop,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) directory: InodeId,
    pub(super) name: &'a [u8],
}

/// A path on the way to its end: the directories from the root to the current one.
#[derive(Debug, Clone)]
pub(super) struct Walk {
    /// It is never empty, because the root stays in it.
    chain: Vec<InodeId>,
    /// Number of symbolic links that have been followed.
    hops: usize,
}

impl Walk {
    /// Starts at the root.
    pub(super) fn new() -> Self {
        Self { chain: vec![InodeId::ROOT], hops: 0 }
    }

    /// Returns the current directory.
    pub(super) fn here(&self) -> InodeId {
        self.chain.last().copied().unwrap_or(InodeId::ROOT)
    }

    /// Returns whether a directory is the current one or above it.
    pub(super) fn contains(&self, directory: InodeId) -> bool {
        self.chain.contains(&directory)
    }
}

/// A tree with limits.
#[derive(Debug)]
pub(super) struct RootTree {
    tree: Tree,
    limits: TreeLimits,
    inodes: u64,
    bytes: u64,
    /// Names that were looked up for the current layer.
    pub(super) steps: Steps,
    /// Whether an entry was a device.
    has_devices: bool,
}

impl RootTree {
    /// Creates a tree with the root of an image that has no entry for it.
    pub(super) fn new(limits: TreeLimits) -> Result<Self, TreeError> {
        let tree = Tree::new(undescribed())?;
        let steps = Steps::new(limits.steps);
        Ok(Self { tree, limits, inodes: 1, bytes: 0, steps, has_devices: false })
    }

    /// Returns the tree without the names of devices.
    pub(super) fn into_tree(mut self) -> Tree {
        let mut open = Vec::from_iter(self.has_devices.then_some(InodeId::ROOT));
        while let Some(directory) = open.pop() {
            let mut devices = Vec::new();
            for (name, inode) in self.tree.children(directory) {
                if self.tree.is_directory(inode) {
                    open.push(inode);
                } else if self.is_device(inode) {
                    devices.push(name.to_vec());
                }
            }
            for name in devices {
                self.tree.unlink(directory, &name);
            }
        }
        self.tree
    }

    pub(super) fn is_directory(&self, inode: InodeId) -> bool {
        self.tree.is_directory(inode)
    }

    /// Returns the file at a place. A device counts as missing, as in the tree of an unpacked layer.
    pub(super) fn child(&self, place: Place<'_>) -> Option<InodeId> {
        self.entry(place).filter(|inode| !self.is_device(*inode))
    }

    /// Returns the file or the device at a place.
    pub(super) fn entry(&self, place: Place<'_>) -> Option<InodeId> {
        self.tree.child(place.directory, place.name)
    }

    fn is_device(&self, inode: InodeId) -> bool {
        self.has_devices && matches!(self.tree.content(inode), ContentRef::CharDevice { .. })
    }

    pub(super) fn unlink(&mut self, place: Place<'_>) {
        self.tree.unlink(place.directory, place.name);
    }

    /// Removes all names from a directory.
    pub(super) fn clear(&mut self, directory: InodeId) {
        self.tree.clear(directory);
    }

    /// Links an inode, which replaces another one of this name.
    pub(super) fn link(&mut self, place: Place<'_>, inode: InodeId) -> Result<(), ApplyError> {
        self.charge(place.name.len() as u64)?;
        self.tree.link(place.directory, place.name, inode)?;
        Ok(())
    }

    /// Adds an inode, and links it.
    pub(super) fn make(
        &mut self,
        place: Place<'_>,
        metadata: Metadata,
        content: Content,
    ) -> Result<InodeId, ApplyError> {
        self.has_devices |= content == DEVICE;
        self.inodes += 1;
        if self.inodes > self.limits.inodes {
            return Err(ApplyError::Limit { what: "inodes", limit: self.limits.inodes });
        }
        let content_bytes = match &content {
            Content::File(file) => file.ranges.len() * size_of::<DataRange>(),
            Content::Symlink(target) => target.len(),
            _ => 0,
        };
        self.charge(INODE_BYTES + content_bytes as u64 + xattr_bytes(&metadata))?;
        let inode = self.tree.add(metadata, content)?;
        self.link(place, inode)?;
        Ok(inode)
    }

    /// Replaces the metadata of a directory.
    pub(super) fn describe(
        &mut self,
        directory: InodeId,
        metadata: Metadata,
    ) -> Result<(), ApplyError> {
        self.charge(xattr_bytes(&metadata))?;
        Ok(self.tree.set_metadata(directory, metadata)?)
    }

    /// Counts bytes of memory. They are never given back, because the tree keeps what is removed.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), ApplyError> {
        self.bytes = self.bytes.saturating_add(bytes);
        match self.bytes <= self.limits.bytes {
            true => Ok(()),
            false => Err(ApplyError::Limit { what: "bytes of memory", limit: self.limits.bytes }),
        }
    }

    /// Returns the place of an entry, and creates missing parent directories.
    pub(super) fn place<'a>(&mut self, path: &'a EntryPath) -> Result<Place<'a>, ApplyError> {
        let (directory, name) = path.split().ok_or(EntryError::Root)?;
        let walk = self.walk(directory, Missing::Make)?.ok_or(EntryError::ParentNotDirectory)?;
        Ok(Place { directory: walk.here(), name })
    }

    /// Resolves a path, and returns the way to the directory that it leads to. With
    /// [`Missing::Stop`], a missing directory or another file in its place gives `None`.
    pub(super) fn walk(
        &mut self,
        directory: &[u8],
        missing: Missing,
    ) -> Result<Option<Walk>, ApplyError> {
        let mut walk = Walk::new();
        for name in components(directory) {
            if !self.enter(&mut walk, name, missing)? {
                return Ok(None);
            }
        }
        Ok(Some(walk))
    }

    /// Returns the way to an existing directory, or `None` if the path leads to none.
    pub(super) fn find(&mut self, directory: &[u8]) -> Result<Option<Walk>, ApplyError> {
        match self.walk(directory, Missing::Stop) {
            // A path with too many symbolic links leads to no directory.
            Err(ApplyError::Entry(_)) => Ok(None),
            found => found,
        }
    }

    /// Goes on by one name, and by the names of the symbolic links behind it. Returns `false` if
    /// there is no such directory, which only [`Missing::Stop`] allows.
    ///
    /// Symbolic links are resolved with the root of the tree as their root, as in the box. With
    /// [`Missing::Make`], the missing target of a link is created too.
    pub(super) fn enter(
        &mut self,
        walk: &mut Walk,
        name: &[u8],
        missing: Missing,
    ) -> Result<bool, ApplyError> {
        self.steps.take(1)?;
        // Most names are those of directories, and need no list.
        let mut pending: Vec<Cow<'_, [u8]>> = Vec::new();
        let mut next_name = Some(Cow::Borrowed(name));
        while let Some(name) = next_name.take().or_else(|| pending.pop()) {
            if *name == *b".." {
                // `..` in the root directory is the root itself.
                walk.chain.truncate(1.max(walk.chain.len() - 1));
                continue;
            }
            let place = Place { directory: walk.here(), name: &name };
            let next = match self.child(place) {
                None if missing == Missing::Stop => return Ok(false),
                None => self.make_undescribed(place)?,
                Some(inode) => match self.tree.content(inode) {
                    ContentRef::Directory => inode,
                    ContentRef::Symlink(target) => {
                        walk.hops += 1;
                        if walk.hops > SYMLINK_HOPS {
                            return Err(EntryError::SymlinkLoop.into());
                        }
                        if target.starts_with(b"/") {
                            walk.chain.truncate(1);
                        }
                        self.steps.take(components(target).count())?;
                        let names = components(target).rev();
                        pending.extend(names.map(|name| Cow::Owned(name.to_vec())));
                        continue;
                    }
                    _ if missing == Missing::Stop => return Ok(false),
                    _ => return Err(EntryError::ParentNotDirectory.into()),
                },
            };
            if walk.chain.len() == DEPTH {
                return Err(EntryError::Name(PathError::TooDeep { limit: DEPTH }).into());
            }
            walk.chain.push(next);
        }
        Ok(true)
    }

    /// Creates a directory, which replaces another file of this name.
    pub(super) fn make_undescribed(&mut self, place: Place<'_>) -> Result<InodeId, ApplyError> {
        // The name can come from a symbolic link, whose target has not been split before.
        if place.name.len() > NAME_BYTES {
            return Err(EntryError::Name(PathError::TooLong).into());
        }
        self.make(place, undescribed(), Content::Directory)
    }
}

/// Returns the metadata of a directory without an entry. They are constant, so that each merge
/// gives the same tree.
fn undescribed() -> Metadata {
    let mode = u16::try_from(UNDESCRIBED_DIR_MODE).unwrap_or_default();
    Metadata { mode, ..Metadata::default() }
}

fn xattr_bytes(metadata: &Metadata) -> u64 {
    let bytes = |(name, value): &(Vec<u8>, Vec<u8>)| (name.len() + value.len()) as u64;
    metadata.xattrs.iter().map(bytes).sum()
}
