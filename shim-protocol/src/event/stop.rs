//! Why a box ends, and how its stop went.

use serde::{Deserialize, Serialize};

/// Who asked for a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// The shim got SIGTERM, SIGINT or SIGHUP.
    Signal,
    /// `resources.timeout_ms` ran out.
    Timeout,
    /// The box is unhealthy, and `agent.health.on_unhealthy` is `stop`.
    Unhealthy,
    /// The process that started the shim has ended, and `stop.die_with_parent` is set.
    ParentDied,
}

/// How a stop went, in the order in which a stop escalates. Steps that were not needed are absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StopReport {
    /// Who asked first.
    pub cause: StopCause,
    /// What ended the box.
    pub ended_by: StopStep,
    /// When it was asked for, in milliseconds since the shim started, as all times here.
    pub requested_ms: u64,
    /// When the guest was told to signal the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signaled_ms: Option<u64>,
    /// When the guest was told to kill every process: the grace period was over, or a second signal
    /// came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed_ms: Option<u64>,
    /// When the workload's end was reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited_ms: Option<u64>,
}

/// A step of a stop, each bounded in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopStep {
    /// No workload ran yet: the shim ended at once.
    BeforeStart,
    /// The workload ended on its stop signal, within the grace period.
    Signal,
    /// Every process of the guest was killed, by its PID 1.
    GuestKill,
    /// The guest did not end in time, and the shim ended the VM.
    HostDeadline,
}

/// Why a box ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// The workload ended by itself; `exit_code` or `signal` says how.
    Exited,
    /// It was asked to stop, and did.
    Stopped,
    /// `resources.timeout_ms` ran out.
    Timeout,
    /// It was stopped because it was unhealthy.
    Unhealthy,
    /// The workload could not be started, the shim failed, or the guest was lost; an `error` event says which.
    Failed,
    /// The shim itself was ended by a signal, or vanished (made by the supervisor).
    Killed,
}
