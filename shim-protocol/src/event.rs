//! Events: one JSON object a line on the shim's standard output.
//!
//! ```text
//! {"v":1,"seq":3,"time":"2026-01-31T09:00:00.123Z","elapsed_ms":41,"box_id":"demo","type":"vm.starting",…}
//! ```
//!
//! `seq` starts at 0 and has no gaps; where `rootfs.progress` events had to be dropped because the
//! reader was slow, `events.dropped` says how many (they had no `seq` yet). Exactly one
//! `box.stopped` ends the stream of a shim that was not itself killed. A reader ignores types
//! and fields that it does not know.
//!
//! ```text
//! shim.started ─ image.resolved? ─ rootfs.progress* ─ rootfs.ready ─ vm.starting ─ guest.started ─ agent.ready
//!              ─ state.changed* ─ stop.requested? ─ guest.exited ─ error* ─ box.stopped
//! ```

use serde::{Deserialize, Serialize};

use crate::{BoxState, ErrorReport};

/// Version of the event format (`v`).
pub const EVENT_VERSION: u32 = 1;

/// One line of the event stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Version of the event format: 1.
    pub v: u32,
    /// Position in the stream, from 0, without gaps.
    pub seq: u64,
    /// Wall clock, RFC 3339, UTC, milliseconds.
    pub time: String,
    /// Milliseconds since the shim started, on the monotonic clock.
    pub elapsed_ms: u64,
    /// Id of the box; empty when the config could not be read.
    pub box_id: String,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened (`type` and its fields).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type")]
#[non_exhaustive]
pub enum EventKind {
    /// The config is valid; the shim begins.
    #[serde(rename = "shim.started")]
    ShimStarted {
        /// Version of the shim, as semver.
        version: String,
        /// Process id of the shim, which is the VM's.
        pid: u32,
    },
    /// The image was found, and its documents are verified; its layers come next.
    #[serde(rename = "image.resolved")]
    ImageResolved {
        /// Digest of the image's manifest.
        image: String,
        /// What was asked for; absent when the config names no reference.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// What the image was built for, `os/architecture[/variant]`.
        platform: String,
        /// Number of layers.
        layers: u32,
        /// Size of all layers' blobs together in bytes, as they are in the layout.
        image_bytes_total: u64,
        /// What the box will run.
        run: Box<ResolvedRun>,
    },
    /// A layer is being unpacked. At most ten a second; may be dropped.
    #[serde(rename = "rootfs.progress")]
    RootfsProgress {
        /// Digest of the layer's blob.
        layer: String,
        /// Position of the layer, from 1, lowest first.
        layer_number: u32,
        /// Number of layers of the image.
        layers: u32,
        /// Bytes of the blob that were unpacked so far.
        bytes_done: u64,
        /// Size of the blob in bytes.
        bytes_total: u64,
        /// `bytes_done` of all layers together; a layer in the cache counts as done.
        image_bytes_done: u64,
        /// Size of all layers' blobs together in bytes.
        image_bytes_total: u64,
    },
    /// The root file system is mounted.
    #[serde(rename = "rootfs.ready")]
    RootfsReady {
        /// Digest of the image's manifest; absent in a box without an image.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<String>,
        /// Number of layers.
        layers: u32,
        /// Layers that were in the cache already.
        cache_hits: u32,
        /// Bytes of regular files that were unpacked for this start.
        unpacked_bytes: u64,
        /// How the root was made.
        root: RootMethod,
        /// Where what the box writes is kept.
        upper: UpperPlace,
        /// How much the box can write, in MiB; absent: no limit of its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk_mib: Option<u32>,
        /// Time it took.
        duration_ms: u64,
    },
    /// `--prepare`: everything up to the mounted root worked and was undone.
    #[serde(rename = "prepare.done")]
    PrepareDone {},
    /// libkrun is about to be entered.
    #[serde(rename = "vm.starting")]
    VmStarting {
        /// Number of virtual CPUs.
        vcpus: u8,
        /// Memory of the guest in MiB.
        memory_mib: u32,
    },
    /// PID 1 of the guest has made its mounts and started the workload.
    #[serde(rename = "guest.started")]
    GuestStarted {
        /// Version of the guest program, as semver.
        guest_version: String,
        /// Pid of the workload in the guest; absent in an agent-only box.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        workload_pid: Option<u32>,
    },
    /// The agent answered a health check for the first time.
    #[serde(rename = "agent.ready")]
    AgentReady {
        /// Where the time since the start of the shim went.
        phases: BootPhases,
    },
    /// The box has another state.
    #[serde(rename = "state.changed")]
    StateChanged {
        /// State before.
        from: BoxState,
        /// State now.
        to: BoxState,
    },
    /// The box was asked to stop, or the shim decided it.
    #[serde(rename = "stop.requested")]
    StopRequested {
        /// Who asked.
        cause: StopCause,
        /// Signal that the workload gets first.
        signal: String,
        /// How long the workload may take before it is killed.
        grace_ms: u64,
    },
    /// The grace period ran out; every process of the guest is killed.
    #[serde(rename = "stop.killed")]
    StopKilled {},
    /// The workload ended, as the guest reported it.
    #[serde(rename = "guest.exited")]
    GuestExited {
        /// Exit status of the workload.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<u8>,
        /// Signal that ended the workload.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<u8>,
    },
    /// Events that may be dropped were dropped here, because the reader was slow.
    #[serde(rename = "events.dropped")]
    EventsDropped {
        /// How many.
        count: u64,
    },
    /// Something failed.
    #[serde(rename = "error")]
    Error(ErrorReport),
    /// The end of the box; nothing follows.
    #[serde(rename = "box.stopped")]
    BoxStopped {
        /// Why it ended.
        reason: StopReason,
        /// Exit status of the shim (see [`exit`](crate::exit)); absent when a signal ended the shim.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<u8>,
        /// Signal that ended the workload, or the shim itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<u8>,
        /// Time since the shim started.
        uptime_ms: u64,
    },
    /// A type that this version does not know. Never written.
    #[serde(other, rename = "unknown")]
    Unknown,
}

impl EventKind {
    /// Whether this event may be dropped when the reader is slow.
    #[must_use]
    pub fn is_droppable(&self) -> bool {
        matches!(self, Self::RootfsProgress { .. })
    }
}

/// How a root file system was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RootMethod {
    /// There is nothing in the image, or no image: an empty folder.
    Empty,
    /// An overlay of the shared layers.
    Overlay,
    /// Files that share their blocks with those of the layers, as overlayfs could not be had.
    Reflink,
    /// Copies, as neither overlayfs nor reflinks could be had.
    Copy,
}

/// Where what a box writes to its root is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UpperPlace {
    /// In the box's state folder.
    StateDir,
    /// In the host's memory.
    Memory,
    /// In an image file in the box's state folder.
    Image,
}

/// What a box runs: the image's config and `process`, merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResolvedRun {
    /// First words of the command.
    pub entrypoint: Vec<String>,
    /// Words after them.
    pub args: Vec<String>,
    /// Names of the environment's variables. Values are secrets, and in no event.
    pub env: Vec<String>,
    /// Working directory in the guest.
    pub cwd: String,
    /// `user[:group]`; empty: root.
    pub user: String,
    /// First signal of a stop; what the image says when nobody knows such a signal.
    pub stop_signal: String,
    /// The image's own health check, which the shim does not run. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<ResolvedHealthcheck>,
    /// Directories that the image declares as volumes. Nothing is mounted there: what the box writes
    /// goes to its own private layer, which is what an anonymous volume is for.
    pub volumes: Vec<String>,
    /// Ports on which the workload listens, as the image says; nothing is published.
    pub exposed_ports: Vec<String>,
    /// Texts are cut, or left out, to keep the line short; the box gets all of them.
    pub truncated: bool,
}

/// A health check that an image brings along; what is absent is up to who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResolvedHealthcheck {
    /// `CMD` and a command, or `CMD-SHELL` and a line for the shell.
    pub test: Vec<String>,
    /// Time between two tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Time that a test may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Time after the start in which failures do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u64>,
    /// Failures in a row that mean that the workload is not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

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

/// Who asked for a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// The shim got SIGTERM, SIGINT or SIGHUP.
    Signal,
    /// `resources.timeout_ms` ran out.
    Timeout,
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
    /// The workload could not be started, the shim failed, or the guest was lost; an `error` event says which.
    Failed,
    /// The shim itself was ended by a signal, or vanished (made by the supervisor).
    Killed,
}
