//! Events: one JSON object a line on the shim's standard output.
//!
//! ```text
//! {"v":1,"seq":3,"time":"2026-01-31T09:00:00.123Z","elapsed_ms":41,"box_id":"demo","type":"vm.starting",…}
//! ```
//!
//! `seq` starts at 0 and has no gaps; where events had to be dropped because the reader was slow,
//! `events.dropped` says how many (they had no `seq` yet). Only progress, metrics and the like are
//! dropped; of changes of state and health that wait, later ones are merged into one. Exactly one
//! `box.stopped` ends the stream of a shim that was not itself killed. A reader ignores types
//! and fields that it does not know.
//!
//! ```text
//! shim.started ─ image.resolved? ─ rootfs.progress* ─ rootfs.ready ─ shim.confined? ─ warning? ─ vm.starting ─ guest.started ─ agent.ready
//!              ─ (state.changed | health.changed | workload.notified | metrics | console.truncated | warning)*
//!              ─ stop.requested? ─ stop.killed? ─ guest.exited? ─ error* ─ box.stopped
//! ```

mod confinement;
mod metrics;
mod resolved;
mod stop;

use serde::{Deserialize, Serialize};

pub use self::confinement::{Layer, LayerReport, LayerStatus};
pub use self::metrics::{
    BootPhases, ConsoleMetrics, EventMetrics, GuestMetrics, HealthMetrics, Metrics, ProcessMetrics,
};
pub use self::resolved::{ResolvedHealthcheck, ResolvedRun};
pub use self::stop::{StopCause, StopReason, StopReport, StopStep};
use crate::config::ConfinementLevel;
use crate::{BoxState, ErrorReport, HealthState};

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
    /// `--gc`: the layer cache was brought within `cache`.
    #[serde(rename = "cache.collected")]
    CacheCollected {
        /// Layers that were removed.
        removed: u64,
        /// Their bytes.
        freed_bytes: u64,
        /// Layers that are left.
        kept: u64,
        /// Their bytes.
        kept_bytes: u64,
    },
    /// `--verify`: the cached layers of the image were compared with its blobs.
    #[serde(rename = "cache.verified")]
    CacheVerified {
        /// Layers that are what their blobs say.
        intact: u64,
        /// Layers that were not, and have been unpacked again.
        rebuilt: Vec<DamagedLayer>,
        /// Layers that are not, and that boxes use.
        in_use: Vec<DamagedLayer>,
    },
    /// The shim has confined itself, as far as `confinement.level` asks and this host allows.
    #[serde(rename = "shim.confined")]
    ShimConfined {
        /// What was asked for.
        level: ConfinementLevel,
        /// Each layer, and what became of it.
        layers: Vec<LayerReport>,
    },
    /// Something that whoever runs the box should know; it goes on.
    #[serde(rename = "warning")]
    Warning {
        /// Stable name of what it is about.
        code: WarningCode,
        /// The same for people, in one line.
        message: String,
    },
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
    /// Health checks say something else than before.
    #[serde(rename = "health.changed")]
    HealthChanged {
        /// Health before.
        from: HealthState,
        /// Health now.
        to: HealthState,
        /// Why the last check failed; absent when it did not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<HealthCause>,
        /// The same for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// Failures in a row.
        failures: u32,
    },
    /// The workload said something about itself on `$NOTIFY_SOCKET`. At most ten a second; may be
    /// dropped.
    #[serde(rename = "workload.notified")]
    WorkloadNotified {
        /// Whether it has said `READY=1`.
        ready: bool,
        /// Whether it has said `STOPPING=1`.
        stopping: bool,
        /// Its last `STATUS=`, cut to 256 characters.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<String>,
    },
    /// Figures, each `events.metrics_interval_ms` from the time the box is ready. May be dropped.
    #[serde(rename = "metrics")]
    Metrics(Box<Metrics>),
    /// Output of the workload was dropped. At most one a second; may be dropped.
    #[serde(rename = "console.truncated")]
    ConsoleTruncated {
        /// Bytes that are not kept (any more), since the start.
        discarded_bytes: u64,
        /// Why those since the last such event are not.
        cause: TruncationCause,
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
        /// How the stop went, if one was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stop: Option<StopReport>,
    },
    /// A type that this version does not know. Never written.
    #[serde(other, rename = "unknown")]
    Unknown,
}

impl EventKind {
    /// Whether this event may be dropped when the reader is slow.
    #[must_use]
    pub fn is_droppable(&self) -> bool {
        matches!(
            self,
            Self::RootfsProgress { .. }
                | Self::WorkloadNotified { .. }
                | Self::Metrics(_)
                | Self::ConsoleTruncated { .. }
        )
    }
}

/// What a `warning` is about. A code never changes its meaning; new ones may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WarningCode {
    /// The guest has the host's own network, loopback included (`network.mode` `tsi`).
    HostNetwork,
    /// The program that carried the guest's network has ended; the guest has none any more.
    NetworkLost,
}

/// Why a health check failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HealthCause {
    /// No connection, or it broke before the answer.
    Transport,
    /// No answer within `agent.health.timeout_ms`.
    Timeout,
    /// The answer is that the agent does not serve.
    NotServing,
    /// The answer is not one to a health check.
    Protocol,
}

/// Why output of the workload is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TruncationCause {
    /// It was the oldest, and `console.max_mib` was reached.
    Size,
    /// The console's file could not be written.
    WriteFailed,
    /// The console is a pipe or device whose reader did not read.
    SlowReader,
}

/// How a layer in the cache differed from its blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DamagedLayer {
    /// The layer's `DiffID`.
    pub layer: String,
    /// The first path that differed.
    pub path: String,
    /// What about it.
    pub what: String,
}

/// How a root file system was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RootMethod {
    /// There is nothing in the image, or no image: an empty directory.
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
    /// In the box's state directory.
    StateDir,
    /// In the host's memory.
    Memory,
    /// In an image file in the box's state directory.
    Image,
}
