//! Reports the progress of a layer to the caller, who can cancel the work.

use std::ops::ControlFlow;

use super::error::LayerError;

/// Uncompressed bytes between two calls of the progress function. They take some milliseconds.
const REPORT_BYTES: u64 = 4 << 20;

/// Entries between two calls of the progress function. They take some milliseconds.
const REPORT_ENTRIES: u64 = 512;

/// Progress of the work on a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The layer was in the cache.
    Cached,
    /// Another process is unpacking the same layer.
    Waiting,
    /// The layer is being unpacked.
    Unpacking {
        /// Bytes of the blob that have been read.
        read_bytes: u64,
        /// Size of the blob.
        size_bytes: u64,
        /// Number of entries that have been read.
        entries: u64,
    },
    /// The layer is complete and verified, and is being moved into the cache.
    Publishing,
    /// The layer is being unpacked again, on top of the layers below it.
    OnTop,
}

/// The progress function. It receives the progress, and cancels the work by returning `Break`.
pub(crate) type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// Calls the progress function at most once in each interval of bytes or entries.
pub(super) struct Meter<'a> {
    size_bytes: u64,
    next_bytes: u64,
    next_entries: u64,
    progress: &'a mut OnProgress<'a>,
}

impl<'a> Meter<'a> {
    /// Creates the meter of a blob of `size_bytes`.
    pub(super) fn new(size_bytes: u64, progress: &'a mut OnProgress<'a>) -> Self {
        Self { size_bytes, next_bytes: 0, next_entries: 0, progress }
    }

    pub(super) fn report(
        &mut self,
        read_bytes: u64,
        unpacked_bytes: u64,
        entries: u64,
    ) -> Result<(), LayerError> {
        // Entries count too, because a layer of empty files takes time for few bytes.
        if unpacked_bytes < self.next_bytes && entries < self.next_entries {
            return Ok(());
        }
        self.next_bytes = unpacked_bytes + REPORT_BYTES;
        self.next_entries = entries + REPORT_ENTRIES;
        match (self.progress)(Progress::Unpacking {
            read_bytes,
            size_bytes: self.size_bytes,
            entries,
        }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(LayerError::Cancelled),
        }
    }
}
