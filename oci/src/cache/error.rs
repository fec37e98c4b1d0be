//! The error of the layer cache.

use std::io;
use std::path::PathBuf;

use a3s_box_sys::HostError;

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
    /// The progress function returned [`ControlFlow::Break`](std::ops::ControlFlow::Break).
    #[error("unpacking of layer `{layer}` was cancelled")]
    Cancelled {
        /// Digest of the layer's blob.
        layer: Digest,
    },
}
