//! Failures of a call as the messages that clients get.

use a3s_box_proto::control::StartFailure;
use a3s_box_proto::process::{Failed, FailureKind};
use prost::Message;
use tonic::{Code, Status};

use crate::kmsg;
use crate::launch::LaunchError;
use crate::plan::PlanError;

/// Maximum length of the text of a failure in bytes, as the service documents it.
const MESSAGE_BYTES: usize = 4096;

/// Maximum length of the text in a gRPC status, which is a header. The details have all of it.
const STATUS_BYTES: usize = 512;

/// Makes a failure, and shortens its text to the limit.
pub(super) fn failed(kind: FailureKind, message: impl Into<String>) -> Failed {
    let mut message = message.into();
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
    Failed { kind: kind.into(), message }
}

/// Returns the failure of a request that breaks the documentation of the service.
pub(super) fn invalid(message: impl Into<String>) -> Failed {
    failed(FailureKind::InvalidRequest, message)
}

/// Returns the failure for an id that no process has.
pub(super) fn no_such_process(id: &str) -> Failed {
    failed(FailureKind::NoSuchProcess, format!("no process has the id `{id}`"))
}

/// Returns the failure of a call that needs a process which has not ended.
pub(super) fn ended(id: &str) -> Failed {
    failed(FailureKind::Ended, format!("process `{id}` has ended"))
}

/// Returns the failure of the guest to provide what a process needs.
pub(super) fn setup(error: &dyn std::error::Error) -> Failed {
    failed(FailureKind::Setup, kmsg::chain(error))
}

/// Returns the failure to make a command of a request.
pub(super) fn of_plan(error: &PlanError) -> Failed {
    let kind = match error {
        PlanError::NoProgram | PlanError::RelativeCwd { .. } | PlanError::Nul { .. } => {
            FailureKind::InvalidRequest
        }
        PlanError::Account(error) if error.is_unknown() => FailureKind::NoSuchUser,
        PlanError::Program(error) => of_program(error.reason()),
        PlanError::MakeCwd { .. } | PlanError::Account(_) => FailureKind::Setup,
    };
    failed(kind, kmsg::chain(error))
}

/// Returns the failure to execute a command.
pub(super) fn of_launch(error: &LaunchError) -> Failed {
    failed(of_program(error.reason()), kmsg::chain(error))
}

fn of_program(reason: StartFailure) -> FailureKind {
    match reason {
        StartFailure::NotFound => FailureKind::NotFound,
        StartFailure::NotExecutable => FailureKind::NotExecutable,
        StartFailure::Setup | StartFailure::Unspecified => FailureKind::Setup,
    }
}

/// Returns the gRPC status of a failure, whose details are the failure itself.
pub(super) fn status(failure: &Failed) -> Status {
    let code = match failure.kind() {
        FailureKind::NoSuchProcess
        | FailureKind::NotFound
        | FailureKind::NotExecutable
        | FailureKind::NoSuchUser => Code::NotFound,
        FailureKind::TooManyProcesses => Code::ResourceExhausted,
        FailureKind::InvalidRequest => Code::InvalidArgument,
        FailureKind::Ended => Code::FailedPrecondition,
        FailureKind::Setup | FailureKind::Unspecified => Code::Internal,
    };
    let text = &failure.message[..failure.message.floor_char_boundary(STATUS_BYTES)];
    Status::with_details(code, text, failure.encode_to_vec().into())
}
