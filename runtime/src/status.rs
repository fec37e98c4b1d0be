//! [`Status`]: the state of a box. The follower of the box writes it, and its manager watches it.

use std::fmt;

use a3s_box_core::event::StopReason;
use a3s_box_core::{BoxState, ErrorReport};

/// How a box ended, with the facts of its `box.stopped` event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why the box ended.
    pub reason: StopReason,
    /// Exit status of the shim, see [`exit`](a3s_box_core::exit). `None` if a signal ended the
    /// shim, if its wait status is not known, or if the box was never booted.
    pub exit_code: Option<u8>,
    /// Number of the signal that ended the workload, that requested the stop of a box without a
    /// report of its guest, or that ended the shim itself. `None` if no signal did.
    pub signal: Option<u8>,
}

impl Outcome {
    /// The outcome of a box that was destroyed before it was booted.
    pub(crate) const NEVER_RAN: Self =
        Self { reason: StopReason::Stopped, exit_code: None, signal: None };
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            StopReason::Exited => "exited",
            StopReason::Stopped => "stopped",
            StopReason::Timeout => "timeout",
            StopReason::Failed => "failed",
            StopReason::Unhealthy => "unhealthy",
            StopReason::Killed => "killed",
            // A reason of a later version of the contract.
            _ => "ended",
        };
        f.write_str(reason)?;
        if let Some(exit_code) = self.exit_code {
            write!(f, ", exit status {exit_code}")?;
        }
        if let Some(signal) = self.signal {
            write!(f, ", signal {signal}")?;
        }
        Ok(())
    }
}

/// The final part of a status, once the box has ended.
#[derive(Clone, Debug)]
pub(crate) struct FinalStatus {
    pub(crate) outcome: Outcome,
    /// Content of the last `error` event.
    pub(crate) report: Option<ErrorReport>,
}

/// The state of a box, as far as this process has observed it.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) state: BoxState,
    /// Whether the shim has ever reported the state Ready.
    pub(crate) was_ready: bool,
    /// `Some` once the shim is reaped and every observer has got `box.stopped`.
    pub(crate) final_status: Option<FinalStatus>,
}

impl Status {
    /// The status of a box that was not booted.
    pub(crate) const CREATED: Self =
        Self { state: BoxState::Created, was_ready: false, final_status: None };

    /// Sets a state that the shim or the agent has reported.
    ///
    /// Ignores Stopped, which only the follower sets once the shim is reaped and which is final,
    /// and Created, to which no box returns.
    pub(crate) fn update_state(&mut self, state: BoxState) {
        let is_running = matches!(state, BoxState::Ready | BoxState::Busy | BoxState::Compacting);
        if is_running && self.state != BoxState::Stopped {
            self.state = state;
        }
    }
}
