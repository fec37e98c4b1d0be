//! [`UnpackerError`]: why the unpacker process failed.

use std::error::Error;
use std::fmt;
use std::process::ExitStatus;

use a3s_box_core::{ErrorCode, ErrorReport};
use a3s_box_sys::HostError;

/// Why the unpacker failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackerError {
    /// The unpacker reports an error.
    #[error(transparent)]
    Reported(#[from] Reported),
    #[error(
        "the unpacker has made a system call that it does not need: the image may be an attack"
    )]
    ForbiddenCall,
    #[error("the unpacker has ended without a result ({status})")]
    Ended { status: ExitStatus },
    #[error("the unpacker has not put all of the image into the cache")]
    Lost,
    #[error("the unpacker has sent a message that is not valid")]
    Message(#[source] serde_json::Error),
    #[error("the unpacker has sent a message that is too long: expected at most {limit} bytes")]
    LongMessage { limit: usize },
    #[error(transparent)]
    Host(#[from] HostError),
}

impl UnpackerError {
    /// Returns the stable name of the error.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Reported(Reported { code, .. }) => *code,
            Self::ForbiddenCall => ErrorCode::LayerInvalid,
            _ => ErrorCode::RootfsFailed,
        }
    }

    /// Returns what a user can do about the error, where that is known.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Reported(Reported { hint, .. }) => hint.clone(),
            Self::ForbiddenCall => Some(
                "if the image is trusted, the audit log of the host has the number of the call, and \
                 `confinement.seccomp` `log` allows it"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// An error of another process, with its causes.
#[derive(Debug)]
pub(crate) struct Reported {
    code: ErrorCode,
    hint: Option<String>,
    chain: Link,
}

/// One error of a chain.
#[derive(Debug)]
struct Link {
    message: String,
    cause: Option<Box<Link>>,
}

impl From<ErrorReport> for Reported {
    fn from(report: ErrorReport) -> Self {
        let ErrorReport { code, message, causes, hint, .. } = report;
        let link = |cause, message| Some(Box::new(Link { message, cause }));
        let cause = causes.into_iter().rev().fold(None, link);
        Self { code, hint, chain: Link { message, cause } }
    }
}

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.chain.fmt(f)
    }
}

impl Error for Reported {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.chain.source()
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Link {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_becomes_a_chain_of_the_same_errors() {
        let report = ErrorReport {
            code: ErrorCode::LayerInvalid,
            message: "a".to_owned(),
            causes: vec!["b".to_owned(), "c".to_owned()],
            hint: Some("h".to_owned()),
            retryable: false,
        };
        let error = UnpackerError::from(Reported::from(report.clone()));
        assert_eq!(ErrorReport::new(error.code(), &error).with_hint(error.hint()), report);
    }
}
