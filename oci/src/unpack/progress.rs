//! The calls of the progress function.

use std::ops::ControlFlow;

use super::error::LayerError;

/// Uncompressed bytes between two calls of the progress function: some milliseconds of work.
const REPORT_BYTES: u64 = 4 << 20;

/// Entries between two calls of the progress function: some milliseconds of work.
const REPORT_ENTRIES: u64 = 512;

/// How far the work on a layer has come.
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
        /// Entries that have been made.
        entries: u64,
    },
    /// The layer is complete and verified.
    Publishing,
    /// The layer is being unpacked once more, on top of those below it.
    OnTop,
}

/// Is told how far the work has come, and may end it.
pub(crate) type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// The calls of the progress function.
pub(super) struct Meter<'a> {
    size_bytes: u64,
    next_bytes: u64,
    next_entries: u64,
    progress: &'a mut OnProgress<'a>,
}

impl<'a> Meter<'a> {
    /// Starts the work on a blob of `size_bytes`.
    pub(super) fn new(size_bytes: u64, progress: &'a mut OnProgress<'a>) -> Self {
        Self { size_bytes, next_bytes: 0, next_entries: 0, progress }
    }

    pub(super) fn report(
        &mut self,
        read_bytes: u64,
        unpacked_bytes: u64,
        entries: u64,
    ) -> Result<(), LayerError> {
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
