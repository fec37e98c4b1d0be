//! The error of a layer.

use std::io;

use super::entry_error::EntryError;
use crate::image::digest::Digest;
use crate::layout::blob::BlobError;
use crate::tar::archive::ArchiveError;

/// A layer that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob is not what its descriptor says.
    #[error("the layer's blob cannot be used")]
    Blob(#[from] BlobError),
    /// The archive in the blob is not the one that the configuration means.
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
        /// Entries before the error.
        entries: u64,
        /// Name of the last entry before the error.
        last: String,
        /// What is wrong.
        source: ArchiveError,
    },
    /// An entry cannot be made.
    #[error("cannot unpack entry `{entry}`")]
    Entry {
        /// Name of the entry.
        entry: String,
        /// What is wrong.
        source: EntryError,
    },
    /// The layer costs too much.
    #[error("the layer exceeds the limit on {what}: expected at most {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// The system gives no more threads.
    #[error("cannot start the threads that unpack a layer")]
    Threads(#[source] io::Error),
    /// The progress function asked for the end.
    #[error("unpacking was cancelled")]
    Cancelled,
}

impl LayerError {
    /// Says whether a damaged blob could have caused the error.
    pub(super) fn may_be_damage(&self) -> bool {
        match self {
            Self::Archive { .. } => true,
            Self::Entry { source, .. } => !source.is_of_host(),
            Self::Blob(_)
            | Self::DiffId { .. }
            | Self::Limit { .. }
            | Self::Threads(_)
            | Self::Cancelled => false,
        }
    }
}
