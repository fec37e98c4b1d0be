//! The cross-layer dependencies of a layer: the paths where its result depends on the layers below.
//!
//! Each layer is unpacked alone, so that images can share it, and overlayfs stacks the layers
//! later. The image specification applies layers one after the other to one tree instead. Both give
//! the same files except at a few paths. Unpacking records these paths here, so that the stack has
//! to compare only them with the lower layers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The paths of a layer whose result depends on the layers below.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CrossLayerDependencies {
    /// Directories, other than the root, that were created as parents and have no entry of their
    /// own. If a lower layer has the directory, the metadata of the lower layer applies.
    pub(crate) undescribed: BTreeSet<PathBuf>,
    /// Directories that were created as parents before their own entry came. If a lower layer has a
    /// symbolic link of this name, the files that came before the entry belong to the link's
    /// target.
    pub(crate) used_early: BTreeSet<PathBuf>,
    /// Paths that this layer created and removed again, and paths where a device or a hard link was
    /// skipped. The files of lower layers at these paths must not appear in the stack.
    pub(crate) cleared: BTreeSet<PathBuf>,
    /// Paths that whiteouts name.
    pub(crate) hidden: BTreeSet<PathBuf>,
    /// Directories that opaque whiteouts name.
    pub(crate) opaque: BTreeSet<PathBuf>,
    /// Names at which devices, and hard links to devices, were skipped. A hard link of an upper layer
    /// to one of them is skipped too. A layer that was unpacked on top of others has all names of
    /// the stack here.
    pub(crate) skipped: BTreeSet<PathBuf>,
    /// Number of entries that could not be created without the lower layers: the target of a hard
    /// link or a parent is missing in this layer, and a lower layer can have it.
    pub(crate) undecided: u64,
}

impl CrossLayerDependencies {
    /// Returns whether the metadata of a directory does not come from this layer. No layer describes
    /// the root.
    pub(crate) fn leaves_open(&self, directory: &Path) -> bool {
        directory.as_os_str().is_empty() || self.undescribed.contains(directory)
    }
}

/// The tree that a layer is unpacked on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Base<'a> {
    /// An empty directory. Overlayfs stacks the result on other layers, so that whiteouts become
    /// overlayfs' own whiteouts and opaque directories.
    Empty,
    /// The merged view of the lower layers. The files that whiteouts name are removed from the view.
    Lower {
        /// The dependencies that were recorded when the layer was unpacked alone.
        dependencies: &'a CrossLayerDependencies,
        /// Names at which devices of the lower layers were skipped.
        skipped: &'a BTreeSet<PathBuf>,
    },
}
