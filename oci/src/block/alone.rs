//! The result of one layer on an empty tree. Whiteouts need it, because a file of their own layer
//! can be in the way of their path.

use std::collections::HashSet;

use a3s_box_erofs::{InodeId, Metadata};

use super::entries::{link_late, link_or_skip, make};
use super::error::{BlockError, apply_error};
use super::index::{Change, Record};
use super::layer_file::LayerFile;
use super::root_tree::{ApplyError, Place, RootTree, TreeLimits};
use crate::image::digest::Digest;
use crate::unpack::progress::Meter;

/// The result of one layer on an empty tree, as far as whiteouts need it: types and names only.
/// Entries that need lower layers are skipped.
#[derive(Debug)]
pub(super) struct Alone {
    tree: RootTree,
    /// Directories that have an entry.
    described: HashSet<InodeId>,
}

impl Alone {
    pub(super) fn of(
        file: &LayerFile,
        limits: TreeLimits,
        layer: Digest,
        meter: &mut Meter<'_>,
    ) -> Result<Self, BlockError> {
        let cancelled = |source| BlockError::Layer { layer, source };
        let damaged = |source| BlockError::Index { layer, source };
        let tree = RootTree::new(limits).map_err(BlockError::Root)?;
        let mut this = Self { tree, described: HashSet::new() };
        let mut late = Vec::new();
        let mut index = file.index().map_err(damaged)?;
        while let Some(Record { path, change }) = index.next_record().map_err(damaged)? {
            meter.beat().map_err(cancelled)?;
            this.tree.steps.next_entry();
            let applied = match change {
                Change::HardLink(target) => match link_or_skip(&mut this.tree, &path, &target) {
                    Ok(false) => {
                        late.push((path, target));
                        continue;
                    }
                    made => made.map(drop),
                },
                change => make(&mut this.tree, &path, without_data(change), 0)
                    .map(|described| this.described.extend(described)),
            };
            possible(applied).map_err(|error| apply_error(layer, &path, error))?;
        }
        for (path, target) in late {
            meter.beat().map_err(cancelled)?;
            this.tree.steps.next_entry();
            possible(link_late(&mut this.tree, &path, &target))
                .map_err(|error| apply_error(layer, &path, error))?;
        }
        Ok(this)
    }

    pub(super) fn child(&self, place: Place<'_>) -> Option<InodeId> {
        self.tree.child(place)
    }

    pub(super) fn is_directory(&self, inode: InodeId) -> bool {
        self.tree.is_directory(inode)
    }

    /// Returns whether the layer has an entry for a directory.
    pub(super) fn is_described(&self, directory: InodeId) -> bool {
        self.described.contains(&directory)
    }
}

/// Ignores the error of an entry that a layer alone need not be able to make.
fn possible(applied: Result<(), ApplyError>) -> Result<(), ApplyError> {
    match applied {
        Err(ApplyError::Entry(_)) => Ok(()),
        applied => applied,
    }
}

/// Removes everything from an entry that takes memory and is not needed to tell its type.
fn without_data(change: Change) -> Change {
    let metadata = Metadata::default();
    match change {
        Change::Directory(_) => Change::Directory(metadata),
        Change::File { .. } => Change::File { metadata, size_bytes: 0, ranges: Vec::new() },
        Change::Symlink { target, .. } => Change::Symlink { metadata, target },
        Change::Fifo(_) => Change::Fifo(metadata),
        change => change,
    }
}
