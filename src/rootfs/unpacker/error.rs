//! [`UnpackerError`]: why the unpacker process failed.

use std::error::Error;
use std::fmt;
use std::process::ExitStatus;

use a3s_box_core::{ErrorCode, ErrorReport};
use a3s_box_oci::Fault;
use a3s_box_sys::HostError;

use crate::report::printable::printable;

/// Longest text of a report that is passed on, in characters. A path has up to 4096 bytes.
const TEXT_CHARS: usize = 8192;

/// Most causes of a report that are passed on.
const CAUSES: usize = 32;

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
    #[error("the unpacker has sent a message that is not valid")]
    Message(#[source] serde_json::Error),
    #[error("the unpacker has sent a message that is too long: expected at most {limit} bytes")]
    LongMessage { limit: usize },
    #[error("the unpacker was stopped")]
    Cancelled,
    #[error(transparent)]
    Host(#[from] HostError),
}

impl UnpackerError {
    /// Returns the stable name of the error.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            // The code comes from a process that a blob may have taken over.
            Self::Reported(Reported { code: ErrorCode::LayerInvalid, .. })
            | Self::ForbiddenCall => ErrorCode::LayerInvalid,
            _ => ErrorCode::RootfsFailed,
        }
    }

    /// Returns the layer that is to blame, if the unpacker reports one.
    pub(super) fn fault(&self) -> Option<Fault> {
        match self {
            Self::Reported(Reported { fault, .. }) => *fault,
            _ => None,
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
    fault: Option<Fault>,
    chain: Link,
}

/// One error of a chain.
#[derive(Debug)]
struct Link {
    message: String,
    cause: Option<Box<Link>>,
}

impl Reported {
    pub(super) fn new(report: ErrorReport, fault: Option<Fault>) -> Self {
        let ErrorReport { code, message, causes, hint, .. } = report;
        let shown = |text: String| printable(&text, TEXT_CHARS);
        let link = |cause, message| Some(Box::new(Link { message, cause }));
        let cause = causes.into_iter().take(CAUSES).map(shown).rev().fold(None, link);
        Self { code, hint: hint.map(shown), fault, chain: Link { message: shown(message), cause } }
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
        let error = UnpackerError::from(Reported::new(report.clone(), None));
        assert_eq!(ErrorReport::new(error.code(), &error).with_hint(error.hint()), report);
    }

    #[test]
    fn report_of_a_process_that_was_taken_over_is_bounded_and_has_no_other_code() {
        let long = "\u{1b}[2J".repeat(TEXT_CHARS);
        let report = ErrorReport {
            code: ErrorCode::IdInUse,
            message: long.clone(),
            causes: vec![long.clone(); 2 * CAUSES],
            hint: Some(long),
            retryable: true,
        };
        let error = UnpackerError::from(Reported::new(report, None));
        let shown = ErrorReport::new(error.code(), &error).with_hint(error.hint());
        assert_eq!((shown.code, shown.causes.len()), (ErrorCode::RootfsFailed, CAUSES));
        for text in shown.causes.iter().chain([&shown.message]).chain(&shown.hint) {
            assert!(text.chars().count() == TEXT_CHARS && !text.contains('\u{1b}'));
        }
    }
}
