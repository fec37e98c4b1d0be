//! [`RunRecord`] and [`ExitRecord`]: the files in a box directory that tell a restarted supervisor
//! which process a box is, and how it ended.
//!
//! ```text
//! <paths.state_dir>/<id>/
//! ├── run.json     RunRecord; the shim locks the file with flock(2), writes it, and holds the lock
//! └── exit.json    ExitRecord; renamed into place before `box.stopped`, removed by the next start
//! ```
//!
//! Only the lock proves that a box is live, because the kernel may have given its pid to another
//! process. If there is neither a lock nor a complete `exit.json`, the shim was killed or the host
//! went down. `inspect` of the crate `a3s-box-runtime` applies these rules.

use serde::{Deserialize, Serialize};

use crate::ErrorReport;
use crate::event::{StopReason, StopReport};

/// Version of the format of both records, the value of their `v`.
pub const RECORD_VERSION: u32 = 1;

/// Maximum length of a record in bytes. Readers ignore a longer file. A record has a few hundred
/// bytes, and an exit record also the causes of its error.
pub const MAX_RECORD_BYTES: usize = 256 * 1024;

/// Content of `run.json`: the process of a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RunRecord {
    /// Version of the format: 1.
    pub v: u32,
    /// Id of the box.
    pub box_id: String,
    /// Semantic version of the shim.
    pub version: String,
    /// Process id of the shim, in the pid namespace of the shim.
    pub pid: u32,
    /// Start time of this process, in clock ticks since the boot of the host (field 22 of
    /// `/proc/<pid>/stat`, `proc(5)`). With the pid, it identifies a process of one boot.
    pub start_time_ticks: u64,
    /// Id of the boot of the host in which the shim started (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Wall-clock time of the start, as RFC 3339 in UTC with milliseconds.
    pub started: String,
}

/// Content of `exit.json`: how a box ended, with the same facts as its `box.stopped` and `error`
/// events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExitRecord {
    /// Version of the format: 1.
    pub v: u32,
    /// Id of the box.
    pub box_id: String,
    /// Process id of the shim.
    pub pid: u32,
    /// Id of the boot of the host in which the shim started.
    pub boot_id: String,
    /// Wall-clock time of the end, as RFC 3339 in UTC with milliseconds.
    pub ended: String,
    /// Why the box ended.
    pub reason: StopReason,
    /// Exit status of the shim (see [`exit`](crate::exit)).
    pub exit_code: u8,
    /// Number of the signal that ended the workload, or that requested the stop of a box without a
    /// report of its guest. Absent: none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// Time from the start of the shim to the end of the box in milliseconds.
    pub uptime_ms: u64,
    /// The steps of the stop. Absent: the box ended without a stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopReport>,
    /// The error that ended the box, without its causes if the disk was too full for them. Absent:
    /// the box ended without an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}
