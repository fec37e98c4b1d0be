//! [`VmError`]: the errors of [`VmManager`](crate::VmManager).

use std::io;
use std::path::PathBuf;

use a3s_box_core::{BoxState, ErrorReport};

use crate::{BoxDirectoryError, Outcome, ShimStartError};

/// Why a method of [`VmManager`](crate::VmManager) failed.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The box was booted or destroyed before. A box can be booted only once.
    #[error("the box cannot be booted again: it was booted or destroyed before, and is {state}")]
    AlreadyBooted {
        /// State of the box now.
        state: BoxState,
    },
    /// The box was not booted yet, so it has no agent.
    #[error("the box was not booted yet")]
    NotBooted,
    /// A path in the config is not UTF-8, so JSON cannot represent it. No process was started.
    #[error("the config cannot be written as JSON")]
    Config(#[source] serde_json::Error),
    /// No process was started. The caller may boot the box again.
    #[error(transparent)]
    Start(#[from] ShimStartError),
    /// The box ended before it was ready, by an error.
    #[error("the box did not boot: {}", report.message)]
    BootFailed {
        /// The last error of the shim, or an error with the code `shim_lost` if the shim emitted
        /// none.
        report: ErrorReport,
    },
    /// A stop or the timeout of the box ended it before it was ready.
    #[error("the box ended before it was ready: {outcome}")]
    StoppedWhileBooting {
        /// How the box ended.
        outcome: Outcome,
    },
    /// The shim did not end within 10 s after SIGKILL. Its box directory was not removed.
    #[error("the shim (pid {pid}) did not end after SIGKILL")]
    StillRunning {
        /// Process id of the shim.
        pid: u32,
    },
    /// The box has ended, but its cgroup still exists, for example because a process is in it.
    #[error("cannot remove the cgroup `{}`", path.display())]
    Cgroup {
        /// Path of the cgroup, `resources.cgroup` of the config.
        path: PathBuf,
        /// Why rmdir(2) failed.
        source: io::Error,
    },
    /// The box has ended, but its directory still exists.
    #[error(transparent)]
    BoxDirectory(#[from] BoxDirectoryError),
}
