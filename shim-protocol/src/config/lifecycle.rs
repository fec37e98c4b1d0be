//! How the shim watches, confines and stops a box: `agent`, `confinement`, `stop` and `events` of a
//! config.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The agent in the guest, readiness, and health checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// The server that answers health checks. Default: `builtin`.
    pub provider: AgentProvider,
    /// vsock port of the guest on which the agent listens: any port except for 0, 4087 (the control
    /// connection), 4089 (`exec`) and 4294967295 (`VMADDR_PORT_ANY`). Default: 4088.
    pub vsock_port: u32,
    /// Whether processes can be started in the running box, by the socket `exec.sock` of its
    /// directory. The guest program serves it on vsock port 4089, with each provider. Default: true.
    pub exec: bool,
    /// Event that makes the box ready. Absent: `health`, or `started` with provider `none`, which
    /// refuses `health`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
    /// Health checks, which the shim makes for as long as the box runs. With provider `none` it
    /// makes none, but validates the values.
    pub health: HealthConfig,
    /// Time in milliseconds from the entry into libkrun until the box must be ready: 1 to 3600000.
    /// Default: 45000. A box that is not ready by then ends with the error `boot_timeout`.
    pub boot_timeout_ms: u64,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            provider: AgentProvider::Builtin,
            vsock_port: 4088,
            exec: true,
            readiness: None,
            health: HealthConfig::default(),
            // Half of the time that systemd gives a service to start (90 s), and ten times the boot
            // of an emulated host.
            boot_timeout_ms: 45_000,
        }
    }
}

/// The server that answers health checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AgentProvider {
    /// The agent of the guest program.
    #[default]
    Builtin,
    /// A server in the image. It offers `grpc.health.v1.Health` or the project's `Agent` service.
    Image,
    /// No server, so the shim makes no health checks.
    None,
}

/// Event that makes a box ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// The guest program has started the workload.
    Started,
    /// The workload has sent `READY=1` to `$NOTIFY_SOCKET` (`sd_notify(3)`).
    Notify,
    /// A health check has succeeded.
    Health,
}

/// Health checks: the shim calls the agent by gRPC and waits for the answer.
///
/// A check fails if there is no connection, if no answer comes in time, if the agent answers that
/// it does not serve, or if the answer is malformed. Before its first success the shim checks every
/// few milliseconds, so that the box is ready soon after its agent is, and counts at most
/// one failure for each `interval_ms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// Time in milliseconds from the end of a check to the next one: 10 to 3600000. Default: 1000.
    pub interval_ms: u64,
    /// Time in milliseconds in which an answer must come: 1 to 3600000. Default: 500. The first
    /// answer has at least 2000, because it includes the connection and the start of the agent.
    pub timeout_ms: u64,
    /// Number of failures in a row after which the box is unhealthy: 1 to 1000. Default: 3.
    pub retries: u32,
    /// Time in milliseconds after the start of the workload in which failures do not count: 0 to
    /// 3600000. Default: 30000. The first success ends this period early.
    pub start_period_ms: u64,
    /// What the shim does with an unhealthy box. Default: `report`.
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

/// What the shim does with an unhealthy box.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnUnhealthy {
    /// It emits `health.changed`, and the box continues. A guest that is too busy to answer is
    /// therefore not killed.
    #[default]
    Report,
    /// It stops the box. The reason of the ending is `unhealthy`, and the exit status is 125.
    Stop,
}

/// How the shim confines itself before the guest starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ConfinementConfig {
    /// The confinement that a start requires. Default: `required`.
    pub level: ConfinementLevel,
    /// What the kernel does with a system call that the seccomp filter does not allow. Default:
    /// `enforce`. `log` is refused with level `required`.
    pub seccomp: SeccompMode,
    /// The ids of the host for the boxes of a shim that root started.
    pub ids: IdsConfig,
}

/// A range of user and group ids of the host that no user, group or other program has. Each box of
/// a shim that root started gets 65,536 of them while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct IdsConfig {
    /// The first id. Default: 524288, the first one of the range that systemd reserves for
    /// containers.
    pub first: u32,
    /// Number of ids. Default: 1878523904, to the end of that range.
    pub count: u32,
}

impl Default for IdsConfig {
    fn default() -> Self {
        Self { first: 0x0008_0000, count: 0x7000_0000 - 0x0008_0000 }
    }
}

/// What the kernel does with a system call that the seccomp filter does not allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SeccompMode {
    /// It ends the calling process, which is the shim or the gate.
    #[default]
    Enforce,
    /// It executes and logs the call. This finds the calls that a new kernel or libc needs.
    Log,
}

/// The confinement that a start requires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ConfinementLevel {
    /// Every layer. The shim refuses to start if one is missing. An old Landlock ABI is sufficient,
    /// because other layers prevent what it cannot.
    #[default]
    Required,
    /// Every layer that this host allows. The event `shim.confined` lists the missing ones.
    BestEffort,
    /// No layer. A guest that breaks out of the VMM has all rights of the shim's user.
    None,
}

/// How the shim stops the box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct StopConfig {
    /// The first signal to the workload: a name with or without `SIG` and in any case, for example
    /// `SIGINT` or `SIGRTMIN+3`, or a number from 1 to 64. Absent: the stop signal of the image, or
    /// else SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Grace period in milliseconds, from the first signal until the guest program kills every
    /// process of the guest: 0 to 3600000. Default: 10000.
    pub grace_ms: u64,
    /// Whether the shim stops the box when the process that spawned it has ended. Default: true.
    /// `false` is for supervisors that restart while their boxes continue.
    pub die_with_parent: bool,
}

impl Default for StopConfig {
    fn default() -> Self {
        // The default grace period of container engines.
        Self { signal: None, grace_ms: 10_000, die_with_parent: true }
    }
}

/// The event stream, and the file that keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// Time in milliseconds between two `metrics` events: 100 to 3600000. Absent: the shim emits
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_interval_ms: Option<u64>,
    /// Absolute path of a file that the shim also appends the events to, so that a restarted
    /// supervisor can read the events that it missed. It must not be a symbolic link, and must not be
    /// in a share. No other user may be able to replace it. Absent: no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Size limit in KiB of `file` and the previous file (the same name with `.1` at its end)
    /// together: 64 to 1048576. Default: 16384.
    pub file_max_kib: u32,
}

impl Default for EventsConfig {
    fn default() -> Self {
        // The limit holds one day of `metrics` events every 5 s: 17,000 lines of less than 1 KiB.
        Self { metrics_interval_ms: None, file: None, file_max_kib: 16 * 1024 }
    }
}
