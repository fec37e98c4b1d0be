//! What the shim and its unpacker tell each other: lines of JSON.

use std::path::PathBuf;

use a3s_box_core::ErrorReport;
use a3s_box_core::config::{RootKind, SeccompMode};
use a3s_box_oci::{Layer, Limits, Progress};
use serde::{Deserialize, Serialize};

/// What the unpacker is to do. It is the only line on its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) cache_dir: PathBuf,
    pub(crate) layout: PathBuf,
    pub(crate) layers: Vec<Layer>,
    pub(crate) limits: Limits,
    pub(crate) kind: RootKind,
    pub(crate) seccomp: SeccompMode,
}

/// A line on the standard output of the unpacker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// Progress of a layer, given by its index.
    Progress { layer: usize, progress: Progress },
    /// All layers are in the cache. `hits` of them were there before.
    Done { hits: usize, unpacked_bytes: u64 },
    /// The work has failed.
    Failed(ErrorReport),
}
