//! Checks of single fields that several parts of the config share.

use std::ops::RangeInclusive;
use std::path::Path;

use a3s_box_core::config::ConfigError;

/// Upper bound of every wait in the config: one hour. Larger values are probably mistakes of the
/// unit.
pub(super) const MAX_WAIT_MS: u64 = 3_600_000;

/// Checks that `found` is in the range `allowed`.
pub(super) fn within(
    field: &str,
    found: u64,
    allowed: RangeInclusive<u64>,
) -> Result<(), ConfigError> {
    if allowed.contains(&found) {
        return Ok(());
    }
    let expected = format!("{} to {}", allowed.start(), allowed.end());
    Err(ConfigError::invalid(field, found.to_string(), expected))
}

/// Checks that a path is absolute and that a system call accepts it, which excludes NUL bytes.
pub(super) fn absolute(field: &str, found: &Path) -> Result<(), ConfigError> {
    if found.is_absolute() && !found.as_os_str().as_encoded_bytes().contains(&0) {
        return Ok(());
    }
    let found = format!("`{}`", found.display());
    Err(ConfigError::invalid(field, found, "an absolute path"))
}

/// Checks that a text has no NUL byte, at which a system call would cut it off.
pub(super) fn no_nul(field: &str, text: &str) -> Result<(), ConfigError> {
    match text.find('\0') {
        None => Ok(()),
        Some(at) => {
            let found = format!("a NUL byte at {at}");
            Err(ConfigError::invalid(field, found, "text without NUL bytes"))
        }
    }
}
