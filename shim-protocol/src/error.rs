//! [`ErrorReport`], the content of an `error` event, and [`one_line`], an error with its causes as
//! one line of text.

use std::error::Error;

use serde::{Deserialize, Serialize};

/// Stable name of an error. A code never changes its meaning, but later versions may add codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The config is not valid: its syntax, a field, or a combination of fields.
    ConfigInvalid,
    /// The config requests something that this version does not support yet.
    ConfigUnsupported,
    /// Another live shim has a box of the same id in the same state directory.
    IdInUse,
    /// The box directory, the console file or the event file cannot be used.
    StateDir,
    /// The image layout, its index, manifest or config cannot be used. The image must change.
    ImageInvalid,
    /// A layer cannot be unpacked or does not match its digest. The image must change.
    LayerInvalid,
    /// The layer cache or a mount failed for a reason of this host, for example a full disk or an
    /// owner for whom the user has no sub-ids.
    RootfsFailed,
    /// The process of the shim cannot be set up: its namespaces, limits, signals or cgroup.
    ProcessSetup,
    /// The shim cannot confine itself as `confinement.level` requires.
    Confinement,
    /// This host cannot run a VM: `/dev/kvm`, the guest kernel or the guest program is missing or
    /// cannot be used.
    HostUnsupported,
    /// The network of the guest cannot be made: `passt` is missing or fails, or a port is in use.
    NetworkSetup,
    /// libkrun refused the config of the machine.
    VmSetup,
    /// The box was not ready within `agent.boot_timeout_ms`.
    BootTimeout,
    /// The executable of the workload or its interpreter does not exist. The exit status is 127.
    WorkloadNotFound,
    /// The executable of the workload exists, but cannot be executed. The exit status is 126.
    WorkloadNotExecutable,
    /// The guest program cannot set up the workload's mounts, user, working directory or limits.
    WorkloadSetup,
    /// The guest ended without a report: its kernel panicked or was reset, or PID 1 ended.
    GuestLost,
    /// The box was unhealthy, and `agent.health.on_unhealthy` is `stop`.
    Unhealthy,
    /// The guest violated the control protocol.
    GuestProtocol,
    /// The VM did not end by itself in time, so the shim ended it.
    ShutdownTimeout,
    /// libkrun ended with an error, and without a report of the guest.
    VmFailed,
    /// The shim ended without `box.stopped`. Only a supervisor makes this error.
    ShimLost,
    /// The shim itself has a fault.
    Internal,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}

/// One error, for people and programs.
///
/// In an event, the shim cuts each text to 4096 bytes and keeps at most 16 causes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorReport {
    /// Stable name of the error.
    pub code: ErrorCode,
    /// Description of the failure, in one line.
    pub message: String,
    /// Causes of the failure, from the nearest one to the root cause. Empty: none is known.
    pub causes: Vec<String>,
    /// Instruction for the user that removes the cause. Absent: none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether the same config may succeed if it is tried again without a change.
    pub retryable: bool,
}

impl ErrorReport {
    /// Makes the report of `error` and its causes, without a hint and not retryable.
    #[must_use]
    pub fn new(code: ErrorCode, error: &dyn Error) -> Self {
        Self {
            code,
            message: error.to_string(),
            causes: causes(error).map(ToString::to_string).collect(),
            hint: None,
            retryable: false,
        }
    }

    /// Replaces the hint.
    #[must_use]
    pub fn with_hint(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }

    /// Marks the error as retryable.
    #[must_use]
    pub fn retryable(self) -> Self {
        Self { retryable: true, ..self }
    }
}

/// Returns `error` and its causes in one line, from the error to the root cause.
///
/// ```
/// use std::io;
///
/// use a3s_box_core::one_line;
///
/// #[derive(Debug, thiserror::Error)]
/// #[error("cannot read the config")]
/// struct ReadError(#[source] io::Error);
///
/// let error = ReadError(io::ErrorKind::NotFound.into());
/// assert_eq!(one_line(&error), "cannot read the config: entity not found");
/// ```
#[must_use]
pub fn one_line(error: &dyn Error) -> String {
    causes(error).fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// Returns the causes of `error`, from the nearest to the root.
fn causes(error: &dyn Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}
