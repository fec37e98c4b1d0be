//! How the box ended: the one place where that is decided.
//!
//! | known | reason | exit status |
//! |---|---|---|
//! | a failure that the shim found, and no report | failed | 125 |
//! | the timeout ran out before a report came | timeout | 124 |
//! | the guest reported the workload's end | exited, or stopped if asked to | its code, or 128 + signal |
//! | the guest reported that it could not start it | failed | 126, 127 or 125 |
//! | it was stopped because it was unhealthy | unhealthy | 125 |
//! | a stop was asked for, and no report | stopped | 128 + the signal that asked |
//! | only libkrun's code, whatever it is | failed | 125 |
//!
//! libkrun's code is never believed: a guest's panic and a reset give 0, and any process of the
//! guest can set it.

use a3s_box_core::event::{StopCause, StopReason};
use a3s_box_core::{ErrorCode, ErrorReport, exit};
use a3s_box_proto::control::exited::Status;
use a3s_box_proto::control::guest_message::Message;
use a3s_box_proto::control::{Exited, StartFailure};

use crate::ending::Ending;
use crate::host::process::StopRequest;
use crate::report::printable::{MESSAGE_CHARS, printable};

/// What the guest said about the end of the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    Exited(u8),
    Signaled(u8),
    NotStarted { reason: StartFailure, message: String },
}

impl Report {
    /// Returns the report of a message about the end of the workload. Other messages have none, nor
    /// has an end without a status. Numbers that no status or signal has become 255.
    pub(super) fn from_guest(message: Message) -> Option<Self> {
        let byte = |number| u8::try_from(number).unwrap_or(u8::MAX);
        match message {
            Message::StartFailed(failed) => Some(Self::NotStarted {
                reason: failed.reason(),
                message: printable(&failed.message, MESSAGE_CHARS),
            }),
            Message::Exited(Exited { status: Some(Status::ExitCode(code)) }) => {
                Some(Self::Exited(byte(code)))
            }
            Message::Exited(Exited { status: Some(Status::Signal(signal)) }) => {
                Some(Self::Signaled(byte(signal)))
            }
            _ => None,
        }
    }
}

/// Why the shim stops the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopTrigger {
    Request(StopRequest),
    Timeout,
    Unhealthy,
}

impl StopTrigger {
    /// How events tell it.
    pub(super) fn cause(self) -> StopCause {
        match self {
            Self::Request(request) => request.cause(),
            Self::Timeout => StopCause::Timeout,
            Self::Unhealthy => StopCause::Unhealthy,
        }
    }
}

/// Everything that is known at the end.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) report: Option<Report>,
    pub(super) stop: Option<StopTrigger>,
    pub(super) failure: Option<ErrorReport>,
    /// libkrun's exit code, when it ended the VM.
    pub(super) libkrun: Option<i32>,
}

impl Facts {
    /// Decides.
    pub(super) fn verdict(&self) -> (Ending, Option<ErrorReport>) {
        match (self.stop, &self.report) {
            // A trigger counts only if it came before the report (`Stopping::trigger`), so a report
            // beside these two is the effect of the stop and not its reason.
            (Some(StopTrigger::Timeout), _) => (Ending::timed_out(), None),
            (Some(StopTrigger::Unhealthy), _) => {
                let ending = ending(StopReason::Unhealthy, exit::FAILED, None);
                (ending, Some(self.failure.clone().unwrap_or_else(unhealthy)))
            }
            // A report outranks a failure, because the workload is over whatever happened later.
            (_, Some(report)) => self.reported(report),
            (Some(StopTrigger::Request(request)), None) if self.failure.is_none() => {
                (Ending::stopped(request), None)
            }
            (_, None) => {
                let failure = self.failure.clone().unwrap_or_else(|| self.lost());
                (ending(StopReason::Failed, exit::FAILED, None), Some(failure))
            }
        }
    }

    fn reported(&self, report: &Report) -> (Ending, Option<ErrorReport>) {
        let reason = if self.stop.is_some() { StopReason::Stopped } else { StopReason::Exited };
        match report {
            Report::Exited(code) => (ending(reason, *code, None), None),
            Report::Signaled(signal) => {
                (ending(reason, exit::for_signal(*signal), Some(*signal)), None)
            }
            Report::NotStarted { reason, message } => {
                let (code, status) = match reason {
                    StartFailure::NotFound => (ErrorCode::WorkloadNotFound, exit::NOT_FOUND),
                    StartFailure::NotExecutable => {
                        (ErrorCode::WorkloadNotExecutable, exit::NOT_EXECUTABLE)
                    }
                    // A newer guest may send a reason that this version does not know.
                    StartFailure::Setup | StartFailure::Unspecified => {
                        (ErrorCode::WorkloadSetup, exit::FAILED)
                    }
                };
                (ending(StopReason::Failed, status, None), Some(failure(code, message)))
            }
        }
    }

    fn lost(&self) -> ErrorReport {
        match self.libkrun {
            None => failure(ErrorCode::Internal, "the box ended without a cause"),
            Some(0) => failure(
                ErrorCode::GuestLost,
                "the guest ended without a report: its kernel panicked or was reset, or its init was lost",
            ),
            Some(code) => failure(
                ErrorCode::VmFailed,
                &format!("the virtual machine ended with code {code}, without a report of the guest"),
            ),
        }
        .retryable()
    }
}

fn unhealthy() -> ErrorReport {
    failure(ErrorCode::Unhealthy, "the box was stopped because it was unhealthy").retryable()
}

/// An error without causes.
pub(super) fn failure(code: ErrorCode, message: &str) -> ErrorReport {
    ErrorReport {
        code,
        message: message.to_owned(),
        causes: Vec::new(),
        hint: None,
        retryable: false,
    }
}

fn ending(reason: StopReason, exit_code: u8, signal: Option<u8>) -> Ending {
    Ending { reason, exit_code, signal }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    fn check(facts: &Facts, expected: Ending, error: Option<ErrorCode>) {
        let (found, report) = facts.verdict();
        assert_eq!((found, report.map(|report| report.code)), (expected, error), "{facts:?}");
    }

    #[test]
    fn the_guests_report_is_the_truth_whatever_libkrun_says() {
        for libkrun in [None, Some(0), Some(1), Some(42)] {
            let facts = |report| Facts { report: Some(report), libkrun, ..Facts::default() };
            for code in [0, 1, 7, 255] {
                let expected = ending(StopReason::Exited, code, None);
                check(&facts(Report::Exited(code)), expected, None);
            }
            check(&facts(Report::Signaled(9)), ending(StopReason::Exited, 137, Some(9)), None);
        }
    }

    #[test]
    fn a_workload_that_could_not_start_has_its_own_codes() {
        let cases = [
            (StartFailure::NotFound, 127, ErrorCode::WorkloadNotFound),
            (StartFailure::NotExecutable, 126, ErrorCode::WorkloadNotExecutable),
            (StartFailure::Setup, 125, ErrorCode::WorkloadSetup),
        ];
        for (reason, status, code) in cases {
            let report = Some(Report::NotStarted { reason, message: "m".into() });
            let facts = Facts { report, libkrun: Some(0), ..Facts::default() };
            check(&facts, ending(StopReason::Failed, status, None), Some(code));
        }
    }

    #[test]
    fn without_a_report_nothing_of_libkruns_is_a_success() {
        for (libkrun, code) in [
            (Some(0), ErrorCode::GuestLost),
            (Some(1), ErrorCode::VmFailed),
            (Some(7), ErrorCode::VmFailed),
        ] {
            let facts = Facts { libkrun, ..Facts::default() };
            check(&facts, ending(StopReason::Failed, 125, None), Some(code));
        }
    }

    #[test]
    fn a_stop_is_told_apart_from_an_end_by_itself() {
        let stop = Some(StopTrigger::Request(StopRequest::Signal(Signal::SIGTERM)));
        let facts = Facts { stop, libkrun: Some(0), ..Facts::default() };
        check(&facts, ending(StopReason::Stopped, 143, Some(15)), None);
        let facts = Facts { stop, report: Some(Report::Signaled(9)), ..Facts::default() };
        check(&facts, ending(StopReason::Stopped, 137, Some(9)), None);
        let facts = Facts { stop, report: Some(Report::Exited(3)), ..Facts::default() };
        check(&facts, ending(StopReason::Stopped, 3, None), None);
    }

    #[test]
    fn a_timeout_gives_its_own_status_even_when_the_workload_then_reports() {
        for report in [None, Some(Report::Signaled(15)), Some(Report::Exited(0))] {
            let facts = Facts { stop: Some(StopTrigger::Timeout), report, ..Facts::default() };
            check(&facts, ending(StopReason::Timeout, 124, None), None);
        }
    }

    #[test]
    fn a_failure_that_the_shim_found_is_told_with_its_own_code() {
        let facts = Facts {
            failure: Some(failure(ErrorCode::BootTimeout, "m")),
            libkrun: Some(0),
            ..Facts::default()
        };
        check(&facts, ending(StopReason::Failed, 125, None), Some(ErrorCode::BootTimeout));
    }
}
