//! A stop, from the request to the end, step by step.
//!
//! ```text
//!   requested ──► guest signals the workload ──► guest kills every process ──► host ends the VM
//!        │                  │   stop.grace_ms, or a      │   5 s, or a             │
//!        │                  │   second request           │   third request         │
//!   before_start          signal                     guest_kill            host_deadline
//! ```

use a3s_box_core::event::{StopCause, StopReport, StopStep};

/// A stop that was asked for. Times are milliseconds since the shim started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StopProgress {
    pub(super) cause: StopCause,
    requested_ms: u64,
    signaled_ms: Option<u64>,
    killed_ms: Option<u64>,
    exited_ms: Option<u64>,
    by_host: bool,
}

impl StopProgress {
    pub(crate) fn new(cause: StopCause, now_ms: u64) -> Self {
        let (signaled_ms, killed_ms, exited_ms) = (None, None, None);
        Self { cause, requested_ms: now_ms, signaled_ms, killed_ms, exited_ms, by_host: false }
    }

    /// The guest was told to signal the workload.
    pub(super) fn signaled(&mut self, now_ms: u64) {
        self.signaled_ms = Some(now_ms);
    }

    /// The guest was told to kill every process.
    pub(super) fn killed(&mut self, now_ms: u64) {
        self.killed_ms = Some(now_ms);
    }

    /// Whether the guest was told to kill every process.
    pub(super) fn is_killing(&self) -> bool {
        self.killed_ms.is_some()
    }

    /// The guest reported the workload's end.
    pub(super) fn exited(&mut self, now_ms: u64) {
        self.exited_ms = Some(now_ms);
    }

    /// The VM did not end by itself.
    pub(super) fn ended_by_host(&mut self) {
        self.by_host = true;
    }

    pub(crate) fn report(&self) -> StopReport {
        let ended_by = match (self.signaled_ms, self.killed_ms) {
            (None, _) => StopStep::BeforeStart,
            _ if self.by_host && self.exited_ms.is_none() => StopStep::HostDeadline,
            (_, Some(_)) => StopStep::GuestKill,
            (_, None) => StopStep::Signal,
        };
        StopReport {
            cause: self.cause,
            ended_by,
            requested_ms: self.requested_ms,
            signaled_ms: self.signaled_ms,
            killed_ms: self.killed_ms,
            exited_ms: self.exited_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_that_was_needed_ended_the_box() {
        let mut stop = StopProgress::new(StopCause::Signal, 1);
        assert_eq!(stop.report().ended_by, StopStep::BeforeStart);
        stop.signaled(2);
        assert_eq!(stop.report().ended_by, StopStep::Signal);
        stop.killed(3);
        assert_eq!(stop.report().ended_by, StopStep::GuestKill);
        stop.ended_by_host();
        assert_eq!(stop.report().ended_by, StopStep::HostDeadline);
        stop.exited(4);
        let report = stop.report();
        assert_eq!(report.ended_by, StopStep::GuestKill, "the host only ended what had ended");
        let times = (report.requested_ms, report.signaled_ms, report.killed_ms, report.exited_ms);
        assert_eq!(times, (1, Some(2), Some(3), Some(4)));
    }
}
