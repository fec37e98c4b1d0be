//! The error of a block root.

use a3s_box_erofs::{TreeError, WriteError};

use super::index::IndexError;
use super::root_tree::ApplyError;
use crate::host::text::shown_name;
use crate::image::digest::Digest;
use crate::unpack::entry_error::EntryError;
use crate::unpack::error::LayerError;
use crate::unpack::path::EntryPath;

/// An image of which no block root can be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The layer cannot be applied to the layers below it.
    #[error("cannot use layer `{layer}`")]
    Layer {
        /// Digest of the layer's blob.
        layer: Digest,
        /// The reason.
        source: LayerError,
    },
    /// The file of a layer is damaged.
    #[error("the file of layer `{layer}` is damaged")]
    Index {
        /// Digest of the layer's blob.
        layer: Digest,
        /// The damage.
        source: IndexError,
    },
    /// EROFS cannot represent an entry.
    #[error("cannot represent entry `{entry}` of layer `{layer}` in EROFS")]
    Tree {
        /// Digest of the layer's blob.
        layer: Digest,
        /// Name of the entry.
        entry: String,
        /// The reason.
        source: TreeError,
    },
    /// The empty tree of an image cannot be made.
    #[error("cannot start the tree of an image")]
    Root(#[source] TreeError),
    /// The tree of the image is too large.
    #[error("the tree of the image exceeds the limit on {what}: expected at most {limit}")]
    Limit {
        /// The quantity that is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The metadata image cannot be written.
    #[error("cannot write the metadata image of a block root")]
    Write(#[source] WriteError),
    /// The image has more layers with data than EROFS has numbers for devices.
    #[error("the image has too many layers: expected at most {limit} with files")]
    TooManyLayers {
        /// The limit.
        limit: u16,
    },
}

/// Converts the error of an entry with this path.
pub(super) fn apply_error(layer: Digest, path: &EntryPath, error: ApplyError) -> BlockError {
    let entry = || match path.split() {
        Some(_) => shown_name(path.as_bytes()),
        None => "/".to_owned(),
    };
    match error {
        ApplyError::Entry(source) => {
            BlockError::Layer { layer, source: LayerError::Entry { entry: entry(), source } }
        }
        ApplyError::Steps(source) => {
            let source = LayerError::Entry { entry: entry(), source: EntryError::Steps(source) };
            BlockError::Layer { layer, source }
        }
        ApplyError::Cancelled => BlockError::Layer { layer, source: LayerError::Cancelled },
        ApplyError::Tree(source) => BlockError::Tree { layer, entry: entry(), source },
        ApplyError::Limit { what, limit } => BlockError::Limit { what, limit },
    }
}
