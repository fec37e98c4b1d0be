//! [`ExecError`]: the errors of processes in a box.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use a3s_box_proto::process::{Failed, FailureKind};
use tonic::Status;

/// Why a call to the processes of a box failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExecError {
    /// The box was not booted yet, or its id or `paths.state_dir` is not valid.
    #[error("the box was not booted yet")]
    NotBooted,
    /// Nothing listens on the socket: the box has not started or has ended, or `agent.exec` of its
    /// config is false.
    #[error("cannot connect to the box at `{}`: is it running, with `agent.exec`?", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Error of the connection.
        source: Arc<tonic::transport::Error>,
    },
    /// The guest refused the call.
    #[error("{message}")]
    Refused {
        /// What was missing or wrong.
        refusal: Refusal,
        /// The text of the guest. It may contain any characters.
        message: String,
    },
    /// The connection was lost, because the box has ended or the guest has closed it.
    #[error("the connection to the box was lost")]
    Lost {
        /// The cause, if one is known.
        #[source]
        source: Option<Arc<Status>>,
    },
    /// The guest sent what the service does not allow. The guest may be hostile.
    #[error("the box sent {found}, expected {expected}")]
    Protocol {
        /// What the guest sent.
        found: &'static str,
        /// What the service documents.
        expected: &'static str,
    },
}

/// Why the guest refused a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The program or its interpreter does not exist.
    NotFound,
    /// The program cannot be executed.
    NotExecutable,
    /// The guest has no such user or group.
    NoSuchUser,
    /// No process has this id.
    NoSuchProcess,
    /// The limit of 256 processes is reached.
    TooManyProcesses,
    /// A value is not valid, for example a relative working directory.
    Invalid,
    /// The guest could not provide what the process needs, for example its working directory.
    Setup,
    /// The process has ended already.
    Ended,
}

impl Refusal {
    /// Returns whether the process of the call has ended, so that there is nothing to end any more.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::NoSuchProcess)
    }
}

impl ExecError {
    /// Makes an error of a failure that the guest reported.
    pub(super) fn refused(failed: Failed) -> Self {
        let refusal = match failed.kind() {
            FailureKind::NotFound => Refusal::NotFound,
            FailureKind::NotExecutable => Refusal::NotExecutable,
            FailureKind::NoSuchUser => Refusal::NoSuchUser,
            FailureKind::NoSuchProcess => Refusal::NoSuchProcess,
            FailureKind::TooManyProcesses => Refusal::TooManyProcesses,
            FailureKind::InvalidRequest => Refusal::Invalid,
            FailureKind::Ended => Refusal::Ended,
            FailureKind::Setup | FailureKind::Unspecified => Refusal::Setup,
        };
        Self::Refused { refusal, message: failed.message }
    }

    /// Makes an error of a gRPC status. Its details are a failure, if the service has sent it.
    pub(super) fn of_status(status: Status) -> Self {
        if !status.details().is_empty()
            && let Ok(failed) = a3s_box_proto::decode::<Failed>(status.details())
        {
            return Self::refused(failed);
        }
        Self::Lost { source: Some(Arc::new(status)) }
    }

    /// Returns the error as that of a reader.
    pub(super) fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionReset, self)
    }
}
