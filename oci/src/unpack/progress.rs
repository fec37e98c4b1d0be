//! Reports the progress of a layer to the caller, who can cancel the work.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::LayerError;

/// Longest time between two calls of the progress function, apart from the time of a single entry. A
/// stop request is heard by this function only.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);

/// Uncompressed bytes between two calls of the progress function. They take some milliseconds.
const REPORT_BYTES: u64 = 4 << 20;

/// Entries between two calls of the progress function. They take some milliseconds.
const REPORT_ENTRIES: u64 = 512;

/// Progress of the work on a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// Calls the progress function at least once in each interval of time, bytes or entries.
pub(crate) struct Meter<'a> {
    /// Time of the last call.
    last: Option<Instant>,
    next_bytes: u64,
    next_entries: u64,
    read_bytes: u64,
    size_bytes: u64,
    entries: u64,
    progress: &'a mut OnProgress<'a>,
}

impl<'a> Meter<'a> {
    /// Creates the meter of a blob of `size_bytes`.
    pub(crate) fn new(size_bytes: u64, progress: &'a mut OnProgress<'a>) -> Self {
        Self {
            last: None,
            next_bytes: 0,
            next_entries: 0,
            read_bytes: 0,
            size_bytes,
            entries: 0,
            progress,
        }
    }

    /// Creates the meter of a blob whose entries were all read.
    pub(super) fn at_end(size_bytes: u64, entries: u64, progress: &'a mut OnProgress<'a>) -> Self {
        Self { read_bytes: size_bytes, entries, ..Self::new(size_bytes, progress) }
    }

    /// Sets the progress, and reports it if an interval is over.
    pub(super) fn report(
        &mut self,
        read_bytes: u64,
        unpacked_bytes: u64,
        entries: u64,
    ) -> Result<(), LayerError> {
        (self.read_bytes, self.entries) = (read_bytes, entries);
        if unpacked_bytes < self.next_bytes && entries < self.next_entries {
            return self.beat();
        }
        self.next_bytes = unpacked_bytes + REPORT_BYTES;
        self.next_entries = entries + REPORT_ENTRIES;
        self.call()
    }

    /// Reports the progress again if the interval of time is over. Work that takes time without
    /// reading bytes or entries calls this for each step.
    pub(crate) fn beat(&mut self) -> Result<(), LayerError> {
        match self.last {
            Some(last) if last.elapsed() < REPORT_INTERVAL => Ok(()),
            _ => self.call(),
        }
    }

    fn call(&mut self) -> Result<(), LayerError> {
        self.last = Some(Instant::now());
        let Self { read_bytes, size_bytes, entries, .. } = *self;
        match (self.progress)(Progress::Unpacking { read_bytes, size_bytes, entries }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(LayerError::Cancelled),
        }
    }
}
