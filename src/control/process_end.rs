//! The last acts of the process: the exit record, the last events, and the exit status.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use a3s_box_core::ErrorReport;
use a3s_box_core::event::{EventKind, StopReport};

use crate::ending::Ending;
use crate::report::events::EventWriter;
use crate::state::dir::BoxCleanup;

/// Ends the process, once.
#[derive(Debug)]
pub(super) struct ProcessEnd {
    /// The status that the `_exit` hook ends the process with if this thread takes too long.
    exit_status: Arc<AtomicU8>,
    cleanup: BoxCleanup,
}

impl ProcessEnd {
    pub(super) fn new(exit_status: Arc<AtomicU8>, cleanup: BoxCleanup) -> Self {
        Self { exit_status, cleanup }
    }

    /// Writes the exit record and the last events, and ends the process. `stopped` is the event of
    /// the box's last state.
    pub(super) fn run(
        self,
        (ending, error, stop): (Ending, Option<ErrorReport>, Option<StopReport>),
        stopped: EventKind,
        events: &EventWriter,
    ) -> ! {
        // From here on, the `_exit` hook ends the process with this status even if a step hangs.
        self.exit_status.store(ending.exit_code, Ordering::Release);
        // A supervisor that has read `box.stopped` must find the exit record.
        self.cleanup.exit_file.publish(&ending, events.elapsed(), stop, error.as_ref());
        if let Some(error) = error {
            events.emit(EventKind::Error(error));
        }
        events.emit(stopped);
        events.emit(ending.into_event(events.elapsed(), stop));
        events.finish();
        self.cleanup.exit_file.settle();
        // The removal comes last, because the guest may have written a million files.
        self.cleanup.remove_transient();
        a3s_box_sys::exit::now(ending.exit_code)
    }
}
