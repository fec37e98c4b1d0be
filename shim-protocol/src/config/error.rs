//! Why a config is refused.

use serde_path_to_error::Segment;

/// Why a config is refused: where, what was found, what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Longer than [`MAX_CONFIG_BYTES`](super::MAX_CONFIG_BYTES).
    #[error("config is longer than {} bytes", super::MAX_CONFIG_BYTES)]
    TooLarge,
    /// Not JSON, or something after the document.
    #[error("config is not valid JSON at line {line}, column {column}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser expected.
        message: String,
    },
    /// A field of the wrong type, an unknown field or an unknown name.
    #[error("{path}: {message}")]
    Shape {
        /// JSON path of the field.
        path: String,
        /// What was found and expected.
        message: String,
    },
    /// A value that the type allows and the meaning does not.
    #[error("{path}: found {found}, expected {expected}")]
    Invalid {
        /// JSON path of the field.
        path: String,
        /// The value, or what is wrong with it.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// Something that this version does not do yet.
    #[error("{path}: not supported yet: {what}")]
    Unsupported {
        /// JSON path of the field.
        path: String,
        /// What was asked for.
        what: String,
    },
}

impl ConfigError {
    /// A value that the type allows and the meaning does not.
    #[must_use]
    pub fn invalid(
        path: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Invalid { path: path.into(), found: found.into(), expected: expected.into() }
    }

    /// Something that this version does not do yet.
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

    pub(super) fn from_serde(error: &serde_path_to_error::Error<serde_json::Error>) -> Self {
        if !error.inner().is_data() {
            return Self::syntax(error.inner());
        }
        // serde fills objects from arrays, too, by position. In one, the path does not tell a secret.
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
        let path = match error.path().to_string() {
            root if root == "." => "config".to_owned(),
            path => path,
        };
        // serde quotes the value that it found, and these values are secrets.
        let message = if path.starts_with("process.env") {
            "expected an object of strings (what was found is not shown: it may be secret)"
                .to_owned()
        } else {
            without_position(&error.inner().to_string())
        };
        Self::Shape { path, message }
    }
}

/// `serde_json` appends ` at line L column C`, which says less than the path does.
fn without_position(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(text, _position)| text).to_owned()
}
