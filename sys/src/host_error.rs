//! The error of a call that the host refused.

use std::io;
use std::path::{Path, PathBuf};

/// A call of the host that failed: what was tried, on which path, and the host's reason.
///
/// Errors of other modules hold it as a `#[error(transparent)]` variant, so that this is the only
/// place that words such a failure.
///
/// ```
/// use std::fs;
/// use a3s_box_sys::HostError;
///
/// let path = "/nonexistent/file".as_ref();
/// let error = fs::read(path).map_err(HostError::at("read", path)).unwrap_err();
/// assert_eq!(error.to_string(), "cannot read `/nonexistent/file`");
/// ```
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}{}", quoted(path.as_deref()))]
pub struct HostError {
    /// What was tried: a verb with its object, such as `make the root`; only the verb if `path` is
    /// the object.
    pub action: &'static str,
    /// The path on which it was tried, if there is one.
    pub path: Option<PathBuf>,
    /// The host's reason.
    pub source: io::Error,
}

impl HostError {
    /// Returns a function that makes the error of `action` from its cause, for `map_err`.
    pub fn of<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self { action, path: None, source: error.into() }
    }

    /// Returns a function that makes the error of `action` on `path` from its cause, for `map_err`.
    pub fn at<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |error| Self { action, path: Some(path.to_owned()), source: error.into() }
    }
}

fn quoted(path: Option<&Path>) -> String {
    path.map(|path| format!(" `{}`", path.display())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn display_names_the_action_and_the_path_and_leaves_the_cause_to_the_chain() {
        let cause = || io::Error::from_raw_os_error(libc::ENOSPC);
        let error = HostError::of("make a pipe")(cause());
        assert_eq!(error.to_string(), "cannot make a pipe");
        let error = HostError::at("write", Path::new("/a b"))(cause());
        assert_eq!(error.to_string(), "cannot write `/a b`");
        assert_eq!(error.source().unwrap().to_string(), cause().to_string());
    }
}
