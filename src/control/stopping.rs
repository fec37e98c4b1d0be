//! The way from the first sign of the end to the end of the VM.
//!
//! ```text
//!  running ── trigger ──► stopping ── grace over, or a second request ──► killing
//!     │                      │                                              │
//!     │                      │ report                                report   │ 5 s, or a third request
//!     └─────── report ───────┴──────────► shutting down ◄───────────────────┘
//!                                               │ libkrun ends, or 20 s        │
//!                                               └────────────► ended ◄─────────┘
//! ```
//!
//! Any error of the shim, and the end of the VM, lead to *ended* at once.

use std::time::Duration;

use a3s_box_core::event::{EventKind, StopReport};
use a3s_box_core::{ErrorCode, ErrorReport};
use a3s_box_proto::control::{Drained, Kill, Stop as StopMessage, shim_message};

use super::deadlines::Due;
use super::decision::Decision;
use super::stop_progress::StopProgress;
use super::verdict::{Facts, Report, StopTrigger, failure};
use crate::ending::Ending;
use crate::host::process::StopRequest;
use crate::spec::StopSignal;

/// From the workload's end to the end of the VM. The guest kills the processes that are left,
/// drains its output (5 s at most), waits for the acknowledgement (5 s at most), syncs and reboots.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// From the guest's last message, or the loss of its connection, to the end of the VM.
pub(super) const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that a stop may take beyond its grace period: the sum of the bounds here, with a margin.
const STOP_MARGIN: Duration = Duration::from_secs(40);

/// The stop of one box, and the facts that decide its ending.
#[derive(Debug)]
pub(super) struct Stopping {
    signal: StopSignal,
    grace: Duration,
    facts: Facts,
    progress: Option<StopProgress>,
}

impl Stopping {
    /// Describes a running box, whose workload gets `signal` first, and has `grace` to end by it.
    pub(super) fn new(signal: StopSignal, grace: Duration) -> Self {
        Self { signal, grace, facts: Facts::default(), progress: None }
    }

    /// Whether the guest has reported the end of the workload.
    pub(super) fn has_report(&self) -> bool {
        self.facts.report.is_some()
    }

    /// Takes a stop request. The second one ends the grace period, the third one ends the VM.
    pub(super) fn requested(
        &mut self,
        request: StopRequest,
        has_started: bool,
        now_ms: u64,
    ) -> Vec<Decision> {
        match &mut self.progress {
            None => self.trigger(StopTrigger::Request(request), has_started, now_ms),
            // The parent's death is not a second stop request: no person or program asked again.
            Some(_) if request == StopRequest::ParentDied => Vec::new(),
            // The guest was asked to kill its processes already, so the host ends the VM.
            Some(progress) if progress.is_killing() => {
                progress.ended_by_host();
                vec![Decision::End]
            }
            Some(_) => self.kill(now_ms),
        }
    }

    /// Begins the stop, unless it has begun, or the workload has ended. Without a workload, the box
    /// ends at once.
    pub(super) fn trigger(
        &mut self,
        trigger: StopTrigger,
        has_started: bool,
        now_ms: u64,
    ) -> Vec<Decision> {
        if self.has_report() || self.progress.is_some() {
            return Vec::new();
        }
        self.facts.stop = Some(trigger);
        let cause = trigger.cause();
        let progress = self.progress.insert(StopProgress::new(cause, now_ms));
        let mut decisions = vec![
            Decision::AnnounceStop(self.grace + STOP_MARGIN),
            Decision::Emit(EventKind::StopRequested {
                cause,
                signal: self.signal.to_string(),
                grace_ms: u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX),
            }),
        ];
        // Without a workload there is no process that a signal could reach.
        if !has_started {
            decisions.push(Decision::End);
            return decisions;
        }
        progress.signaled(now_ms);
        let signal = u32::from(self.signal.number());
        decisions.extend([
            // From here on the grace period is the only deadline of a running workload.
            Decision::Disarm(&[Due::Boot, Due::Timeout]),
            Decision::Send(shim_message::Message::Stop(StopMessage { signal })),
            Decision::Arm(Due::Grace, self.grace),
        ]);
        decisions
    }

    /// Has the guest kill all its processes, unless the workload has ended.
    pub(super) fn kill(&mut self, now_ms: u64) -> Vec<Decision> {
        if self.has_report() {
            return Vec::new();
        }
        if let Some(progress) = &mut self.progress {
            progress.killed(now_ms);
        }
        vec![
            Decision::Disarm(&[Due::Grace]),
            Decision::Emit(EventKind::StopKilled {}),
            Decision::Send(shim_message::Message::Kill(Kill {})),
            // SIGKILL cannot be delayed by the workload, so only a lost guest needs longer.
            Decision::Arm(Due::GiveUp, LAST_WORD_TIMEOUT),
        ]
    }

    /// Takes the guest's report about the end of the workload. Later reports are ignored.
    pub(super) fn reported(&mut self, report: Report, now_ms: u64) -> Vec<Decision> {
        if self.has_report() {
            return Vec::new();
        }
        let mut decisions = Vec::new();
        let (exit_code, signal) = match &report {
            Report::Exited(code) => (Some(*code), None),
            Report::Signaled(signal) => (None, Some(*signal)),
            Report::NotStarted { .. } => (None, None),
        };
        // A workload that was not started has no end. `error` reports it instead.
        if exit_code.is_some() || signal.is_some() {
            decisions.push(Decision::EmitHeldBack);
            decisions.push(Decision::Emit(EventKind::GuestExited { exit_code, signal }));
        }
        if let Some(progress) = &mut self.progress {
            progress.exited(now_ms);
        }
        decisions.extend([
            Decision::EndWatch,
            Decision::Disarm(&[Due::Boot, Due::Timeout, Due::Grace, Due::Metrics]),
            Decision::Arm(Due::GiveUp, SHUTDOWN_TIMEOUT),
        ]);
        if matches!(report, Report::NotStarted { .. }) {
            // Nothing ran, so no output is on its way.
            decisions.push(Decision::AwaitOutput(Drained::default()));
        }
        self.facts.report = Some(report);
        decisions
    }

    /// Ends a VM that did not end by itself.
    pub(super) fn give_up(&mut self) -> Vec<Decision> {
        if let Some(progress) = &mut self.progress {
            progress.ended_by_host();
        }
        let message = "the virtual machine did not end by itself and was ended";
        self.failed(failure(ErrorCode::ShutdownTimeout, message))
    }

    /// Ends the box with `error`, unless an earlier error is known.
    pub(super) fn failed(&mut self, error: ErrorReport) -> Vec<Decision> {
        self.note(error);
        vec![Decision::End]
    }

    /// Keeps the error of a guest that is about to end. The first error counts.
    pub(super) fn note(&mut self, error: ErrorReport) {
        self.facts.failure.get_or_insert(error);
    }

    /// Keeps the error of a guest of another protocol, which explains any earlier error.
    pub(super) fn replace_error(&mut self, error: ErrorReport) {
        self.facts.failure = Some(error);
    }

    /// Ends the box, because libkrun has ended the VM with `code`.
    pub(super) fn vm_exited(&mut self, code: i32) -> Vec<Decision> {
        self.facts.libkrun = Some(code);
        vec![Decision::End]
    }

    /// Returns how the box ended, its error, and how its stop went.
    pub(super) fn verdict(&self) -> (Ending, Option<ErrorReport>, Option<StopReport>) {
        let (ending, error) = self.facts.verdict();
        (ending, error, self.progress.as_ref().map(StopProgress::report))
    }
}

#[cfg(test)]
mod tests {
    use a3s_box_core::event::{StopCause, StopStep};

    use nix::sys::signal::Signal;

    use super::*;

    const GRACE: Duration = Duration::from_secs(10);
    const SIGTERM: StopRequest = StopRequest::Signal(Signal::SIGTERM);

    fn stopping() -> Stopping {
        Stopping::new(Signal::SIGINT.into(), GRACE)
    }

    fn ended_by(stopping: &Stopping) -> StopStep {
        let (_, _, stop) = stopping.verdict();
        stop.unwrap().ended_by
    }

    #[test]
    fn first_request_signals_the_second_kills_and_the_third_ends_the_vm() {
        let mut stopping = stopping();
        let signal = StopMessage { signal: 2 };
        let expected = [
            Decision::AnnounceStop(GRACE + STOP_MARGIN),
            Decision::Emit(EventKind::StopRequested {
                cause: StopCause::Signal,
                signal: "SIGINT".into(),
                grace_ms: 10_000,
            }),
            Decision::Disarm(&[Due::Boot, Due::Timeout]),
            Decision::Send(shim_message::Message::Stop(signal)),
            Decision::Arm(Due::Grace, GRACE),
        ];
        assert_eq!(stopping.requested(SIGTERM, true, 1), expected);
        assert_eq!(ended_by(&stopping), StopStep::Signal);
        let expected = [
            Decision::Disarm(&[Due::Grace]),
            Decision::Emit(EventKind::StopKilled {}),
            Decision::Send(shim_message::Message::Kill(Kill {})),
            Decision::Arm(Due::GiveUp, LAST_WORD_TIMEOUT),
        ];
        assert_eq!(stopping.requested(SIGTERM, true, 2), expected);
        assert_eq!(ended_by(&stopping), StopStep::GuestKill);
        assert_eq!(stopping.requested(SIGTERM, true, 3), [Decision::End]);
        assert_eq!(ended_by(&stopping), StopStep::HostDeadline);
    }

    #[test]
    fn death_of_the_parent_starts_a_stop_and_does_not_escalate_one() {
        let mut stopping = stopping();
        assert!(!stopping.requested(StopRequest::ParentDied, true, 1).is_empty());
        assert_eq!(stopping.requested(StopRequest::ParentDied, true, 2), []);
        assert_eq!(ended_by(&stopping), StopStep::Signal);
    }

    #[test]
    fn stop_before_the_workload_runs_ends_the_box() {
        let mut stopping = stopping();
        let decisions = stopping.requested(SIGTERM, false, 1);
        assert_eq!(decisions.last(), Some(&Decision::End));
        assert!(!decisions.iter().any(|decision| matches!(decision, Decision::Send(_))));
        assert_eq!(ended_by(&stopping), StopStep::BeforeStart);
    }

    #[test]
    fn report_comes_after_held_back_events_and_only_the_first_one_counts() {
        let mut stopping = stopping();
        let exited = EventKind::GuestExited { exit_code: Some(3), signal: None };
        let expected = [
            Decision::EmitHeldBack,
            Decision::Emit(exited),
            Decision::EndWatch,
            Decision::Disarm(&[Due::Boot, Due::Timeout, Due::Grace, Due::Metrics]),
            Decision::Arm(Due::GiveUp, SHUTDOWN_TIMEOUT),
        ];
        assert_eq!(stopping.reported(Report::Exited(3), 1), expected);
        assert_eq!(stopping.reported(Report::Exited(4), 2), []);
        assert_eq!(stopping.kill(3), [], "nothing is left to kill");
        assert_eq!(stopping.requested(SIGTERM, true, 4), [], "nothing is left to stop");
        let (ending, error, stop) = stopping.verdict();
        assert_eq!((ending.exit_code, error, stop), (3, None, None));
    }

    #[test]
    fn workload_that_was_not_started_has_no_exit_event() {
        let reason = a3s_box_proto::control::StartFailure::NotFound;
        let report = Report::NotStarted { reason, message: "m".into() };
        let decisions = stopping().reported(report, 1);
        assert_eq!(decisions.first(), Some(&Decision::EndWatch));
        assert_eq!(decisions.last(), Some(&Decision::AwaitOutput(Drained::default())));
    }

    #[test]
    fn first_error_is_the_one_that_is_reported() {
        let mut stopping = stopping();
        stopping.note(failure(ErrorCode::GuestProtocol, "first"));
        assert_eq!(stopping.give_up(), [Decision::End]);
        let (_, error, _) = stopping.verdict();
        assert_eq!(error.unwrap().code, ErrorCode::GuestProtocol);
    }
}
