//! [`Event`]: one JSON object for each line of the shim's standard output.
//!
//! ```text
//! {"v":1,"seq":3,"time":"2026-01-31T09:00:00.123Z","elapsed_ms":41,"box_id":"a","type":…}
//! ```
//!
//! `seq` starts at 0 and has no gaps. While 256 lines wait for a slow supervisor, the shim drops
//! the events for which [`EventKind::is_droppable`] returns true, before they get a `seq`. While
//! 1024 lines wait, it merges further changes of state and of health into one of each kind. It
//! emits the number of lost events as `events.dropped`, and loses no other events. Exactly one
//! `box.stopped` ends the stream of a box, unless the shim itself is killed.
//!
//! A reader must ignore types and fields that it does not know. `Event` deserializes an unknown
//! type as [`EventKind::Unknown`].
//!
//! The order of the events of a box that becomes ready by a health check (`?`: at most once, `*`:
//! any number of times; `events.dropped` may come at any place):
//!
//! ```text
//! shim.started ─ image.resolved? ─ rootfs.progress* ─ rootfs.ready ─ shim.confined? ─ warning?
//!   ─ vm.starting ─ guest.started ─ agent.ready
//!   ─ (state.changed | health.changed | workload.notified | metrics | console.truncated |
//!      network.refused | warning)*
//!   ─ stop.requested? ─ stop.killed? ─ guest.exited? ─ error* ─ box.stopped
//! ```
//!
//! With `agent.readiness` `started` or `notify`, `state.changed` to `ready` does not wait for
//! `agent.ready`. If a phase fails, `error` and `box.stopped` follow at once.
//!
//! An event is read and matched by its kind. [`EventDecoder`](crate::EventDecoder) does the same
//! for a stream that arrives in pieces.
//!
//! ```
//! use a3s_box_core::event::EventKind;
//! use a3s_box_core::{BoxState, Event};
//!
//! let line = concat!(
//!     r#"{"v":1,"seq":9,"time":"2026-01-31T09:00:00.702Z","elapsed_ms":702,"box_id":"demo","#,
//!     r#""type":"state.changed","from":"created","to":"ready"}"#,
//! );
//! let event: Event = serde_json::from_str(line)?;
//! assert_eq!((event.seq, event.box_id.as_str()), (9, "demo"));
//! assert!(matches!(event.kind, EventKind::StateChanged { to: BoxState::Ready, .. }));
//! // The serialized event is the same line.
//! assert_eq!(serde_json::to_string(&event)?, line);
//! # Ok::<(), serde_json::Error>(())
//! ```

mod confinement;
mod metrics;
mod resolved;
mod stop;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use self::confinement::{Layer, LayerReport, LayerStatus};
pub use self::metrics::{
    BootPhases, ConsoleMetrics, EventMetrics, GuestMetrics, HealthMetrics, Metrics, ProcessMetrics,
};
pub use self::resolved::{ResolvedHealthcheck, ResolvedRun};
pub use self::stop::{StopCause, StopReason, StopReport, StopStep};
use crate::config::{ConfinementLevel, RootKind};
use crate::{BoxState, ErrorReport, HealthState};

/// Version of the event format, the value of `v` in each event.
pub const EVENT_VERSION: u32 = 1;

/// One line of the event stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Version of the event format: 1.
    pub v: u32,
    /// Position of the event in the stream, from 0, without gaps.
    pub seq: u64,
    /// Wall-clock time of the event, as RFC 3339 in UTC with milliseconds.
    pub time: String,
    /// Time since the start of the shim in milliseconds, on the monotonic clock.
    pub elapsed_ms: u64,
    /// Id of the box. It is empty until the config has been read.
    pub box_id: String,
    /// The kind of the event and its own fields.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The kind of an event: its `type` and the fields of this type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type")]
#[non_exhaustive]
pub enum EventKind {
    /// The config is valid, and the shim begins with the first phase.
    #[serde(rename = "shim.started")]
    ShimStarted {
        /// Semantic version of the shim.
        version: String,
        /// Process id of the shim, which is also the VMM.
        pid: u32,
    },
    /// The image was found, and the digests of its documents are correct. Its layers are unpacked
    /// next.
    #[serde(rename = "image.resolved")]
    ImageResolved {
        /// Digest of the image's manifest.
        image: String,
        /// `image.reference` of the config. Absent: the config has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// Platform of the image, as `os/architecture[/variant]`.
        platform: String,
        /// Number of layers of the image.
        layers: u32,
        /// Size of the blobs of all layers together in bytes, compressed as they are in the layout.
        image_bytes_total: u64,
        /// The command, environment and stop signal of the box.
        // `Box` keeps the other kinds of events small.
        run: Box<ResolvedRun>,
    },
    /// A layer is being unpacked. The shim emits at most ten of these events each second, and may
    /// drop them.
    #[serde(rename = "rootfs.progress")]
    RootfsProgress {
        /// Digest of the layer's blob.
        layer: String,
        /// Position of the layer, from 1 for the lowest one.
        layer_number: u32,
        /// Number of layers of the image.
        layers: u32,
        /// Number of bytes of the blob that are unpacked.
        bytes_done: u64,
        /// Size of the blob in bytes.
        bytes_total: u64,
        /// Sum of `bytes_done` of all layers. A layer in the cache counts with its full size.
        image_bytes_done: u64,
        /// Size of the blobs of all layers together in bytes.
        image_bytes_total: u64,
    },
    /// The root file system is ready for the guest.
    #[serde(rename = "rootfs.ready")]
    RootfsReady {
        /// Digest of the image's manifest. Absent: the box has no image.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<String>,
        /// Number of layers of the image.
        layers: u32,
        /// Number of layers that were in the cache before this start.
        cache_hits: u32,
        /// Size of the regular files that were unpacked for this start, in bytes.
        unpacked_bytes: u64,
        /// The kind of the root.
        kind: RootKind,
        /// Why the root is of this kind.
        kind_reason: RootKindReason,
        /// How the root was made of the layers.
        root: RootMethod,
        /// Place of the writable layer.
        upper: UpperPlace,
        /// Size limit of the writable layer in MiB. Absent: the box has no limit of its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk_mib: Option<u32>,
        /// Time from the search for the image to the mounted root, in milliseconds.
        duration_ms: u64,
    },
    /// `--prepare`: everything up to the mounted root has succeeded and was undone.
    #[serde(rename = "prepare.done")]
    PrepareDone {},
    /// `--gc`: the layer cache is within the limits of `cache`.
    #[serde(rename = "cache.collected")]
    CacheCollected {
        /// Number of layers that were removed.
        removed: u64,
        /// Size of the removed layers in bytes.
        freed_bytes: u64,
        /// Number of layers that are left.
        kept: u64,
        /// Size of these layers in bytes.
        kept_bytes: u64,
    },
    /// `--verify`: the cached layers of the image were compared with its blobs.
    #[serde(rename = "cache.verified")]
    CacheVerified {
        /// Number of layers that match their blobs.
        intact: u64,
        /// Layers that differed from their blobs and have been unpacked again.
        rebuilt: Vec<DamagedLayer>,
        /// Layers that differ from their blobs and were kept, because boxes use them. An `error`
        /// event follows.
        in_use: Vec<DamagedLayer>,
    },
    /// The shim has confined itself as `confinement.level` requires. It does not emit this event
    /// with level `none`.
    #[serde(rename = "shim.confined")]
    ShimConfined {
        /// The level in the config.
        level: ConfinementLevel,
        /// The status of each layer.
        layers: Vec<LayerReport>,
    },
    /// A fact that the user of the box should notice. The box continues.
    #[serde(rename = "warning")]
    Warning {
        /// Stable name of the fact.
        code: WarningCode,
        /// Description for people, in one line.
        message: String,
    },
    /// The shim enters libkrun, which starts the VM.
    #[serde(rename = "vm.starting")]
    VmStarting {
        /// Number of virtual CPUs.
        vcpus: u8,
        /// Memory of the guest in MiB.
        memory_mib: u32,
        /// Whether the guest gets an IPv6 address. Absent: `network.mode` is not `passt`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ipv6: Option<bool>,
    },
    /// The guest program has made the mounts and started the workload.
    #[serde(rename = "guest.started")]
    GuestStarted {
        /// Semantic version of the guest program, as it reports it.
        guest_version: String,
        /// Process id of the workload in the guest. Absent: the box has no workload.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        workload_pid: Option<u32>,
    },
    /// A health check has succeeded for the first time.
    #[serde(rename = "agent.ready")]
    AgentReady {
        /// The time since the start of the shim, divided into phases.
        phases: BootPhases,
    },
    /// The state of the box has changed. The shim emits at most ten changes each second that the
    /// guest causes, and always the last one.
    #[serde(rename = "state.changed")]
    StateChanged {
        /// State before the change.
        from: BoxState,
        /// State after the change.
        to: BoxState,
    },
    /// The health of the box has changed.
    #[serde(rename = "health.changed")]
    HealthChanged {
        /// Health before the change.
        from: HealthState,
        /// Health after the change.
        to: HealthState,
        /// Why the last check failed. Absent: the last check succeeded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<HealthCause>,
        /// Description of the failure for people. Absent: the last check succeeded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// Number of failures since the last success. Failures in the start period do not count.
        failures: u32,
    },
    /// The workload has sent `READY`, `STOPPING` or `STATUS` to `$NOTIFY_SOCKET` (`sd_notify(3)`).
    /// The shim emits at most ten of these events each second, and may drop them.
    #[serde(rename = "workload.notified")]
    WorkloadNotified {
        /// Whether it has sent `READY=1`.
        ready: bool,
        /// Whether it has sent `STOPPING=1`.
        stopping: bool,
        /// The value of its last `STATUS=`, cut to 256 characters, with control characters
        /// replaced. Absent: it has sent none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<String>,
    },
    /// Metrics of the box, every `events.metrics_interval_ms` from ready on. The shim may drop
    /// these events.
    #[serde(rename = "metrics")]
    Metrics(Box<Metrics>),
    /// Output of the workload was discarded. The shim emits at most one of these events each
    /// second, and may drop it.
    #[serde(rename = "console.truncated")]
    ConsoleTruncated {
        /// Number of bytes that were discarded since the start of the shim.
        discarded_bytes: u64,
        /// Why the last of these bytes were discarded.
        cause: TruncationCause,
    },
    /// The guest sent packets to a destination that `network.egress` or `network.not_host` does not
    /// let it reach, or that no guest may reach, or it asked for a name that no rule has, or a name
    /// led to an address that no name may lead to. The shim emits at most ten of these events at
    /// once and one a second on average, each destination at most once in ten seconds, and may drop
    /// them.
    #[serde(rename = "network.refused")]
    NetworkRefused {
        /// Protocol of the packets.
        protocol: RefusedProtocol,
        /// Address to which the guest sent them. For an address that was left out of an answer,
        /// this address.
        address: IpAddr,
        /// Port to which the guest sent them. Absent: the protocol is ICMP, they are fragments, or
        /// the address was left out of the answer for a name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// Name for which the gate has answered this address before, for which the guest has asked,
        /// or which led to this address. Absent: there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Number of packets since the last event about this destination.
        count: u64,
    },
    /// The stop of the box has begun, by a stop request or another stop trigger.
    #[serde(rename = "stop.requested")]
    StopRequested {
        /// The stop trigger.
        cause: StopCause,
        /// Full name of the first signal to the workload, for example `SIGTERM`.
        signal: String,
        /// Grace period in milliseconds: the workload is killed when it is over.
        grace_ms: u64,
    },
    /// The guest program kills every process of the guest, because the grace period is over or
    /// another stop request came.
    #[serde(rename = "stop.killed")]
    StopKilled {},
    /// The guest program has reported the end of the workload.
    #[serde(rename = "guest.exited")]
    GuestExited {
        /// Exit status of the workload. Absent: a signal ended it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<u8>,
        /// Number of the signal that ended the workload. Absent: it exited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<u8>,
    },
    /// Events before this one were dropped or merged, because the supervisor read too slowly.
    #[serde(rename = "events.dropped")]
    EventsDropped {
        /// Number of events that were lost since the last event of this type.
        count: u64,
    },
    /// A phase or the box has failed.
    #[serde(rename = "error")]
    Error(ErrorReport),
    /// The box has ended. No event follows. The shim puts `exit.json` in place before this event.
    #[serde(rename = "box.stopped")]
    BoxStopped {
        /// Why the box ended.
        reason: StopReason,
        /// Exit status of the shim. Absent: a signal ended the shim, and its supervisor made this
        /// event.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<u8>,
        /// Number of the signal that ended the workload, that requested the stop of a box without a
        /// report of its guest, or that ended the shim itself. Absent: none did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<u8>,
        /// Time since the start of the shim in milliseconds.
        uptime_ms: u64,
        /// The steps of the stop. Absent: the box ended without a stop.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stop: Option<StopReport>,
    },
    /// An event of a type that this version does not know. Readers get it; the shim never emits it.
    #[serde(other, rename = "unknown")]
    Unknown,
}

impl EventKind {
    /// Returns whether the shim drops this event if the supervisor reads too slowly.
    #[must_use]
    pub fn is_droppable(&self) -> bool {
        // A guest can cause these without end, or a later one replaces them, and none of these kinds
        // reports a start, a stop, an error or an ending (decision 0009).
        matches!(
            self,
            Self::RootfsProgress { .. }
                | Self::WorkloadNotified { .. }
                | Self::Metrics(_)
                | Self::ConsoleTruncated { .. }
                | Self::NetworkRefused { .. }
        )
    }
}

/// Stable name of the fact that a `warning` reports. A code never changes its meaning, but later
/// versions may add codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WarningCode {
    /// `network.mode` is `tsi`: the guest uses the network of the host, including its loopback
    /// device.
    HostNetwork,
    /// passt, which carried the guest's network, has ended. The guest has no network any more.
    NetworkLost,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}

/// Protocol of packets that were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RefusedProtocol {
    /// TCP. The guest got a reset.
    Tcp,
    /// UDP. The guest got the ICMP message "communication administratively prohibited".
    Udp,
    /// ICMP or ICMPv6. The guest got the same message in answer to an echo request.
    Icmp,
    /// DNS, to the name server of the gate. With a port: a question for a name that no rule has;
    /// the guest got the answer that the name does not exist. Without a port: an address that was
    /// left out of the answer for a name.
    Dns,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}

/// Why a health check failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HealthCause {
    /// There was no connection, or it closed before the answer.
    Transport,
    /// No answer came within `agent.health.timeout_ms`.
    Timeout,
    /// The agent answered that it does not serve.
    NotServing,
    /// The answer is malformed, or is not the answer to a health check.
    Protocol,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}

/// Why output of the workload was discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TruncationCause {
    /// The file reached `console.max_mib`, and this was the oldest output.
    Size,
    /// A write to the console file failed.
    WriteFailed,
    /// The console is a pipe or device, and its reader did not read.
    SlowReader,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}

/// A layer in the cache that differs from its blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DamagedLayer {
    /// `DiffID` of the layer: the digest of its uncompressed archive.
    pub layer: String,
    /// The first path that differs.
    pub path: String,
    /// The property that differs, for example `content`.
    pub what: String,
}

/// How a root file system was made of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RootMethod {
    /// The root is an empty directory, because the box has no image or the image has no content.
    Empty,
    /// An overlay mount (overlayfs) of the layers in the cache.
    Overlay,
    /// Copies of the layers that share the blocks of their files (reflinks), because overlayfs was
    /// not available.
    Reflink,
    /// Full copies of the layers, because neither overlayfs nor reflinks were available.
    Copy,
    /// A disk with an EROFS of all layers. The kind of the root is `block`.
    Erofs,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}

/// Why the root of a box is of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RootKindReason {
    /// The config requires this kind, by `root.kind` or by `resources.disk_keep`.
    Config,
    /// The root is `block`, because the config requires nothing else.
    Default,
    /// The root is `shared`, because the guest kernel or libkrun cannot have a `block` root.
    GuestKernel,
    /// The root is `shared`, because the config has more shares than a `block` root leaves devices
    /// for.
    Mounts,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}

/// Place of the writable layer of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UpperPlace {
    /// In the box directory.
    StateDir,
    /// In a tmpfs of the host.
    Memory,
    /// In an ext4 image file in the box directory, until the box ends.
    Image,
    /// In an ext4 image file in the box directory, which the next box of this id gets.
    KeptImage,
    /// In a tmpfs of the guest.
    GuestMemory,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests;
