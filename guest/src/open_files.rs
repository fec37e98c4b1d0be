//! The limit on the open files of this process (`RLIMIT_NOFILE`).
//!
//! PID 1 raises its own limit. All other processes get the one that the kernel gave it.

use std::sync::OnceLock;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::kmsg;
use crate::syscall::Limit;

static ORIGINAL: OnceLock<Limit> = OnceLock::new();

/// Raises the soft limit to the hard limit. An error is logged: the first 1024 files need no higher
/// limit.
pub(crate) fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        ORIGINAL.get_or_init(|| Limit { resource: libc::RLIMIT_NOFILE, soft, hard });
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    });
    if let Err(errno) = raised {
        kmsg::line(&format!("cannot raise the limit on open files: {errno}"));
    }
}

/// Returns the limit for all other processes. `None`: this process has changed nothing.
pub(crate) fn original_limit() -> Option<Limit> {
    ORIGINAL.get().copied()
}
