//! Why a box ends, and the steps of its stop.

use serde::{Deserialize, Serialize};

/// Stop trigger: why the shim stops a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopCause {
    /// The shim received SIGTERM, SIGINT or SIGHUP.
    Signal,
    /// `resources.timeout_ms` has elapsed.
    Timeout,
    /// The box is unhealthy, and `agent.health.on_unhealthy` is `stop`.
    Unhealthy,
    /// The process that spawned the shim has ended, and `stop.die_with_parent` is true.
    ParentDied,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}

/// The steps of a stop, in the order in which it escalates. A step that was not necessary is
/// absent.
///
/// All times are milliseconds since the start of the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StopReport {
    /// The first stop trigger.
    pub cause: StopCause,
    /// The step that ended the box.
    pub ended_by: StopStep,
    /// Time at which the stop began.
    pub requested_ms: u64,
    /// Time at which the shim sent the guest program the command to signal the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signaled_ms: Option<u64>,
    /// Time at which the shim sent the guest program the command to kill every process, because the
    /// grace period was over or a second stop request came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed_ms: Option<u64>,
    /// Time at which the guest program reported the end of the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited_ms: Option<u64>,
}

/// A step of a stop. Each step is bounded in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopStep {
    /// The workload had not started, so the shim ended at once.
    BeforeStart,
    /// The workload ended within the grace period, after its stop signal.
    Signal,
    /// The guest program killed every process of the guest.
    GuestKill,
    /// The guest did not end in time or a third stop request came, and the shim ended the VM.
    HostDeadline,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}

/// Why a box ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// The workload ended by itself, with any exit status or by a signal.
    Exited,
    /// A stop request ended the box.
    Stopped,
    /// `resources.timeout_ms` has elapsed.
    Timeout,
    /// The box was unhealthy, and `agent.health.on_unhealthy` is `stop`.
    Unhealthy,
    /// The workload could not start, the shim failed, or the guest was lost. An `error` event has
    /// the cause.
    Failed,
    /// The shim itself ended without `box.stopped`, for example by a signal. Only a supervisor
    /// makes this reason.
    Killed,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}
