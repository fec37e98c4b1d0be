//! [`ConfigError`]: why a config is refused.

use serde_path_to_error::Segment;

use super::secret::{Unquoted, unquoted};

/// Why a config is refused.
///
/// Each error except for [`TooLarge`](Self::TooLarge) names the position, what was found and what
/// was expected. No error quotes anything below `process`, which contains the environment of the
/// workload and often secrets in its arguments.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The document is longer than [`MAX_CONFIG_BYTES`](super::MAX_CONFIG_BYTES).
    #[error("config is longer than {} bytes", super::MAX_CONFIG_BYTES)]
    TooLarge,
    /// The text is not JSON, or other text follows the document.
    #[error("config is not valid JSON at line {line}, column {column}: {message}")]
    Syntax {
        /// Number of the line, from 1.
        line: usize,
        /// Column in bytes, from 1; 0 if the line ended before its first byte.
        column: usize,
        /// The message of the parser.
        message: String,
    },
    /// A field has the wrong type or an unknown name, or its value is not one of the known names.
    #[error("{path}: {message}")]
    Shape {
        /// JSON path of the field, for example `mounts[1].type`.
        path: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A value has the right type, but is out of range or conflicts with another field.
    #[error("{path}: found {found}, expected {expected}")]
    Invalid {
        /// JSON path of the field.
        path: String,
        /// The value, or a description of it.
        found: String,
        /// Description of the accepted values.
        expected: String,
    },
    /// The config requests something that this version does not support yet.
    #[error("{path}: not supported yet: {what}")]
    Unsupported {
        /// JSON path of the field.
        path: String,
        /// What was requested.
        what: String,
    },
}

impl ConfigError {
    /// Makes the error [`Invalid`](Self::Invalid) of the field `path`.
    #[must_use]
    pub fn invalid(
        path: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Invalid { path: path.into(), found: found.into(), expected: expected.into() }
    }

    /// Makes the error [`Unsupported`](Self::Unsupported) of the field `path`.
    #[must_use]
    pub fn unsupported(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.into(), what: what.into() }
    }

    pub(super) fn syntax(error: &serde_json::Error) -> Self {
        Self::Syntax {
            line: error.line(),
            column: error.column(),
            message: without_position(&error.to_string()),
        }
    }

    /// Converts an error of the parser about the text `json`.
    pub(super) fn from_serde(
        error: &serde_path_to_error::Error<serde_json::Error>,
        json: &[u8],
    ) -> Self {
        // An error of the syntax has a line and a column, but its path is only where the parser
        // stopped.
        if !error.inner().is_data() {
            return Self::syntax(error.inner());
        }
        // serde also fills a struct from an array, by position. The path of an error in such an
        // array does not contain `env`, so it cannot show whether the value is a secret.
        let mut segments = error.path().iter();
        match (segments.next(), segments.next()) {
            (Some(Segment::Seq { .. }), _) => {
                return Self::invalid("config", "an array", "an object");
            }
            (Some(Segment::Map { key }), Some(Segment::Seq { .. })) if key == "process" => {
                return Self::invalid("process", "an array", "an object");
            }
            _ => {}
        }
        // serde quotes the value that it found.
        if let Some(Unquoted { path, found, expected }) = unquoted(error, json) {
            return Self::Invalid { path, found, expected };
        }
        let path = match error.path().to_string() {
            // The path of the document itself.
            root if root == "." => "config".to_owned(),
            path => path,
        };
        Self::Shape { path, message: without_position(&error.inner().to_string()) }
    }
}

/// Removes ` at line L column C`, which `serde_json` appends. The other fields of the error locate
/// the mistake.
fn without_position(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(text, _position)| text).to_owned()
}
