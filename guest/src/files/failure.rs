//! [`FileError`]: why a call fails, and its form as a gRPC status.

use a3s_box_proto::files::{Failed, FailureKind};
use rustix::io::Errno;
use tonic::{Code, Status};

/// Maximum length of a message for people in bytes. Together with the longest path, a status fits
/// into the header list that HTTP/2 clients accept by default (16 KiB).
const MESSAGE_BYTES: usize = 1024;

/// Maximum length of a path in an error in bytes.
const PATH_BYTES: usize = 4096;

/// The reason why a call fails.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}", message = .0.message)]
pub(super) struct FileError(pub(super) Failed);

/// The result of an operation.
pub(super) type Outcome<T> = Result<T, FileError>;

impl FileError {
    /// Makes an error that has no errno.
    pub(super) fn new(kind: FailureKind, path: &[u8], message: &str) -> Self {
        let message = message[..message.floor_char_boundary(MESSAGE_BYTES)].to_owned();
        let path = path[..path.len().min(PATH_BYTES)].to_vec();
        Self(Failed { kind: kind.into(), path, message, errno: 0 })
    }

    /// Makes the error of a field that has a value which its documentation excludes.
    pub(super) fn invalid(path: &[u8], message: &str) -> Self {
        Self::new(FailureKind::InvalidRequest, path, message)
    }

    /// Makes the error of a call of the kernel.
    pub(super) fn system(action: &str, path: &[u8], errno: Errno) -> Self {
        let message = format!("cannot {action} `{}`: {errno}", path.escape_ascii());
        let mut error = Self::new(kind_of(errno), path, &message);
        error.0.errno = errno.raw_os_error().unsigned_abs();
        error
    }

    /// Returns the gRPC status, whose details are the message [`Failed`].
    pub(super) fn into_status(self) -> Status {
        let code = code_of(self.0.kind());
        let details = a3s_box_proto::encode(&self.0);
        Status::with_details(code, self.0.message, details.into())
    }
}

/// Returns a function that makes the error of a call of the kernel.
pub(super) fn failed(action: &'static str, path: &[u8]) -> impl Fn(Errno) -> FileError {
    move |errno| FileError::system(action, path, errno)
}

/// Returns the error of an I/O function of the standard library.
pub(super) fn io_failed(action: &str, path: &[u8], error: &std::io::Error) -> FileError {
    FileError::system(action, path, Errno::from_io_error(error).unwrap_or(Errno::IO))
}

/// Returns the error of an entry that cannot be unpacked.
pub(super) fn invalid(name: &[u8], message: &str) -> FileError {
    let message = format!("entry `{}`: {message}", name.escape_ascii());
    FileError::new(FailureKind::InvalidArchive, name, &message)
}

/// Returns the error of an archive that cannot be read.
pub(super) fn malformed(name: &[u8], error: &std::io::Error) -> FileError {
    FileError::new(FailureKind::InvalidArchive, name, &format!("malformed archive: {error}"))
}

fn kind_of(errno: Errno) -> FailureKind {
    match errno {
        Errno::NOENT => FailureKind::NotFound,
        Errno::ACCESS | Errno::PERM => FailureKind::PermissionDenied,
        Errno::NOTDIR => FailureKind::NotADirectory,
        Errno::ISDIR => FailureKind::IsADirectory,
        Errno::EXIST => FailureKind::Exists,
        Errno::NOTEMPTY => FailureKind::NotEmpty,
        Errno::NOSPC | Errno::DQUOT => FailureKind::NoSpace,
        Errno::NAMETOOLONG | Errno::FBIG => FailureKind::TooLong,
        Errno::LOOP => FailureKind::Link,
        Errno::ROFS => FailureKind::ReadOnly,
        Errno::BUSY | Errno::TXTBSY => FailureKind::Busy,
        Errno::XDEV => FailureKind::OtherFileSystem,
        Errno::INVAL => FailureKind::InvalidRequest,
        Errno::OPNOTSUPP | Errno::NOSYS => FailureKind::NotSupported,
        _ => FailureKind::Io,
    }
}

fn code_of(kind: FailureKind) -> Code {
    match kind {
        FailureKind::NotFound => Code::NotFound,
        FailureKind::PermissionDenied => Code::PermissionDenied,
        FailureKind::Exists => Code::AlreadyExists,
        FailureKind::NoSpace | FailureKind::TooManyCalls => Code::ResourceExhausted,
        FailureKind::InvalidRequest | FailureKind::InvalidArchive | FailureKind::TooLong => {
            Code::InvalidArgument
        }
        FailureKind::TimedOut => Code::DeadlineExceeded,
        FailureKind::Killed | FailureKind::Changed => Code::Aborted,
        FailureKind::NotSupported => Code::Unimplemented,
        FailureKind::Io | FailureKind::Unspecified => Code::Internal,
        _ => Code::FailedPrecondition,
    }
}
