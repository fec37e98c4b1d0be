//! What [`VmManager`](crate::VmManager) can fail with.

use std::io;
use std::path::PathBuf;

use a3s_box_core::{BoxState, ErrorReport};

use crate::{BoxDirectoryError, Outcome, ShimStartError};

/// A box could not do what its [`VmManager`](crate::VmManager) was asked for.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A box boots once, and not after it was destroyed.
    #[error("the box cannot be booted again: it was booted or destroyed before, and is {state}")]
    AlreadyBooted {
        /// State of the box now.
        state: BoxState,
    },
    /// There is no agent to ask before the first boot.
    #[error("the box was not booted yet")]
    NotBooted,
    /// A path in the config is not UTF-8.
    #[error("the config cannot be written as JSON")]
    Config(#[source] serde_json::Error),
    /// No process was started; the boot may be tried again.
    #[error(transparent)]
    Start(#[from] ShimStartError),
    /// The box ended before it was ready, and an `error` event says why.
    #[error("the box did not boot: {}", report.message)]
    BootFailed {
        /// What the shim said, or `shim_lost` when it could not say anything.
        report: ErrorReport,
    },
    /// The box was ended before it was ready, by a stop or by its timeout.
    #[error("the box ended before it was ready: {outcome}")]
    StoppedWhileBooting {
        /// How it ended.
        outcome: Outcome,
    },
    /// The shim did not end after SIGKILL; its state directory was left alone.
    #[error("the shim (pid {pid}) did not end after SIGKILL")]
    StillRunning {
        /// Process id of the shim.
        pid: u32,
    },
    /// The box has ended, and its cgroup is still there.
    #[error("cannot remove the cgroup `{}`", path.display())]
    Cgroup {
        /// The directory of `resources.cgroup`.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The box has ended, and its directory still exists.
    #[error(transparent)]
    BoxDirectory(#[from] BoxDirectoryError),
}
