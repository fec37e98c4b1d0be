//! The dependencies of a layer that was unpacked alone on the layers below it.
//!
//! Layers are unpacked apart and stacked later, which is nearly always the same as applying one
//! after the other. Where it may not be, the paths are noted here while unpacking, so that the stack
//! can look at just these.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What a layer leaves to the layers below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CrossLayerDependencies {
    /// No entry describes the root.
    pub(crate) undescribed_root: bool,
    /// Directories, other than the root, that were made to put something into them and that no entry
    /// describes: a lower layer's keep their metadata.
    pub(crate) undescribed: BTreeSet<PathBuf>,
    /// Directories that were made the same way, and described by a later entry: what was put into
    /// them before belongs where a lower layer's symbolic link of that name leads.
    pub(crate) used_early: BTreeSet<PathBuf>,
    /// Where an entry put something that a later one took away again, or where it would have been put
    /// a device: nothing of lower layers is left there.
    pub(crate) cleared: BTreeSet<PathBuf>,
    /// What whiteouts name.
    pub(crate) hidden: BTreeSet<PathBuf>,
    /// Directories whose lower content is hidden.
    pub(crate) opaque: BTreeSet<PathBuf>,
    /// Entries of which only lower layers can tell what they make: without these, the target of a
    /// hard link is missing, or something on the way is.
    pub(crate) undecided: u64,
}

impl CrossLayerDependencies {
    /// Whether the metadata of a directory of the layer is a lower layer's affair.
    pub(crate) fn leaves_open(&self, directory: &Path) -> bool {
        match directory.as_os_str().is_empty() {
            true => self.undescribed_root,
            false => self.undescribed.contains(directory),
        }
    }
}

/// On what a layer is unpacked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Base<'a> {
    /// An empty directory, to be stacked on others by overlayfs: whiteouts become its nodes.
    Empty,
    /// What the layers below make together, whose dependencies with the layer were found when it was
    /// unpacked alone: what whiteouts name is removed.
    Lower(&'a CrossLayerDependencies),
}
