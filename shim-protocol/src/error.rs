//! [`ErrorReport`], the content of an `error` event, and [`one_line`]: an error with its causes as text.

use std::error::Error;

use serde::{Deserialize, Serialize};

/// Stable name of what went wrong. A code never changes its meaning; new ones may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The `BoxConfig` is not valid: syntax, a field, or a combination of fields.
    ConfigInvalid,
    /// The `BoxConfig` asks for something that this version does not do yet.
    ConfigUnsupported,
    /// Another live shim has the same box id in the same state directory.
    IdInUse,
    /// The state directory could not be used.
    StateDir,
    /// The image layout, its index, manifest or config is not usable.
    ImageInvalid,
    /// A layer could not be unpacked or did not match its digest.
    LayerInvalid,
    /// The layer cache or the mounts failed for a reason of this host.
    RootfsFailed,
    /// The process could not be set up (namespaces, limits, signals).
    ProcessSetup,
    /// The shim could not confine itself as the config requires.
    Confinement,
    /// This host cannot run a VM: no usable `/dev/kvm`, or no guest kernel.
    HostUnsupported,
    /// The network that the config asks for cannot be had: `passt` is missing or refused, a port is in use.
    NetworkSetup,
    /// libkrun refused the machine.
    VmSetup,
    /// The guest did not come up within the boot deadline.
    BootTimeout,
    /// The program of the workload, or its interpreter, does not exist.
    WorkloadNotFound,
    /// The program of the workload exists and cannot be executed.
    WorkloadNotExecutable,
    /// The workload's mounts, user, working directory or limits could not be set up.
    WorkloadSetup,
    /// The guest ended without saying how: panic, reset, or loss of its init.
    GuestLost,
    /// Health checks failed, and `agent.health.on_unhealthy` is `stop`.
    Unhealthy,
    /// The guest broke the control protocol.
    GuestProtocol,
    /// The VM did not end by itself after the guest was done; it was ended.
    ShutdownTimeout,
    /// The virtual machine monitor failed (libkrun ended with an error).
    VmFailed,
    /// The shim ended by a signal or without a terminal event (made by the supervisor).
    ShimLost,
    /// A fault of the shim itself.
    Internal,
}

/// One error, as it is shown to people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorReport {
    /// Stable name of what went wrong.
    pub code: ErrorCode,
    /// What failed, in one line.
    pub message: String,
    /// Why, from the nearest cause to the root.
    pub causes: Vec<String>,
    /// What to do about it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether the same config may succeed if it is tried again without a change.
    pub retryable: bool,
}

impl ErrorReport {
    /// Makes the report of `error` and its causes.
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

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }

    /// Says that trying again may help.
    #[must_use]
    pub fn retryable(self) -> Self {
        Self { retryable: true, ..self }
    }
}

/// Writes `error` and its causes in one line, from the error to the root cause.
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
