//! The three ways to make a tree in the cache: a layer alone, a layer on top of the layers below it,
//! and a set of directories that get the metadata of lower layers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::fcntl::openat;
use nix::sys::stat::{Mode, mkdirat};

use super::overlap::LayerStack;
use super::perform::{layer_error, perform};
use crate::cache::error::CacheError;
use crate::cache::layer_cache::LayerCache;
use crate::cache::lookup::CachedLayer;
use crate::cache::name;
use crate::cache::publish::Recipe;
use crate::cache::record::{self, Record};
use crate::cache::staged::Staged;
use crate::cache::task::{Task, TreeBase, Work};
use crate::host::directory::{OPEN_DIR, open_below, open_dir};
use crate::host::metadata::{copy_metadata, reset_metadata};
use crate::host::overlay_mount;
use crate::host::remove::remove_tree;
use crate::image::Layer;
use crate::layout::Layout;
use crate::layout::blob::Blob;
use crate::unpack::cross_layer::CrossLayerDependencies;
use crate::unpack::error::LayerError;
use crate::unpack::progress::{OnProgress, Progress};

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
    /// Unpacks the layer into the tree of a directory, and writes its record. `lower` are the files of
    /// a layer on top of others.
    fn unpack(
        &self,
        staged: &Staged<'_>,
        lower: Option<Vec<OwnedFd>>,
        progress: &mut OnProgress<'_>,
    ) -> Result<(), CacheError> {
        let Self { cache, layer, .. } = *self;
        let blob = self.open_blob()?;
        let base = if lower.is_some() { TreeBase::OnTop } else { TreeBase::Alone };
        let limits = cache.limits.clone();
        let work = Work::Tree { base, limits, overlay_xattrs: cache.overlay_xattrs };
        let task = Task { work, layers: vec![*layer], place: staged.place() };
        let directory = staged.directory().try_clone().map_err(staged.error("take"))?;
        let files = [directory].into_iter().chain(lower.into_iter().flatten()).collect();
        perform(staged, &task, Some(blob), files, &mut |_, step| progress(step))
    }

    pub(super) fn open_blob(&self) -> Result<Blob, CacheError> {
        let blob = self.layout.open_blob(self.layer.digest, self.layer.size_bytes);
        blob.map_err(|source| self.error(source.into()))
    }

    /// Returns the error of reading the layer.
    pub(super) fn error(&self, source: LayerError) -> CacheError {
        layer_error(self.layer, source)
    }

    fn cancelled(&self) -> CacheError {
        CacheError::Cancelled { layer: self.layer.digest }
    }

    /// Reports progress, which can cancel the work.
    pub(super) fn report(
        &self,
        progress: &mut OnProgress<'_>,
        step: Progress,
    ) -> Result<(), CacheError> {
        match progress(step) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(self.cancelled()),
        }
    }
}

/// Unpacks a layer alone.
pub(super) struct Alone<'a> {
    pub(super) source: Source<'a>,
    pub(super) progress: &'a mut OnProgress<'a>,
}

impl Recipe for Alone<'_> {
    type Content = Record;

    fn name(&self) -> String {
        name::of_digest(self.source.layer.id())
    }

    fn make(&mut self, staged: &Staged<'_>) -> Result<(), CacheError> {
        staged.make_tree()?;
        self.source.unpack(staged, None, self.progress)?;
        self.source.report(self.progress, Progress::Publishing)
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        self.source.report(self.progress, Progress::Waiting)
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
    type Content = Record;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn make(&mut self, staged: &Staged<'_>) -> Result<(), CacheError> {
        let failed = stack_error(self.source.layer);
        let (directory, tree) = (staged.directory(), staged.make_tree()?);
        let view = self.mount_parents(directory, &tree).map_err(failed)?;
        let dependencies = self.write_dependencies(staged).map_err(failed)?;
        let lower = [dependencies].into_iter().chain(view).collect();
        self.source.unpack(staged, Some(lower), self.progress)?;
        // Nobody has an fd of the detached mount any more. That unmounted it, so its work directory
        // can be removed.
        let emptied = remove_tree(directory.as_fd(), WORK.as_bytes());
        emptied.map_err(|errno| failed(errno.into()))
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        self.source.report(self.progress, Progress::Waiting)
    }
}

impl OnTop<'_> {
    /// Writes what the work must know of the layer and of the layers below, and returns the file.
    fn write_dependencies(&self, staged: &Staged<'_>) -> io::Result<OwnedFd> {
        let skipped = self.skipped.clone();
        let known = CrossLayerDependencies { skipped, ..self.dependencies.clone() };
        let file = staged.make_unnamed_file()?;
        // The position of the file stays at its beginning, where the reader begins.
        file.write_all_at(&record::encode(&known), 0)?;
        Ok(file.into())
    }

    /// Mounts the layers below with `tree` as the upper directory, and returns the root of the
    /// mount. Without any layer there is no mount.
    fn mount_parents(&self, directory: &OwnedFd, tree: &OwnedFd) -> io::Result<Option<OwnedFd>> {
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
            return Ok(None);
        }
        mkdirat(directory, WORK, Mode::S_IRWXU)?;
        let work = openat(directory, WORK, OPEN_DIR, Mode::empty())?;
        overlay_mount::overlay(&lower, tree, &work, self.source.cache.overlay_xattrs).map(Some)
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
    pub(super) progress: &'a mut OnProgress<'a>,
}

impl Recipe for RestoredMetadata<'_> {
    type Content = Record;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn make(&mut self, staged: &Staged<'_>) -> Result<(), CacheError> {
        let tree = staged.make_tree()?;
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
            Ok(())
        };
        make().map_err(stack_error(self.layer))?;
        staged.write_record(&Record::default())
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        // Making a few directories takes milliseconds, but the process that makes them may hang.
        match (self.progress)(Progress::Waiting) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(CacheError::Cancelled { layer: self.layer.digest }),
        }
    }
}

/// Returns a function that makes the error of a stack up to `layer`.
pub(super) fn stack_error(layer: &Layer) -> impl Fn(io::Error) -> CacheError + Copy + use<> {
    let layer = layer.digest;
    move |source| CacheError::Stack { layer, source }
}
