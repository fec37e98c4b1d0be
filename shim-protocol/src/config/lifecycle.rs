//! How a box is watched, confined and stopped.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The agent in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// Who answers health checks.
    pub provider: AgentProvider,
    /// vsock port of the guest on which the agent listens.
    pub vsock_port: u32,
    /// What makes the box ready. Absent: `health`; with provider `none`, `started`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
    /// Health checks for as long as the box runs; none with provider `none`.
    pub health: HealthConfig,
    /// How long the guest may take from the entry into libkrun until the box is ready, 1 to 3600000.
    pub boot_timeout_ms: u64,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            provider: AgentProvider::Builtin,
            vsock_port: 4088,
            readiness: None,
            health: HealthConfig::default(),
            // Half of what systemd gives a service to start (90 s), and ten times what an
            // emulated host needs.
            boot_timeout_ms: 45_000,
        }
    }
}

/// Who answers health checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AgentProvider {
    /// The program that is PID 1 of the guest.
    #[default]
    Builtin,
    /// A server of the image's own: it offers `grpc.health.v1.Health`, or the project's `Agent`.
    Image,
    /// Nobody: there are no health checks.
    None,
}

/// What makes a box ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// The workload was started.
    Started,
    /// The workload sent `READY=1` to `$NOTIFY_SOCKET` (`sd_notify(3)`).
    Notify,
    /// A health check succeeded.
    Health,
}

/// Health checks. The agent is asked, and answers, in a round trip; three results are failures: no
/// connection, no answer in time, and an answer that says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// Time from the end of a check to the next one, 10 to 3600000.
    pub interval_ms: u64,
    /// Time in which an answer must come, 1 to 3600000.
    pub timeout_ms: u64,
    /// Failures in a row until the box is unhealthy, 1 to 1000.
    pub retries: u32,
    /// Time after the workload's start in which failures do not count, up to the first success; 0 to
    /// 3600000.
    pub start_period_ms: u64,
    /// What happens to an unhealthy box.
    pub on_unhealthy: OnUnhealthy,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            interval_ms: 1000,
            timeout_ms: 500,
            retries: 3,
            start_period_ms: 30_000,
            on_unhealthy: OnUnhealthy::Report,
        }
    }
}

/// What happens to an unhealthy box.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnUnhealthy {
    /// An event says so. A guest that is too busy to answer is not killed for it.
    #[default]
    Report,
    /// The box is stopped, and its end is a failure.
    Stop,
}

/// How the shim confines itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ConfinementConfig {
    /// How much confinement is needed to start.
    pub level: ConfinementLevel,
    /// What happens to a system call that the filter does not know.
    pub seccomp: SeccompMode,
}

/// What happens to a system call that the filter does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SeccompMode {
    /// It ends the process that makes it: the shim, or the gate of its network.
    #[default]
    Enforce,
    /// It is done, and the kernel logs it: to find what a new kernel or libc needs.
    Log,
}

/// How much confinement is needed to start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ConfinementLevel {
    /// All of it, or the shim refuses to start. What a kernel's Landlock is too old for is no reason:
    /// other layers do the same.
    #[default]
    Required,
    /// As much as this host allows; `shim.confined` says how much that is.
    BestEffort,
    /// None: the guest's kernel is trusted with everything that the shim's user may do.
    None,
}

/// How the box is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct StopConfig {
    /// First signal to the workload, as `SIGTERM`. Absent: the image's stop signal, else SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Time until every process of the guest is killed.
    pub grace_ms: u64,
    /// Stop the box when the process that started the shim has ended. `false` is for supervisors that
    /// are restarted while their boxes go on.
    pub die_with_parent: bool,
}

impl Default for StopConfig {
    fn default() -> Self {
        // What container engines give by default.
        Self { signal: None, grace_ms: 10_000, die_with_parent: true }
    }
}

/// The event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// Time between two `metrics` events, 100 to 3600000. Absent: none are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_interval_ms: Option<u64>,
    /// File to which the stream is appended, too, so that a supervisor that was away can catch up.
    /// Absolute. Absent: none is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Most KiB that `file` and the one before it (`file` with `.1` at its end) take together, 64 to
    /// 1048576.
    pub file_max_kib: u32,
}

impl Default for EventsConfig {
    fn default() -> Self {
        // The stream of a day with metrics each 5 s: some 17,000 lines of under 1 KiB.
        Self { metrics_interval_ms: None, file: None, file_max_kib: 16 * 1024 }
    }
}
