//! What is known about a box: written by its follower, watched by its manager.

use std::fmt;

use a3s_box_core::event::StopReason;
use a3s_box_core::{BoxState, ErrorReport};

/// How a box ended, as its `box.stopped` event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it ended.
    pub reason: StopReason,
    /// Exit status of the shim (see [`exit`](a3s_box_core::exit)); absent when a signal ended the
    /// shim, or when the box never ran.
    pub exit_code: Option<u8>,
    /// Signal that ended the workload, or the shim itself.
    pub signal: Option<u8>,
}

impl Outcome {
    /// Of a box that was destroyed before it was booted.
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

/// The end of a box.
#[derive(Clone, Debug)]
pub(crate) struct FinalStatus {
    pub(crate) outcome: Outcome,
    /// The last `error` event.
    pub(crate) report: Option<ErrorReport>,
}

/// What is known about a box now.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) state: BoxState,
    /// Whether the shim ever said that the box is ready.
    pub(crate) was_ready: bool,
    /// Set when the shim was reaped and every observer has seen `box.stopped`.
    pub(crate) final_status: Option<FinalStatus>,
}

impl Status {
    pub(crate) const CREATED: Self =
        Self { state: BoxState::Created, was_ready: false, final_status: None };

    /// Takes over what the shim or the agent says. Stopped is the follower's to say, once the shim
    /// was reaped, and is final; nothing goes back to Created.
    pub(crate) fn hear(&mut self, state: BoxState) {
        let is_running = matches!(state, BoxState::Ready | BoxState::Busy | BoxState::Compacting);
        if is_running && self.state != BoxState::Stopped {
            self.state = state;
        }
    }
}
