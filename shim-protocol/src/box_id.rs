//! [`BoxId`]: the validated id of a box.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use crate::ConfigError;

/// Longest id in bytes. The id is part of the path of each socket of the box, and the kernel limits
/// such a path to 107 bytes (`sun_path` in unix(7)).
const MAX_BYTES: usize = 64;

/// The rule for an id, in the words of a config error.
const EXPECTED: &str =
    "1 to 64 letters, digits, `.`, `_` and `-`, beginning with a letter or digit";

/// The id of a box: 1 to 64 ASCII letters, digits, `.`, `_` and `-`, beginning with a letter or a
/// digit.
///
/// An id is a file name that never leads out of its directory: it contains no `/`, and it is
/// neither `.` nor `..`.
///
/// ```
/// use a3s_box_core::BoxId;
///
/// let id: BoxId = "build-42".parse().unwrap();
/// assert_eq!(id.as_str(), "build-42");
///
/// let error = "../build".parse::<BoxId>().unwrap_err();
/// assert!(error.to_string().starts_with("found `../build`, expected 1 to 64 letters"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BoxId(String);

/// A text is not the id of a box.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found `{found}`, expected {EXPECTED}")]
pub struct BoxIdError {
    /// The text.
    pub found: String,
}

impl BoxId {
    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for BoxId {
    type Error = BoxIdError;

    fn try_from(text: String) -> Result<Self, BoxIdError> {
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        // The first byte excludes `.` and `..`, and an id that a command line takes for an option.
        let begins_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if begins_well && text.len() <= MAX_BYTES && text.bytes().all(is_legal) {
            return Ok(Self(text));
        }
        Err(BoxIdError { found: text })
    }
}

impl FromStr for BoxId {
    type Err = BoxIdError;

    fn from_str(text: &str) -> Result<Self, BoxIdError> {
        text.to_owned().try_into()
    }
}

impl Deref for BoxId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BoxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<BoxIdError> for ConfigError {
    fn from(error: BoxIdError) -> Self {
        Self::invalid("id", format!("`{}`", error.found), EXPECTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_within_the_rule_is_accepted() {
        let longest = "a".repeat(MAX_BYTES);
        for text in ["a", "0", "a.b_c-d", "9..", longest.as_str()] {
            assert_eq!(text.parse::<BoxId>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn id_outside_the_rule_is_refused() {
        let too_long = "a".repeat(MAX_BYTES + 1);
        for text in ["", ".", "..", "-a", "_a", "a/b", "/", "a b", "ä", "a\0", too_long.as_str()] {
            assert_eq!(text.parse::<BoxId>(), Err(BoxIdError { found: text.to_owned() }));
        }
    }
}
