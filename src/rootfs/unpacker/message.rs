//! What the shim and an unpacker tell each other: lines of JSON.

use a3s_box_core::ErrorReport;
use a3s_box_core::config::SeccompMode;
use a3s_box_oci::{Fault, Progress, Task};
use serde::{Deserialize, Serialize};

/// What an unpacker is to do. It is the only line that it receives. The files of the task come before
/// it, with the lock of the staging directory as the last one.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) task: Task,
    pub(super) seccomp: SeccompMode,
}

/// A line that an unpacker sends.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// Progress of a layer of the task, given by its index.
    Progress { layer: usize, progress: Progress },
    /// The task is done.
    Done,
    /// The task has failed, by the fault of a layer if there is one.
    Failed { report: ErrorReport, fault: Option<Fault> },
}
