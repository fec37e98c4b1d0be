//! The cgroup of a box (cgroups(7), version 2): what the host's kernel lets a guest take, whatever the VMM
//! thinks that it does.
//!
//! The shim makes `resources.cgroup` if it is not there, sets its limits, and moves itself into it before
//! it has a thread or a child. It cannot remove what it is in: `VmManager` does, or whoever made the directory
//! above it, as systemd for a service.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use a3s_box_core::config::DiskPlace;
use a3s_box_sys::HostError;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::spec::VmSpec;

/// What a shim takes beside the guest's memory: libkrun, the guest's kernel, page tables, and what it has
/// in flight. Measured: see `docs/benchmarks.md`.
const OVERHEAD_MIB: u64 = 128;

/// Threads beside those of the virtual CPUs: libkrun has three to a device, of which there are at most
/// eleven, and the shim some of its own; and the programs that prepare a box.
const OTHER_TASKS: u32 = 64;

/// Period of `cpu.max`, and what one CPU has of it.
const CPU_PERIOD_US: u64 = 100_000;

/// The limits cannot be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("`{}` is not in a file system of cgroups, version 2", path.display())]
    NotACgroup { path: PathBuf },
    #[error("`{}` has no controller `{controller}` to pass on", parent.display())]
    NotDelegated { controller: &'static str, parent: PathBuf },
    #[error(transparent)]
    Host(#[from] HostError),
}

impl CgroupError {
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::NotACgroup { .. } => {
                "name a directory below one that is delegated in `/sys/fs/cgroup`"
            }
            Self::NotDelegated { .. } | Self::Host(_) => {
                "delegate the directory above to the shim's user, with memory, pids and cpu in its \
                 `cgroup.subtree_control`, and no process in it (systemd: `Delegate=memory pids cpu`)"
            }
        }
    }
}

/// Moves this process into the box's cgroup, if it has one. To be called before there is a thread or
/// a child.
pub(crate) fn join(spec: &VmSpec) -> Result<(), CgroupError> {
    let Some(directory) = &spec.cgroup else { return Ok(()) };
    let parent = directory.parent().unwrap_or(directory);
    let found = statfs(parent).map_err(HostError::at("look at", parent))?;
    if found.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(CgroupError::NotACgroup { path: directory.clone() });
    }
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(HostError::at("make", directory)(error).into());
        }
        _ => {}
    }
    let memory_bytes = memory_mib(spec.memory_mib, spec.disk, spec.disk_mib) << 20;
    let cpu_us = u64::from(spec.vcpus) * CPU_PERIOD_US;
    let tasks = u32::from(spec.vcpus) + OTHER_TASKS;
    set(directory, "memory", "memory.max", &memory_bytes.to_string())?;
    // A box is one process; if it has others, half of it is of no use.
    set(directory, "memory", "memory.oom.group", "1")?;
    set(directory, "pids", "pids.max", &tasks.to_string())?;
    set(directory, "cpu", "cpu.max", &format!("{cpu_us} {CPU_PERIOD_US}"))?;
    let members = directory.join("cgroup.procs");
    write(&members, &std::process::id().to_string())
        .map_err(HostError::at("move the shim into", directory))?;
    Ok(())
}

/// What a box may take: its guest's memory, the shim's, and what its disk holds, if that is in memory.
fn memory_mib(guest_mib: u32, disk: DiskPlace, disk_mib: Option<u32>) -> u64 {
    let disk_mib = match disk {
        // Without a limit of its own it has to do with what the guest leaves.
        DiskPlace::Memory => disk_mib.unwrap_or(0),
        DiskPlace::StateDir => 0,
    };
    u64::from(guest_mib) + u64::from(disk_mib) + OVERHEAD_MIB
}

/// Sets a limit; asks the cgroup above to pass the controller on, if it does not yet.
fn set(
    directory: &Path,
    controller: &'static str,
    name: &str,
    value: &str,
) -> Result<(), CgroupError> {
    let file = directory.join(name);
    if !file.exists() {
        let parent = directory.parent().unwrap_or(directory);
        let control = parent.join("cgroup.subtree_control");
        let not_delegated =
            |_refusal| CgroupError::NotDelegated { controller, parent: parent.to_owned() };
        write(&control, &format!("+{controller}")).map_err(not_delegated)?;
    }
    Ok(write(&file, value).map_err(HostError::at("set", &file))?)
}

/// Writes to a file of the kernel's, which is never made.
fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_in_memory_is_not_taken_from_the_guests() {
        let beside_512 = |disk, disk_mib| memory_mib(512, disk, disk_mib) - 512 - OVERHEAD_MIB;
        assert_eq!(beside_512(DiskPlace::Memory, Some(64)), 64);
        assert_eq!(beside_512(DiskPlace::Memory, None), 0);
        assert_eq!(beside_512(DiskPlace::StateDir, Some(64)), 0);
        assert_eq!(memory_mib(u32::MAX, DiskPlace::Memory, Some(u32::MAX)) >> 33, 1);
    }
}
