//! [`Ending`]: how a box ended, as the event `box.stopped`, the exit record and the exit status
//! report it.

use std::time::Duration;

use a3s_box_core::event::{EventKind, StopReason, StopReport};
use a3s_box_core::exit;

use crate::host::process::StopRequest;

/// How a box ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) reason: StopReason,
    /// Exit status of the shim.
    pub(crate) exit_code: u8,
    /// Signal that ended the workload, or that requested the stop.
    pub(crate) signal: Option<u8>,
}

impl Ending {
    /// Returns the ending of a box that failed before its workload ran.
    pub(crate) fn failed() -> Self {
        Self { reason: StopReason::Failed, exit_code: exit::FAILED, signal: None }
    }

    /// Returns the ending of a box that was stopped by `request` without a report of its guest.
    pub(crate) fn stopped(request: StopRequest) -> Self {
        let number = request.signal_number();
        Self {
            reason: StopReason::Stopped,
            exit_code: exit::for_signal(number),
            // The death of the parent maps to an exit status, but no signal arrived.
            signal: matches!(request, StopRequest::Signal(_)).then_some(number),
        }
    }

    /// Returns the ending of a box that has reached `resources.timeout_ms`.
    pub(crate) fn timed_out() -> Self {
        Self { reason: StopReason::Timeout, exit_code: exit::TIMEOUT, signal: None }
    }

    /// Returns the event `box.stopped` of this ending.
    pub(crate) fn into_event(self, uptime: Duration, stop: Option<StopReport>) -> EventKind {
        EventKind::BoxStopped {
            reason: self.reason,
            exit_code: Some(self.exit_code),
            signal: self.signal,
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            stop,
        }
    }
}
