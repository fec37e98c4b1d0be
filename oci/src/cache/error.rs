//! The error of the layer cache.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use a3s_box_sys::HostError;

use super::task::{Fault, UnpackerFailure};
use crate::block::error::BlockError;
use crate::host::trusted_path::StoreError;
use crate::image::digest::Digest;
use crate::unpack::error::LayerError;

/// A cache that cannot be used, or a layer that cannot be put into it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Other users could reach or replace a directory of the cache, or it cannot be opened.
    #[error("cannot use the cache directory")]
    Store(#[from] StoreError),
    /// A system call on the cache itself failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A layer in the cache is damaged, and cannot be unpacked again because boxes use it.
    #[error(
        "the cached layer `{}` is damaged and in use: stop the boxes that use it",
        path.display()
    )]
    Damaged {
        /// The layer's directory.
        path: PathBuf,
    },
    /// Another process has held the lock of content for too long, and may hang.
    #[error(
        "{holder} has held the lock `{}` for {} minutes: end it if it hangs, and start again",
        path.display(),
        waited.as_secs() / 60
    )]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// The process that has the lock.
        holder: Holder,
        /// Time for which this process has waited.
        waited: Duration,
    },
    /// The trees of layers cannot be read, or cannot be mounted to unpack a layer on top of them.
    #[error("cannot stack the layers up to `{layer}`")]
    Stack {
        /// Digest of the topmost layer's blob.
        layer: Digest,
        /// The host's reason.
        source: io::Error,
    },
    /// No block root can be made of the layers, although each of them is valid.
    #[error("cannot make the block root of the image")]
    Block(#[source] BlockError),
    /// The layer cannot be unpacked.
    #[error("cannot unpack layer `{layer}`")]
    Layer {
        /// Digest of the layer's blob.
        layer: Digest,
        /// The reason.
        source: LayerError,
    },
    /// What was made in the staging directory is not what was asked for.
    #[error(
        "`{}` was not made as it must be: the image may be an attack",
        path.display()
    )]
    Forged {
        /// The staging directory.
        path: PathBuf,
    },
    /// The process that works on the layer has failed.
    #[error(transparent)]
    Unpacker(#[from] UnpackerFailure),
    /// The progress function returned [`ControlFlow::Break`](std::ops::ControlFlow::Break).
    #[error("unpacking of layer `{layer}` was cancelled")]
    Cancelled {
        /// Digest of the layer's blob.
        layer: Digest,
    },
}

impl CacheError {
    /// Returns the layer that is to blame for the error.
    pub(crate) fn fault(&self) -> Option<Fault> {
        match self {
            Self::Layer { layer, .. } => Some(Fault::Layer(*layer)),
            Self::Block(BlockError::Index { layer, .. }) => Some(Fault::Index(*layer)),
            Self::Unpacker(failure) => failure.fault,
            _ => None,
        }
    }
}

/// The process that holds a lock, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The pid that the process has in its own pid namespace.
    pub pid: Option<u32>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}
