//! Tasks: the work on the bytes of an image, which another process than that of the cache can do.
//!
//! ```text
//!  process of the cache                          unpacker
//!   │ makes a directory in staging, opens files
//!   │ ── task, open files ─────────────────────► works on these files alone
//!   │ ── bytes of the blob, hashed ────────────►
//!   │ ◄─ progress, the end ───────────────────── ends
//!   │ checks the directory, publishes it
//! ```
//!
//! An unpacker gets one task. A blob that takes it over can therefore change only the content that
//! is made of this blob.

use std::error::Error;
use std::fmt;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::block::root_tree::TreeLimits;
use crate::host::overlay_xattr::OverlayXattrs;
use crate::image::Layer;
use crate::image::digest::Digest;
use crate::unpack::limits::Limits;
use crate::unpack::progress::Progress;

/// Receives the progress of a layer of a task, given by its index. `Break` ends the work.
pub type OnTaskProgress<'a> = dyn FnMut(usize, Progress) -> ControlFlow<()> + 'a;

/// One piece of work on the bytes of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    pub(crate) work: Work,
    /// The layers that are read. The bottom one is the first.
    pub(crate) layers: Vec<Layer>,
    /// The directory that the work is for, as errors show it.
    pub(crate) place: PathBuf,
}

/// The kind of the work, and the files that it gets after the blob, in this order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Reads a layer into a layer file. Files: the layer file and a file without a name, both empty.
    LayerFile { limits: Limits },
    /// Merges layer files. It has no blob. Files: the empty metadata image, the layer files.
    MetadataImage { chain: Digest, limits: TreeLimits },
    /// Unpacks a layer into a tree. Files: the staging directory with an empty tree. For a layer on
    /// top of others also a file with its cross-layer dependencies, and the overlay mount of the
    /// lower layers unless there is none.
    Tree { base: TreeBase, limits: Limits, overlay_xattrs: OverlayXattrs },
}

/// What a tree is unpacked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TreeBase {
    Alone,
    OnTop,
}

impl Task {
    /// Returns whether the work needs the names of files: it makes a tree in a directory. Any other
    /// task needs nothing but the open files that it gets.
    #[must_use]
    pub fn names_files(&self) -> bool {
        matches!(self.work, Work::Tree { .. })
    }

    /// Returns the index of the staging directory among the files, if [`Self::names_files`].
    #[must_use]
    pub fn directory(&self) -> Option<usize> {
        self.names_files().then_some(1)
    }

    /// Returns the index from which on the files are roots of mounts that the work writes to.
    #[must_use]
    pub fn mounts(&self) -> usize {
        3
    }

    /// Returns the progress before the first report.
    #[must_use]
    pub fn beginning(&self) -> (usize, Progress) {
        let last = self.layers.len().saturating_sub(1);
        match &self.work {
            Work::MetadataImage { .. } | Work::Tree { base: TreeBase::OnTop, .. } => {
                (last, Progress::OnTop)
            }
            _ => {
                let size_bytes = self.layers.first().map_or(0, |layer| layer.size_bytes);
                (0, Progress::Unpacking { read_bytes: 0, size_bytes, entries: 0 })
            }
        }
    }

    /// Returns the number of layers that the task reads.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }
}

/// A way to have tasks done by other processes.
pub trait Unpackers: fmt::Debug + Send + Sync {
    /// Does a task in a new process, which gets `files`. On return that process has ended.
    ///
    /// The process must also hold `lock` until its end. A cache that finds the lock free can then
    /// rely on it that nobody writes into the directory any more.
    ///
    /// # Errors
    ///
    /// Fails if the process cannot be started or fails, and if `progress` returns `Break`.
    fn run(
        &self,
        task: &Task,
        files: &[BorrowedFd<'_>],
        lock: BorrowedFd<'_>,
        progress: &mut OnTaskProgress<'_>,
    ) -> Result<(), UnpackerFailure>;
}

/// The layer that makes a task fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The layer with this blob cannot be used.
    Layer(Digest),
    /// The layer file of this blob is damaged.
    Index(Digest),
}

/// The failure of an unpacker. It shows as its cause does.
#[derive(Debug)]
pub struct UnpackerFailure {
    /// The layer that is to blame, if one is.
    pub fault: Option<Fault>,
    /// The reason.
    pub source: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for UnpackerFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for UnpackerFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}
