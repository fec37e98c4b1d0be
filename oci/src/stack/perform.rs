//! Does tasks: in this process, or by an unpacker.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, Builder};

use a3s_box_erofs::WriteError;
use a3s_box_sys::HostError;
use nix::fcntl::{FcntlArg, fcntl, openat};
use nix::sys::stat::Mode;

use crate::block::error::BlockError;
use crate::block::image::{self, Devices};
use crate::block::layer_file::{self, LayerFile, Target};
use crate::block::merge::Merge;
use crate::block::root_tree::TreeLimits;
use crate::cache::error::CacheError;
use crate::cache::name::TREE;
use crate::cache::record::{self, Record};
use crate::cache::staged::Staged;
use crate::cache::task::{Fault, OnTaskProgress, Task, TreeBase, Unpackers, Work};
use crate::host::directory::OPEN_DIR;
use crate::host::overlay_xattr::OverlayXattrs;
use crate::image::Layer;
use crate::image::digest::Digest;
use crate::layout::blob::{Blob, BlobError, Fed};
use crate::unpack::cross_layer::{Base, CrossLayerDependencies};
use crate::unpack::error::LayerError;
use crate::unpack::limits::Limits;
use crate::unpack::progress::{Meter, OnProgress, Progress};
use crate::unpack::unpacker::{Job, unpack};

/// Capacity of the pipe that carries a blob. It is the most that Linux gives to an ordinary user
/// (`/proc/sys/fs/pipe-max-size`), and lets the unpacker read large parts.
const PIPE_BYTES: i32 = 1 << 20;

impl Task {
    /// Does the task in this process, an unpacker. The blob of a layer is a pipe, the first of the
    /// files. The sender of the blob verifies its digest, and this process the `DiffID`.
    ///
    /// # Errors
    ///
    /// Fails if a layer is refused, if the host fails, and if `progress` returns `Break`.
    pub fn perform(
        &self,
        mut files: Vec<OwnedFd>,
        progress: &mut OnTaskProgress<'_>,
    ) -> Result<(), CacheError> {
        let blob = match (&self.work, self.layers.first()) {
            (Work::MetadataImage { .. }, _) | (_, None) => None,
            (_, Some(layer)) if files.is_empty() => return Err(missing(layer)),
            (_, Some(layer)) => {
                Some(Blob::received(files.remove(0).into(), layer.digest, layer.size_bytes))
            }
        };
        self.perform_with(blob, files, progress)
    }

    /// Returns the layer that is to blame for an error of this task.
    #[must_use]
    pub fn fault(&self, error: &CacheError) -> Option<Fault> {
        error.fault().filter(|fault| self.reads(*fault))
    }

    fn reads(&self, fault: Fault) -> bool {
        let (Fault::Layer(blob) | Fault::Index(blob)) = fault;
        self.layers.iter().any(|layer| layer.digest == blob)
    }

    fn perform_with(
        &self,
        blob: Option<Blob>,
        files: Vec<OwnedFd>,
        progress: &mut OnTaskProgress<'_>,
    ) -> Result<(), CacheError> {
        let mut files = files.into_iter();
        let last = self.layers.len().saturating_sub(1);
        let Some(layer) = self.layers.get(last) else { return Ok(()) };
        let (Some(first), second) = (files.next(), files.next()) else {
            return Err(missing(layer));
        };
        match (&self.work, blob, second) {
            (Work::LayerFile { limits }, Some(blob), Some(spool)) => {
                let mut spool = Some(File::from(spool));
                let make_file = &mut || spool.take().ok_or(io::ErrorKind::NotFound.into());
                let target = Target { file: first.into(), make_file };
                let progress = &mut |step| progress(0, step);
                layer_file::write(blob, layer, limits, target, progress)
                    .map(drop)
                    .map_err(|source| layer_error(layer, source))
            }
            (Work::MetadataImage { chain, limits }, _, second) => {
                let layer_files: Vec<OwnedFd> = second.into_iter().chain(files).collect();
                let mut merge = LayerMerge { task: self, limits, chain: *chain, progress };
                merge.write(first.into(), layer_files)
            }
            (Work::Tree { base, limits, overlay_xattrs }, Some(blob), lower) => {
                let lower = match base {
                    TreeBase::Alone => None,
                    TreeBase::OnTop => Some(lower.ok_or_else(|| missing(layer))?),
                };
                let overlay_xattrs = *overlay_xattrs;
                let tree = TreeTask { layer, limits, overlay_xattrs, directory: &first };
                let written = tree.write(blob, lower, files.next(), progress)?;
                written.write(&first).map_err(HostError::at("write the record of", &self.place))?;
                Ok(())
            }
            _ => Err(missing(layer)),
        }
    }
}

/// The work on the tree of a layer.
struct TreeTask<'a> {
    layer: &'a Layer,
    limits: &'a Limits,
    overlay_xattrs: OverlayXattrs,
    /// The staging directory.
    directory: &'a OwnedFd,
}

impl TreeTask<'_> {
    /// Unpacks the layer, and returns its record. A layer on top of others has a file with its
    /// dependencies, `lower`, and a `view` of them unless there is no layer below.
    fn write(
        &self,
        blob: Blob,
        lower: Option<OwnedFd>,
        view: Option<OwnedFd>,
        progress: &mut OnTaskProgress<'_>,
    ) -> Result<Record, CacheError> {
        let Self { layer, limits, overlay_xattrs, directory } = *self;
        let host = |source| CacheError::Stack { layer: layer.digest, source };
        let root = match view {
            Some(view) => view,
            None => openat(directory, TREE, OPEN_DIR, Mode::empty())
                .map_err(|errno| host(errno.into()))?,
        };
        let lower = lower.map(|file| read_dependencies(file.into())).transpose().map_err(host)?;
        let base = lower.as_ref().map_or(Base::Empty, |dependencies| Base::Lower {
            dependencies,
            skipped: &dependencies.skipped,
        });
        let progress: &mut OnProgress<'_> = &mut |step| match lower {
            None => progress(0, step),
            Some(_) => progress(0, Progress::OnTop),
        };
        let job = Job { layer, base, overlay_xattrs, limits };
        let (facts, mut dependencies) =
            unpack(blob, job, root, progress).map_err(|source| layer_error(layer, source))?;
        if lower.is_some() {
            // The dependencies on lower layers are resolved in this tree. Upper layers still depend
            // on the names of its devices.
            let skipped = dependencies.skipped;
            dependencies = CrossLayerDependencies { skipped, ..CrossLayerDependencies::default() };
        }
        Ok(Record { facts, dependencies })
    }
}

/// Reads the dependencies of a layer on lower layers, which the process of the cache has written.
fn read_dependencies(mut file: File) -> io::Result<CrossLayerDependencies> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    record::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The work on the metadata image of layers.
struct LayerMerge<'a, 'p> {
    task: &'a Task,
    limits: &'a TreeLimits,
    chain: Digest,
    progress: &'a mut OnTaskProgress<'p>,
}

impl LayerMerge<'_, '_> {
    fn write(&mut self, output: File, files: Vec<OwnedFd>) -> Result<(), CacheError> {
        let layers = &self.task.layers;
        let files = layers.iter().zip(files).map(|(layer, file)| {
            let damaged = |source| BlockError::Index { layer: layer.digest, source };
            LayerFile::open(file.into()).map_err(damaged).map_err(CacheError::Block)
        });
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let numbered = layers.iter().zip(&files).map(|(layer, file)| (layer.id(), file));
        let devices = Devices::of(numbered).map_err(CacheError::Block)?;
        let mut merge = Merge::new(self.limits.clone()).map_err(CacheError::Block)?;
        for (i, (layer, file)) in layers.iter().zip(&files).enumerate() {
            let on_progress: &mut OnProgress<'_> = &mut |_| (self.progress)(i, Progress::OnTop);
            let mut meter = Meter::new(layer.size_bytes, on_progress);
            let device = devices.number(i);
            merge.apply(file, device, layer.digest, &mut meter).map_err(merge_error)?;
        }
        self.write_image(merge, &devices, output)
    }

    fn write_image(
        &mut self,
        merge: Merge,
        devices: &Devices,
        file: File,
    ) -> Result<(), CacheError> {
        // The image belongs to all layers. The topmost one stands for it.
        let Some((topmost, layer)) = self.task.layers.iter().enumerate().next_back() else {
            return Ok(());
        };
        let on_progress: &mut OnProgress<'_> = &mut |_| (self.progress)(topmost, Progress::OnTop);
        let mut output = MeteredFile { file, meter: Meter::new(0, on_progress) };
        let written = image::write(merge, devices, Some(self.chain), &mut output);
        written.map_err(|error| match error {
            BlockError::Write(WriteError::Output(source)) if is_cancelled(&source) => {
                CacheError::Cancelled { layer: layer.digest }
            }
            // The disk is full or fails. The error of the cache names the place.
            BlockError::Write(WriteError::Output(source)) => {
                HostError::at("write the metadata image in", &self.task.place)(source).into()
            }
            error => CacheError::Block(error),
        })
    }
}

/// A file that reports progress with each write.
struct MeteredFile<'a> {
    file: File,
    meter: Meter<'a>,
}

impl Write for MeteredFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.meter.beat().map_err(io::Error::other)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Returns whether [`MeteredFile`] made the error because the work was cancelled.
fn is_cancelled(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(LayerError::Cancelled))
}

fn merge_error(error: BlockError) -> CacheError {
    match error {
        BlockError::Layer { layer, source: LayerError::Cancelled } => {
            CacheError::Cancelled { layer }
        }
        BlockError::Layer { layer, source } => CacheError::Layer { layer, source },
        error => CacheError::Block(error),
    }
}

/// Returns the error of reading a layer.
pub(super) fn layer_error(layer: &Layer, source: LayerError) -> CacheError {
    match source {
        LayerError::Cancelled => CacheError::Cancelled { layer: layer.digest },
        source => CacheError::Layer { layer: layer.digest, source },
    }
}

/// Returns the error of a task that came without a file.
fn missing(layer: &Layer) -> CacheError {
    let source = io::Error::new(io::ErrorKind::InvalidInput, "a file of the task is missing");
    CacheError::Stack { layer: layer.digest, source }
}

/// Does a task for a directory in `staging`: by an unpacker if the cache has a way to start one.
pub(super) fn perform(
    staged: &Staged<'_>,
    task: &Task,
    blob: Option<Blob>,
    files: Vec<OwnedFd>,
    progress: &mut OnTaskProgress<'_>,
) -> Result<(), CacheError> {
    let Some(unpackers) = staged.unpackers() else {
        return task.perform_with(blob, files, progress);
    };
    let remote = Remote { task, unpackers, lock: staged.lock() };
    match (blob, task.layers.first()) {
        (Some(blob), Some(layer)) => remote.perform_with_blob(layer, blob, files, progress),
        _ => remote.perform(&files, progress),
    }
}

/// A task for an unpacker.
#[derive(Clone, Copy)]
struct Remote<'a> {
    task: &'a Task,
    unpackers: &'a dyn Unpackers,
    lock: BorrowedFd<'a>,
}

impl Remote<'_> {
    fn perform(
        &self,
        files: &[OwnedFd],
        progress: &mut OnTaskProgress<'_>,
    ) -> Result<(), CacheError> {
        let mut cancelled = None;
        let on_progress: &mut OnTaskProgress<'_> = &mut |i, step| {
            // The number comes from an unpacker, which a blob may have taken over.
            let Some(layer) = self.task.layers.get(i) else { return ControlFlow::Continue(()) };
            let flow = progress(i, step);
            if flow.is_break() {
                cancelled = Some(layer.digest);
            }
            flow
        };
        let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        let outcome = self.unpackers.run(self.task, &files, self.lock, on_progress);
        if let Some(layer) = cancelled {
            return Err(CacheError::Cancelled { layer });
        }
        outcome.map_err(|mut failure| {
            failure.fault = failure.fault.filter(|fault| self.task.reads(*fault));
            failure.into()
        })
    }

    /// Does the task, and sends the bytes of the blob meanwhile. The unpacker gets no bytes but
    /// those whose digest is verified here.
    fn perform_with_blob(
        &self,
        layer: &Layer,
        blob: Blob,
        mut files: Vec<OwnedFd>,
        progress: &mut OnTaskProgress<'_>,
    ) -> Result<(), CacheError> {
        let threads = |source| layer_error(layer, LayerError::Threads(source));
        let (reader, writer) = io::pipe().map_err(threads)?;
        // A smaller pipe works too.
        let _best_effort = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        files.insert(0, reader.into());
        let (outcome, fed) = thread::scope(|scope| {
            let feed = Builder::new().name("layer blob".into());
            let feed = feed.spawn_scoped(scope, move || blob.feed(writer)).map_err(threads)?;
            let outcome = self.perform(&files, progress);
            // Nobody has the other end of the pipe any more, so that the thread ends.
            drop(files);
            let fed = feed.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, CacheError>((outcome, fed))
        })?;
        if let Err(CacheError::Cancelled { .. }) = outcome {
            return outcome;
        }
        let blob_error = |source: BlobError| layer_error(layer, source.into());
        match (fed.map_err(blob_error)?, outcome) {
            // An unpacker that claims success without having read the blob is not believed.
            (Fed::Partly(blob), Ok(())) => blob.finish().map_err(blob_error),
            (_, outcome) => outcome,
        }
    }
}
