//! [`Metrics`]: the duration of the boot phases, and the resources that a box uses.

use serde::{Deserialize, Serialize};

use crate::HealthState;

/// Durations of the phases from the start of the shim to the first successful health check, each in
/// milliseconds. A phase that is not over is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BootPhases {
    /// Time in which the shim reads and validates the config and sets up its process.
    pub config_ms: u64,
    /// Time in which the shim unpacks and mounts the root file system.
    pub rootfs_ms: u64,
    /// Time in which the shim configures libkrun, up to the entry into it.
    pub vm_ms: u64,
    /// Time from the entry into libkrun to the first message of the guest program.
    pub kernel_ms: u64,
    /// Time from the first message of the guest program to the first successful health check.
    pub agent_ms: u64,
    /// Time from the start of the shim to the first successful health check.
    pub total_ms: u64,
}

/// The resources that a box uses, at one time. Counters start with the shim at 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Metrics {
    /// Time since the start of the shim in milliseconds.
    pub uptime_ms: u64,
    /// Durations of the boot phases.
    pub boot: BootPhases,
    /// The process of the shim, which is also the VMM.
    pub process: ProcessMetrics,
    /// The guest, as its agent reports it. Absent: the agent offers no metrics, did not answer
    /// within a second, or does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestMetrics>,
    /// The output of the workload.
    pub console: ConsoleMetrics,
    /// The event stream.
    pub events: EventMetrics,
    /// The health checks. Absent: the box has none, or they have not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthMetrics>,
}

/// Metrics of the shim's process, from `/proc/self` of the host kernel (`proc(5)`). A value that
/// cannot be read is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProcessMetrics {
    /// Resident memory in KiB (`Rss` of `smaps`), including the guest's memory.
    pub rss_kib: u64,
    /// Proportional memory in KiB (`Pss` of `smaps`): a page that n processes share counts as one
    /// n-th.
    pub pss_kib: u64,
    /// `pss_kib` without the guest's memory and the image of the guest kernel: the memory of the
    /// shim itself.
    pub shim_pss_kib: u64,
    /// CPU time in user mode in milliseconds (`utime` of `stat`), including the guest's.
    pub cpu_user_ms: u64,
    /// CPU time in the kernel in milliseconds (`stime` of `stat`).
    pub cpu_system_ms: u64,
    /// Number of threads.
    pub threads: u32,
    /// Number of open file descriptors.
    pub open_files: u32,
}

/// Metrics of the guest kernel, which the agent reports. The guest is hostile, so they can be
/// false.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestMetrics {
    /// Memory that the guest kernel manages, in KiB.
    pub memory_total_kib: u64,
    /// Memory that is free or that the guest kernel can free, in KiB.
    pub memory_available_kib: u64,
    /// Load averages of the last 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Number of processes.
    pub processes: u32,
}

/// Numbers of bytes of the workload's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConsoleMetrics {
    /// Bytes of its standard output.
    pub stdout_bytes: u64,
    /// Bytes of its standard error.
    pub stderr_bytes: u64,
    /// Bytes of both that were discarded, at once or later.
    pub discarded_bytes: u64,
}

/// Metrics of the event stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EventMetrics {
    /// Number of events that have a `seq`.
    pub emitted: u64,
    /// Length of the lines of these events in bytes.
    pub emitted_bytes: u64,
    /// Number of events that were dropped or merged because the supervisor read too slowly.
    pub dropped: u64,
    /// Number of events that wait for the supervisor to read.
    pub waiting: u64,
}

/// Metrics of the health checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HealthMetrics {
    /// The health of the box.
    pub state: HealthState,
    /// Number of checks that have ended.
    pub checks: u64,
    /// Number of checks that have failed.
    pub failures: u64,
    /// Round-trip time of the last successful check in microseconds.
    pub last_latency_us: u64,
    /// Longest round-trip time of a successful check since the last `metrics` event, in
    /// microseconds.
    pub max_latency_us: u64,
}
