//! The three ways to make a layer in the cache: alone, on top of the layers below it, and as a set
//! of directories that get the metadata of lower layers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::openat;
use nix::sys::stat::{Mode, mkdirat};

use super::overlap::LayerStack;
use crate::cache::error::CacheError;
use crate::cache::layer_cache::LayerCache;
use crate::cache::lookup::CachedLayer;
use crate::cache::name;
use crate::cache::publish::Recipe;
use crate::cache::record::Record;
use crate::host::directory::{OPEN_DIR, open_below, open_dir};
use crate::host::metadata::{copy_metadata, reset_metadata};
use crate::host::overlay_mount;
use crate::host::remove::remove_tree;
use crate::image::Layer;
use crate::layout::Layout;
use crate::unpack::cross_layer::{Base, CrossLayerDependencies};
use crate::unpack::error::LayerError;
use crate::unpack::progress::{OnProgress, Progress};
use crate::unpack::unpacker::{Job, unpack};

/// The work directory of the overlay mount on which a layer is unpacked on top of others. It is
/// next to the tree, because overlayfs requires the work directory and the upper directory on one
/// file system.
const WORK: &str = "work";

/// A layer of a layout, and the cache that receives it.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) cache: &'a LayerCache,
    pub(super) layout: &'a Layout,
    pub(super) layer: &'a Layer,
}

impl Source<'_> {
    /// Unpacks the layer into the directory `root`.
    fn unpack(
        &self,
        base: Base<'_>,
        root: OwnedFd,
        progress: &mut OnProgress<'_>,
    ) -> Result<Record, CacheError> {
        let Self { cache, layout, layer } = *self;
        let failed = |source| match source {
            LayerError::Cancelled => CacheError::Cancelled { layer: layer.digest },
            source => CacheError::Layer { layer: layer.digest, source },
        };
        let blob = layout.open_blob(layer.digest, layer.size_bytes);
        let blob = blob.map_err(|source| failed(source.into()))?;
        let job = Job { layer, base, overlay_xattrs: cache.overlay_xattrs, limits: &cache.limits };
        let (facts, dependencies) = unpack(blob, job, root, progress).map_err(failed)?;
        Ok(Record { facts, dependencies })
    }
}

/// Unpacks a layer alone.
pub(super) struct Alone<'a> {
    pub(super) source: Source<'a>,
    pub(super) progress: &'a mut OnProgress<'a>,
}

impl Recipe for Alone<'_> {
    fn name(&self) -> String {
        name::of_digest(self.source.layer.diff_id)
    }

    fn make(&mut self, _directory: &OwnedFd, tree: OwnedFd) -> Result<Record, CacheError> {
        let record = self.source.unpack(Base::Empty, tree, self.progress)?;
        match (self.progress)(Progress::Publishing) {
            ControlFlow::Continue(()) => Ok(record),
            ControlFlow::Break(()) => {
                Err(CacheError::Cancelled { layer: self.source.layer.digest })
            }
        }
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        report_wait(self.source.layer, self.progress)
    }
}

/// Unpacks a layer on top of the layers below it.
///
/// The layers below are the lower directories of an overlay mount, and the tree is its upper
/// directory. The kernel writes all changes in the mount to the tree, in the form that overlayfs
/// needs later.
pub(super) struct OnTop<'a> {
    pub(super) source: Source<'a>,
    pub(super) name: String,
    pub(super) stack: &'a LayerStack,
    /// The layer that restores the metadata of the stack's directories.
    pub(super) metadata: Option<CachedLayer>,
    /// Names at which devices of the stack were skipped.
    pub(super) skipped: &'a BTreeSet<PathBuf>,
    /// The dependencies that were found when the layer was unpacked alone.
    pub(super) dependencies: &'a CrossLayerDependencies,
    pub(super) progress: &'a mut OnProgress<'a>,
}

impl Recipe for OnTop<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn make(&mut self, directory: &OwnedFd, tree: OwnedFd) -> Result<Record, CacheError> {
        let failed = stack_error(self.source.layer);
        let root = self.mount_parents(directory, &tree).map_err(failed)?;
        let progress = &mut *self.progress;
        let progress: &mut OnProgress<'_> = &mut |_| progress(Progress::OnTop);
        let base = Base::Lower { dependencies: self.dependencies, skipped: self.skipped };
        let record = self.source.unpack(base, root, progress)?;
        // `unpack` has closed the only fd of the detached mount. That unmounted it, so its work
        // directory can be removed.
        let emptied = remove_tree(directory.as_fd(), WORK.as_bytes());
        emptied.map_err(|errno| failed(errno.into()))?;
        // The dependencies on lower layers are resolved in this tree. Upper layers still depend on
        // the names of its devices.
        let skipped = record.dependencies.skipped;
        let dependencies = CrossLayerDependencies { skipped, ..CrossLayerDependencies::default() };
        Ok(Record { facts: record.facts, dependencies })
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        report_wait(self.source.layer, self.progress)
    }
}

impl OnTop<'_> {
    /// Mounts the layers below with `tree` as the upper directory, and returns the root of the
    /// mount.
    fn mount_parents(&self, directory: &OwnedFd, tree: &OwnedFd) -> io::Result<OwnedFd> {
        // The root of an overlay mount has the metadata of the upper directory.
        reset_metadata(tree)?;
        let stacked = self.stack.layers().iter().map(|below| &below.layer);
        let lower: Vec<OwnedFd> = stacked
            .chain(&self.metadata)
            .rev()
            .map(|layer| open_dir(&layer.path))
            .collect::<io::Result<_>>()?;
        if lower.is_empty() {
            // Overlayfs requires at least one lower directory.
            return tree.try_clone();
        }
        mkdirat(directory, WORK, Mode::S_IRWXU)?;
        let work = openat(directory, WORK, OPEN_DIR, Mode::empty())?;
        overlay_mount::overlay(&lower, tree, &work, self.source.cache.overlay_xattrs)
    }
}

/// Makes directories that have the metadata of lower layers.
///
/// The layer is mounted on top of the stack. Overlayfs merges the content of directories and takes
/// the metadata from the topmost one.
pub(super) struct RestoredMetadata<'a> {
    pub(super) name: String,
    /// The topmost layer of the stack, for errors.
    pub(super) layer: &'a Layer,
    pub(super) stack: &'a LayerStack,
    /// The directories, each with the position of the layer that describes it.
    pub(super) directories: BTreeMap<PathBuf, Option<usize>>,
}

impl Recipe for RestoredMetadata<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn make(&mut self, _directory: &OwnedFd, tree: OwnedFd) -> Result<Record, CacheError> {
        let make = || {
            for path in self.directories.keys().filter(|path| !path.as_os_str().is_empty()) {
                mkdirat(&tree, path, Mode::S_IRWXU)?;
            }
            // Making an entry changes the modification time of its directory, and setting metadata
            // does not. So all directories are made first.
            for (path, position) in self.directories.iter().rev() {
                let made = open_below(&tree, path)?;
                match position {
                    Some(i) => {
                        let model = &self.stack.layers()[*i].tree;
                        copy_metadata(&open_below(model, path)?, &made)?;
                    }
                    None => reset_metadata(&made)?,
                }
            }
            Ok(Record::default())
        };
        make().map_err(stack_error(self.layer))
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        // Making a few directories takes milliseconds, so there is nothing to report or to cancel.
        Ok(())
    }
}

/// Returns a function that makes the error of a stack up to `layer`.
pub(super) fn stack_error(layer: &Layer) -> impl Fn(io::Error) -> CacheError + Copy + use<> {
    let layer = layer.digest;
    move |source| CacheError::Stack { layer, source }
}

fn report_wait(layer: &Layer, progress: &mut OnProgress<'_>) -> Result<(), CacheError> {
    match progress(Progress::Waiting) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(CacheError::Cancelled { layer: layer.digest }),
    }
}
