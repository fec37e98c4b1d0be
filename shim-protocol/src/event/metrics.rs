//! Figures of a box: where its boot went, and what it takes.

use serde::{Deserialize, Serialize};

use crate::HealthState;

/// Where the time until the agent was ready went, each in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BootPhases {
    /// Reading and validating the config, setting the process up.
    pub config_ms: u64,
    /// Unpacking and mounting the root file system.
    pub rootfs_ms: u64,
    /// Configuring libkrun, up to entering it.
    pub vm_ms: u64,
    /// From entering libkrun to the guest's first message.
    pub kernel_ms: u64,
    /// From the guest's first message to the first health answer.
    pub agent_ms: u64,
    /// All of it.
    pub total_ms: u64,
}

/// What a box takes, at one time. Counters begin at the start of the shim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Metrics {
    /// Time since the shim started.
    pub uptime_ms: u64,
    /// Where the time of the boot went, as far as it has come.
    pub boot: BootPhases,
    /// The process that is the VM.
    pub process: ProcessMetrics,
    /// The guest, as the agent in it says; absent when it did not, or cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestMetrics>,
    /// The workload's output.
    pub console: ConsoleMetrics,
    /// This stream.
    pub events: EventMetrics,
    /// Health checks; absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthMetrics>,
}

/// What the host's kernel says of the shim's process (proc(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProcessMetrics {
    /// Resident memory in KiB, the guest's included.
    pub rss_kib: u64,
    /// The same, with what is shared by n processes counted as one n-th.
    pub pss_kib: u64,
    /// `pss_kib` without the guest's memory and its kernel: what the shim itself takes.
    pub shim_pss_kib: u64,
    /// CPU time in user mode, the guest's included.
    pub cpu_user_ms: u64,
    /// CPU time in the kernel.
    pub cpu_system_ms: u64,
    /// Threads.
    pub threads: u32,
    /// Open files.
    pub open_files: u32,
}

/// What the guest's kernel says, through the agent. The guest may lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestMetrics {
    /// Memory that the guest's kernel manages, in KiB.
    pub memory_total_kib: u64,
    /// Memory that is free, or can be freed, in KiB.
    pub memory_available_kib: u64,
    /// Load of the last 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Processes.
    pub processes: u32,
}

/// Bytes of the workload's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConsoleMetrics {
    /// Of its standard output.
    pub stdout_bytes: u64,
    /// Of its standard error.
    pub stderr_bytes: u64,
    /// Of both, those that are not kept (any more).
    pub discarded_bytes: u64,
}

/// The event stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EventMetrics {
    /// Events with a number.
    pub emitted: u64,
    /// Their bytes.
    pub emitted_bytes: u64,
    /// Events that were dropped because the reader was slow.
    pub dropped: u64,
    /// Events that wait for the reader.
    pub waiting: u64,
}

/// Health checks so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HealthMetrics {
    /// What they say now.
    pub state: HealthState,
    /// Checks that ended.
    pub checks: u64,
    /// Those that failed.
    pub failures: u64,
    /// Round trip of the last success, in microseconds.
    pub last_latency_us: u64,
    /// The longest round trip of a success since the last `metrics` event, in microseconds.
    pub max_latency_us: u64,
}
