//! Reads all inodes that the root reaches.

use std::collections::HashMap;

use crate::format::inode::{DiskInode, Kind};
use crate::format::superblock::Superblock;
use crate::read::data;
use crate::read::directory::{Entry, entries};
use crate::read::error::ReadError;
use crate::read::file::{Bounded, ReadAt};
use crate::read::inode::FoundInode;
use crate::read::xattrs::Sets;
use crate::tree::{InodeId, Metadata, Tree};
use crate::write::Device;

/// An inode that was read.
struct Known {
    id: InodeId,
    kind: Kind,
    /// The link count of the inode, and the links that were found.
    stored_links: u32,
    found_links: u32,
}

/// A directory whose entries are to be read.
struct Pending {
    found: FoundInode,
    id: InodeId,
    parent: u64,
}

/// The state of the walk.
struct Walk<'a, F> {
    image: Bounded<'a, F>,
    superblock: &'a Superblock,
    devices: &'a [Device],
    tree: Tree,
    /// Inodes by their numbers.
    known: HashMap<u64, Known>,
    sets: Sets,
    pending: Vec<Pending>,
}

/// Reads the tree of an image. It does not recurse, so directories may be nested without a limit.
pub(super) fn walk<F: ReadAt>(
    image: Bounded<'_, F>,
    superblock: &Superblock,
    devices: &[Device],
) -> Result<Tree, ReadError> {
    let root = u64::from(superblock.root);
    let tree = Tree::new(Metadata::default());
    let tree = tree.map_err(|source| ReadError::Tree { inode: root, source })?;
    let (known, sets, pending) = (HashMap::new(), Sets::default(), Vec::new());
    let mut walk = Walk { image, superblock, devices, tree, known, sets, pending };
    walk.add(root, root, true)?;
    while let Some(directory) = walk.pending.pop() {
        walk.read_directory(&directory)?;
    }
    walk.finish()
}

impl<F: ReadAt> Walk<'_, F> {
    /// Reads an inode that is not known yet, and adds it to the tree.
    fn add(&mut self, number: u64, parent: u64, is_root: bool) -> Result<InodeId, ReadError> {
        let found = FoundInode::read(&mut self.image, self.superblock, number)?;
        let xattrs = self.sets.read(&mut self.image, self.superblock, &found, &mut self.tree)?;
        let content = data::content(&mut self.image, self.devices, &found)?;
        let DiskInode { kind, links: stored_links, .. } = found.inode;
        let metadata = found.metadata(self.superblock);
        let added = if !is_root {
            self.tree.add(metadata, content)
        } else if kind == Kind::Directory {
            self.tree.set_metadata(InodeId::ROOT, metadata).map(|()| InodeId::ROOT)
        } else {
            return Err(found.damaged());
        };
        let id = added.map_err(|source| ReadError::Tree { inode: number, source })?;
        // The metadata have no attributes, because the set was interned before: inodes with the
        // same bytes are decoded once.
        self.tree.set_xattrs(id, xattrs);
        // A directory has its name and `.`. The root has `..` instead of a name.
        let found_links = if is_root { 2 } else { u32::from(kind == Kind::Directory) };
        self.known.insert(number, Known { id, kind, stored_links, found_links });
        if kind == Kind::Directory {
            self.pending.push(Pending { found, id, parent });
        }
        Ok(id)
    }

    fn read_directory(&mut self, directory: &Pending) -> Result<(), ReadError> {
        let own = directory.found.number;
        let damaged = || ReadError::Directory { inode: own };
        let mut blocks = Vec::new();
        // The blocks are copied, because reading inodes moves the window over the image.
        data::each_block(&mut self.image, &directory.found, |block| {
            blocks.push(block.to_vec());
            Ok(())
        })?;
        // Names ascend over all blocks. So no name is empty or occurs twice, and each of `.` and
        // `..` is found at most once.
        let mut before: &[u8] = b"";
        let mut dots = 0;
        for entry in blocks.iter().flat_map(|block| entries(block)) {
            let entry = entry.filter(|entry| entry.name > before).ok_or_else(damaged)?;
            before = entry.name;
            let expected = match entry.name {
                b"." => own,
                b".." => directory.parent,
                _ => {
                    self.link(directory, &entry)?;
                    continue;
                }
            };
            dots += 1;
            if entry.inode != expected || entry.kind != Kind::Directory.in_directory() {
                return Err(damaged());
            }
        }
        if dots == 2 { Ok(()) } else { Err(damaged()) }
    }

    /// Gives an inode its name.
    fn link(&mut self, directory: &Pending, entry: &Entry<'_>) -> Result<(), ReadError> {
        let inode = directory.found.number;
        // An inode with several names is read, and claimed, at its first name.
        if !self.known.contains_key(&entry.inode) {
            self.add(entry.inode, inode, false)?;
        }
        let damaged = || ReadError::Directory { inode };
        let known = self.known.get_mut(&entry.inode).ok_or_else(damaged)?;
        if known.kind.in_directory() != entry.kind {
            return Err(damaged());
        }
        // There are less than 2³² names, because the arena of the tree has less bytes.
        known.found_links = known.found_links.saturating_add(1);
        let (id, kind) = (known.id, known.kind);
        // A directory that contains itself ends the walk here, because `link` refuses a second name
        // of a directory.
        let linked = self.tree.link(directory.id, entry.name, id);
        linked.map_err(|source| ReadError::Tree { inode, source })?;
        if kind == Kind::Directory {
            // The `..` of a directory is a link to its parent.
            let above = self.known.get_mut(&inode).ok_or_else(damaged)?;
            above.found_links = above.found_links.saturating_add(1);
        }
        Ok(())
    }

    fn finish(self) -> Result<Tree, ReadError> {
        // The counts are complete only now, when all names were read.
        let (stored, found) = (self.superblock.inodes, self.known.len() as u64);
        if stored != found {
            return Err(ReadError::Inodes { stored, found });
        }
        for (inode, known) in self.known {
            let Known { stored_links: stored, found_links: found, .. } = known;
            if stored != found {
                return Err(ReadError::Links { inode, stored, found });
            }
        }
        Ok(self.tree)
    }
}
