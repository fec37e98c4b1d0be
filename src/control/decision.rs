//! A decision of a part of the control thread, which the loop carries out.

use std::time::Duration;

use a3s_box_core::event::EventKind;
use a3s_box_proto::control::{Drained, shim_message};

use super::deadlines::Due;
use crate::report::log::Phase;

/// One step that the loop carries out. The steps of a list are carried out in its order.
#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    /// Emits an event.
    Emit(EventKind),
    /// Emits the events that are held back, because the next event must come after them.
    EmitHeldBack,
    /// Sends a message to the guest.
    Send(shim_message::Message),
    /// Sets a deadline, and replaces an earlier one of its kind.
    Arm(Due, Duration),
    /// Removes deadlines.
    Disarm(&'static [Due]),
    /// Enters the next phase of the log.
    Enter(Phase),
    /// Reports to the service manager that the box is ready.
    ReportReady,
    /// Reports the health of the box to the service manager.
    ReportStatus(&'static str),
    /// Resets the watchdog of the service manager.
    ResetWatchdog,
    /// Starts to gather the figures of a `metrics` event, if these are wanted.
    GatherMetrics,
    /// Reports to the log and to the service manager that the box is stopping, and may take this
    /// long.
    AnnounceStop(Duration),
    /// Waits until this much output of the guest has arrived, then lets the guest reboot.
    AwaitOutput(Drained),
    /// Ends health checks and the liveness probe.
    EndWatch,
    /// The box has ended.
    End,
}
