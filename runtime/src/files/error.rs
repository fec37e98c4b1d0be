//! [`FilesError`]: the errors of files in a box.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use a3s_box_oci::LayerError;
use a3s_box_proto::files::Failed;
use tonic::Status;

pub use a3s_box_proto::files::FailureKind as FileFailure;

/// Why a call to the files of a box failed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
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
    /// The guest reports that the call failed.
    #[error("{message}")]
    Failed {
        /// What was missing or wrong.
        failure: FileFailure,
        /// The text of the guest. It may contain any characters.
        message: String,
    },
    /// The connection was lost, because the box has ended or the guest has closed it.
    #[error("the connection to the box was lost")]
    Lost {
        /// The cause.
        source: Arc<Status>,
    },
    /// The guest sent what the service does not allow. The guest may be hostile.
    #[error("the box sent {found}, expected {expected}")]
    Protocol {
        /// What the guest sent.
        found: &'static str,
        /// What the service documents.
        expected: &'static str,
    },
    /// The guest has more than the caller's limit.
    #[error("the box has more than {limit} {what}: raise the limit, or take a part")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The archive of the guest was refused.
    #[error("cannot unpack the archive that the box sent")]
    Archive(#[from] LayerError),
    /// The host refused a call.
    #[error("cannot {action} `{}`", path.display())]
    Host {
        /// What was to be done.
        action: &'static str,
        /// The file of the host.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// The caller's reader or writer failed.
    #[error("cannot pass on the content of the file")]
    Stream(#[source] io::Error),
    /// The tokio runtime ended before the copy was complete.
    #[error("the copy was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

impl FilesError {
    /// Makes an error of a gRPC status. Its details are a failure, if the service has sent it.
    pub(super) fn of_status(status: Status) -> Self {
        if !status.details().is_empty()
            && let Ok(failed) = a3s_box_proto::decode::<Failed>(status.details())
        {
            return Self::Failed { failure: failed.kind(), message: failed.message };
        }
        Self::Lost { source: Arc::new(status) }
    }

    /// Returns the failure that the guest reports, if it is one.
    #[must_use]
    pub fn failure(&self) -> Option<FileFailure> {
        match self {
            Self::Failed { failure, .. } => Some(*failure),
            _ => None,
        }
    }

    /// Makes the error of an answer that the service does not document.
    pub(super) fn protocol(found: &'static str, expected: &'static str) -> Self {
        Self::Protocol { found, expected }
    }

    /// Returns a function that makes the error of a call of the host.
    pub(super) fn host(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Host { action, path, source }
    }
}
