//! The size of the machine, its limits, its mounts and its console: `resources`, `mounts` and
//! `console` of a config.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Size of the machine, and limits of the box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ResourcesConfig {
    /// Number of virtual CPUs: 1 to 16. Default: 1.
    pub vcpus: u8,
    /// Memory of the guest in MiB: at least 128. Default: 512. The host allocates each page when
    /// the guest first uses it.
    pub memory_mib: u32,
    /// Size limit of the writable layer of the root in MiB: 16 to 8388608. The metadata of the file
    /// system counts. Absent: with `disk` `state_dir` a block root has 10240, or on a small file
    /// system the largest power of two in half of the space beyond `disk_reserve_mib`, and a shared
    /// root has no limit of its own; with `memory` the limit is half of the memory of the guest (block root)
    /// or of the host (shared root), which is the default of a tmpfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u32>,
    /// Place of the writable layer of the root, which exists until the box ends. Default:
    /// `state_dir`.
    pub disk: DiskPlace,
    /// Whether the next start of the same id continues with the disk of this box. Default: false,
    /// so the disk exists until the box ends. It needs a block root and `disk` `state_dir`. The disk exists until the box is destroyed, and `disk_mib` cannot change
    /// meanwhile.
    pub disk_keep: bool,
    /// Free space in MiB that the file system of `paths.state_dir` must have when a box starts with
    /// `disk` `state_dir`. Default: 256. What a box writes takes space only when it writes, and writes
    /// fail once the host has no space left. 0: the free space is not checked.
    pub disk_reserve_mib: u32,
    /// Resource limits of the workload in the guest, for example `{"nofile": [1024, 4096]}`.
    /// Default: none, so the workload has the limits of the guest program.
    pub rlimits: BTreeMap<RlimitName, Rlimit>,
    /// Absolute path of the box's own cgroup (version 2), for example `/sys/fs/cgroup/boxes/demo`.
    /// The shim creates it if it is missing, so the directory above must be delegated to the shim's
    /// user. An existing cgroup must belong to this user, and must have no child and no process other
    /// than the shim. The cgroup limits memory (`memory_mib` and the shim's own memory), as much swap, CPU
    /// time (`vcpus`) and the number of threads. Absent: the shim stays in the cgroup that it was
    /// started in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Limits for the use of the host's disks. They need `cgroup`. Default: none.
    pub io: IoConfig,
    /// Time in milliseconds from the start of the shim until it stops the box: at least 1. The exit
    /// status is then 124. Absent: no limit.
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
            disk_keep: false,
            // Enough for the records, logs and metadata of many boxes while an operator makes
            // space.
            disk_reserve_mib: 256,
            rlimits: BTreeMap::new(),
            cgroup: None,
            io: IoConfig::default(),
            timeout_ms: None,
        }
    }
}

/// Limits for the use of each disk of the host that holds the image, the cache, the box directory
/// or a share (`io.max` of cgroups). File systems in memory have no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct IoConfig {
    /// MiB that the box may read in a second: at least 1. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_mib_per_s: Option<u32>,
    /// MiB that the box may write in a second: at least 1. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_mib_per_s: Option<u32>,
}

/// Place of the writable layer of the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskPlace {
    /// In the box directory. The layer of a block root is in an ext4 image file there, which needs
    /// the helper program `mkfs.ext4`. That of a shared root is in such a file only with `disk_mib`,
    /// which needs root and `mount` as well.
    #[default]
    StateDir,
    /// In a tmpfs: of the guest, for a block root, or of the host, in addition to the memory of the
    /// guest, for a shared one.
    Memory,
}

/// Soft limit and hard limit, in the unit of the resource as `setrlimit(2)` defines it. The soft
/// limit is at most the hard limit. 18446744073709551615 (`RLIM_INFINITY`) means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rlimit(pub u64, pub u64);

/// Name of a resource limit: the name in `setrlimit(2)`, in lower case and without `RLIMIT_`.
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

/// A file system that the guest mounts in addition to its root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum MountConfig {
    /// A share: a directory of the host that the guest sees. A box has at most 6 shares, and at
    /// most 5 with `network.mode` `passt`, because each device takes an interrupt of the machine.
    /// The disks of a block root are two such devices, or one if `resources.disk` is `memory`.
    Virtiofs {
        /// Absolute path of the directory on the host. It must exist when the config is validated.
        /// It may neither contain nor be inside of `paths.state_dir` or `paths.cache_dir`.
        source: PathBuf,
        /// Absolute path of the mount point in the guest, below `/` and without `..`. It is created
        /// if it is missing.
        target: String,
        /// Whether the device and the host refuse writes. Default: false.
        #[serde(default)]
        read_only: bool,
        /// What the guest may keep of the files in its memory.
        #[serde(default)]
        cache: ShareCache,
    },
    /// A tmpfs in the memory of the guest.
    Tmpfs {
        /// Absolute path of the mount point in the guest, below `/` and without `..`. It is created
        /// if it is missing.
        target: String,
        /// Size limit in MiB: at least 1. Absent: half of the guest's memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_mib: Option<u64>,
    },
}

/// What the guest may keep of the files of a share.
///
/// With each value it keeps names for up to 5 seconds, and the content of a file until the file is
/// opened again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ShareCache {
    /// No attributes: the guest asks the host for the size, the mode and the times of a file
    /// whenever it uses them. It sees at once that the host has changed a file.
    #[default]
    None,
    /// Attributes for up to 5 seconds. Programs that look at many files again and again are faster.
    Auto,
}

/// Destination of the workload's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {
    /// Absolute path of the file, pipe or device that standard output and standard error are
    /// appended to. It must not be a symbolic link, and must not be in a share. No other user may be
    /// able to replace it. Absent: `console.log` in the box directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Size limit in MiB of the file and the previous file (the same name with `.1` at its end)
    /// together: 1 to 1048576. Default: 64. The oldest output is dropped. The limit does not apply
    /// to a pipe or device.
    pub max_mib: u32,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        // A line of 50 bytes each second reaches the limit after two weeks, and a workload that
        // writes without end takes a known amount of the disk.
        Self { path: None, max_mib: 64 }
    }
}
