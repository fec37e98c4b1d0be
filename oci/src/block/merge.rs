//! Applies the entries of layers to one tree, as the image specification defines it (layer.md,
//! decision 0005).
//!
//! - The whiteouts of a layer act first, on the layers below.
//! - Then each entry acts in the order of the archive. Its parent is resolved in the tree of all
//!   earlier entries, and created if it is missing.
//! - An entry for an existing directory replaces its metadata, and keeps its content. Every other
//!   entry replaces the file, or the whole directory, of its name.
//! - A hard link shares the inode of its target, whichever layer the target is from. If the target
//!   is missing, the link is made at the end of its layer.
//!
//! The work is done in memory, so that the result has no traces of the host's file system: link
//! counts, times of directories and inodes across layers are exact.

use a3s_box_erofs::Tree;

use super::alone::Alone;
use super::entries::{link_late, link_or_skip, make};
use super::error::{BlockError, apply_error};
use super::index::{Change, Record};
use super::layer_file::LayerFile;
use super::root_tree::{RootTree, TreeLimits};
use super::whiteouts::Whiteouts;
use crate::image::digest::Digest;
use crate::unpack::path::EntryPath;
use crate::unpack::progress::Meter;

/// The tree of an image, while its layers are applied.
#[derive(Debug)]
pub(crate) struct Merge {
    tree: RootTree,
    limits: TreeLimits,
}

impl Merge {
    /// Starts with an empty root directory.
    pub(crate) fn new(limits: TreeLimits) -> Result<Self, BlockError> {
        let tree = RootTree::new(limits.clone()).map_err(BlockError::Root)?;
        Ok(Self { tree, limits })
    }

    pub(super) fn into_tree(self) -> Tree {
        self.tree.into_tree()
    }

    /// Applies a layer.
    ///
    /// `device` is the number of its data among the devices of the image. `layer` is used in errors
    /// only. `meter` is called for each entry, and can cancel the work.
    ///
    /// # Errors
    ///
    /// When the file is damaged, when an entry cannot be applied to the layers below, when a limit
    /// is exceeded, or when the work is cancelled.
    pub(crate) fn apply(
        &mut self,
        file: &LayerFile,
        device: u16,
        layer: Digest,
        meter: &mut Meter<'_>,
    ) -> Result<(), BlockError> {
        let damaged = |source| BlockError::Index { layer, source };
        let cancelled = |source| BlockError::Layer { layer, source };
        let failed = |path: &EntryPath, error| apply_error(layer, path, error);
        self.tree.steps.next_layer();
        let whiteouts = read_whiteouts(file, layer, meter)?;
        if !whiteouts.is_empty() {
            let root = |error| failed(&EntryPath::root(), error);
            self.tree.charge(whiteouts.bytes()).map_err(root)?;
            let alone = Alone::of(file, self.limits.clone(), layer, meter)?;
            whiteouts.apply(&alone, &mut self.tree, meter).map_err(root)?;
        }
        let mut late = Vec::new();
        let mut index = file.index().map_err(damaged)?;
        while let Some(Record { path, change }) = index.next_record().map_err(damaged)? {
            meter.beat().map_err(cancelled)?;
            self.tree.steps.next_entry();
            match change {
                Change::HardLink(target) => {
                    let is_made = link_or_skip(&mut self.tree, &path, &target);
                    if !is_made.map_err(|error| failed(&path, error))? {
                        late.push((path, target));
                    }
                }
                change => {
                    make(&mut self.tree, &path, change, device)
                        .map_err(|error| failed(&path, error))?;
                }
            }
        }
        for (path, target) in late {
            meter.beat().map_err(cancelled)?;
            self.tree.steps.next_entry();
            link_late(&mut self.tree, &path, &target).map_err(|error| failed(&path, error))?;
        }
        Ok(())
    }
}

/// Reads the whole index, and returns the whiteouts in it. This verifies its checksum before the
/// first entry is applied.
fn read_whiteouts(
    file: &LayerFile,
    layer: Digest,
    meter: &mut Meter<'_>,
) -> Result<Whiteouts, BlockError> {
    let damaged = |source| BlockError::Index { layer, source };
    let mut whiteouts = Whiteouts::default();
    let mut index = file.index().map_err(damaged)?;
    while let Some(record) = index.next_record().map_err(damaged)? {
        meter.beat().map_err(|source| BlockError::Layer { layer, source })?;
        whiteouts.add(&record);
    }
    Ok(whiteouts)
}

#[cfg(test)]
mod tests;
