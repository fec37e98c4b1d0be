//! Errors of a whole layer.

use std::io;

use super::entry_error::EntryError;
use super::zstd_stream::WindowError;
use crate::image::digest::Digest;
use crate::layout::blob::BlobError;
use crate::tar::archive::ArchiveError;

/// A layer that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob cannot be read, or its size or digest differs from the descriptor.
    #[error("the layer's blob cannot be used")]
    Blob(#[from] BlobError),
    /// The digest of the uncompressed archive differs from the diff ID in the configuration.
    #[error("DiffID mismatch: expected `{expected}`, found `{found}`")]
    DiffId {
        /// The `DiffID` in the image's configuration.
        expected: Digest,
        /// The digest of the archive.
        found: Digest,
    },
    /// The archive cannot be read.
    #[error("the archive is malformed after {entries} entries, the last of them `{last}`")]
    Archive {
        /// Number of entries before the error.
        entries: u64,
        /// Name of the last entry before the error.
        last: String,
        /// The error of the archive.
        source: ArchiveError,
    },
    /// An entry cannot be created.
    #[error("cannot unpack entry `{entry}`")]
    Entry {
        /// Name of the entry.
        entry: String,
        /// The error of the entry.
        source: EntryError,
    },
    /// The layer exceeds one of the limits.
    #[error("the layer exceeds the limit on {what}: expected at most {limit}")]
    Limit {
        /// The quantity that is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The layer was compressed with a larger zstd window than the limit.
    #[error("the layer cannot be decompressed")]
    Window(#[source] WindowError),
    /// The system refused to create a thread.
    #[error("cannot start the threads that unpack a layer")]
    Threads(#[source] io::Error),
    /// The progress function returned `Break`.
    #[error("unpacking was cancelled")]
    Cancelled,
}

impl LayerError {
    /// Returns whether a damaged blob could have caused the error.
    pub(super) fn could_be_damage(&self) -> bool {
        match self {
            Self::Archive { .. } | Self::Window(_) => true,
            // A damaged archive can still parse, and then have an entry that cannot be created.
            Self::Entry { source, .. } => !source.is_caused_by_host(),
            Self::Blob(_)
            | Self::DiffId { .. }
            | Self::Limit { .. }
            | Self::Threads(_)
            | Self::Cancelled => false,
        }
    }
}
