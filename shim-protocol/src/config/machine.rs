//! The machine: size, mounts, console.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Size of the machine and limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ResourcesConfig {
    /// Virtual CPUs, 1 to 16.
    pub vcpus: u8,
    /// Memory of the guest in MiB, at least 128. It is taken from the host as it is used.
    pub memory_mib: u32,
    /// How much a box can write to its root, in MiB, 16 to 8388608; the file system's own records
    /// count. Absent: no limit of the box's own in `state_dir`, half of the host's memory in `memory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u32>,
    /// Where what a box writes to its root is kept until its end.
    pub disk: DiskPlace,
    /// Limits of the workload in the guest: `{"nofile": [soft, hard]}`.
    pub rlimits: BTreeMap<RlimitName, Rlimit>,
    /// The box's own cgroup (version 2), as `/sys/fs/cgroup/boxes/demo`: made if missing, in one that is
    /// delegated to the shim's user. It limits memory (`memory_mib` and what the shim itself takes),
    /// CPU time (`vcpus`) and the number of threads. Absent: the shim stays where it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Ends the box after this time, counted from the start of the shim; exit status 124.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl Default for ResourcesConfig {
    fn default() -> Self {
        Self {
            vcpus: 1,
            memory_mib: 512,
            disk_mib: None,
            disk: DiskPlace::default(),
            rlimits: BTreeMap::new(),
            cgroup: None,
            timeout_ms: None,
        }
    }
}

/// Where what a box writes to its root is kept until its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskPlace {
    /// In `paths.state_dir`; with `disk_mib` in an image file there, which needs root and the
    /// programs `mkfs.ext4` and `mount`.
    #[default]
    StateDir,
    /// In the host's memory, beside the guest's own.
    Memory,
}

/// Soft and hard limit, in the unit of the resource; 18446744073709551615 is "unlimited".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rlimit(pub u64, pub u64);

/// A resource limit, named as in setrlimit(2) without `RLIMIT_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are those of setrlimit(2)")]
pub enum RlimitName {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// A file system besides the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum MountConfig {
    /// A directory of the host.
    Virtiofs {
        /// Directory of the host. Absolute; must exist.
        source: PathBuf,
        /// Directory in the guest. Absolute; made if missing.
        target: String,
        /// Whether writes are refused, by the device.
        #[serde(default)]
        read_only: bool,
    },
    /// Memory of the guest.
    Tmpfs {
        /// Directory in the guest. Absolute; made if missing.
        target: String,
        /// Size limit in MiB; absent: half of the guest's memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_mib: Option<u64>,
    },
}

/// Where the workload's output goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {
    /// File that standard output and error are appended to. Absolute. Absent: `console.log` in the
    /// box's state directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Most MiB that the file and the one before it (the same name with `.1` at its end) take
    /// together, 1 to 1048576; what is older is dropped. A pipe or device is not limited.
    pub max_mib: u32,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        // A workload that writes a line a second needs two weeks for it; a flood costs a known amount.
        Self { path: None, max_mib: 64 }
    }
}
