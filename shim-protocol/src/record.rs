//! What a box leaves in its state directory, for a supervisor that was not there.
//!
//! ```text
//! <paths.state_dir>/<id>/
//! ├── run.json     RunRecord, written once the directory is the shim's; locked (flock) while it lives
//! └── exit.json    ExitRecord, written before the shim ends; removed by the next start
//! ```
//!
//! Liveness is the lock and nothing else: a pid may be another process's by now. Without a lock and
//! without an `exit.json` that is whole, the shim was killed, or the host was.

use serde::{Deserialize, Serialize};

use crate::ErrorReport;
use crate::event::{StopReason, StopReport};

/// Version of both records (`v`).
pub const RECORD_VERSION: u32 = 1;

/// Longest record. A real one has some hundred bytes, and an error's causes.
pub const MAX_RECORD_BYTES: usize = 256 * 1024;

/// Which process a live box is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RunRecord {
    /// Version of this format: 1.
    pub v: u32,
    /// Id of the box.
    pub box_id: String,
    /// Version of the shim, as semver.
    pub version: String,
    /// Process id of the shim, in its own pid namespace.
    pub pid: u32,
    /// When that process started, in clock ticks since the host's boot (proc(5), `stat`, field 22).
    pub start_time_ticks: u64,
    /// Which boot of the host that was (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Wall clock, RFC 3339, UTC, milliseconds.
    pub started: String,
}

/// How a box ended: what its `box.stopped` and `error` events say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExitRecord {
    /// Version of this format: 1.
    pub v: u32,
    /// Id of the box.
    pub box_id: String,
    /// Process id that the shim had.
    pub pid: u32,
    /// Which boot of the host that was.
    pub boot_id: String,
    /// Wall clock, RFC 3339, UTC, milliseconds.
    pub ended: String,
    /// Why it ended.
    pub reason: StopReason,
    /// Exit status of the shim (see [`exit`](crate::exit)).
    pub exit_code: u8,
    /// Signal that ended the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// Time from the start of the shim to its end.
    pub uptime_ms: u64,
    /// How the stop went, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopReport>,
    /// What failed, if something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}
