//! The cgroup of a box (cgroups(7), version 2). The host kernel enforces its limits even on a VMM
//! that a guest has taken over.
//!
//! The shim creates the directory `resources.cgroup` if it is missing, sets its limits, and moves
//! itself into it before it starts a thread or a child. A process cannot remove the cgroup that it
//! is in, so `VmManager` removes it after the box, or the service manager removes it with the
//! unit's own cgroup.
//!
//! An existing cgroup must belong to this user, and must have no other process and no child. The
//! limits of a box would otherwise apply to processes that have nothing to do with it, for example
//! to all services of the host in `system.slice`.

mod disks;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use a3s_box_core::config::{DiskPlace, IoConfig};
use a3s_box_sys::HostError;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::geteuid;

use self::disks::{Disk, DiskError};
use crate::spec::{MountSource, VmSpec};

/// Memory of a shim beside the guest's memory: libkrun, the guest kernel's image, page tables and
/// buffers of devices. The number is measured, see `docs/benchmarks.md`.
const OVERHEAD_MIB: u64 = 128;

/// Threads and processes beside the threads of the virtual CPUs. libkrun starts up to three threads
/// for each of at most eleven devices. The rest is for the shim's own threads, the gate, passt, and
/// the helper programs that prepare a box.
const OTHER_TASKS: u32 = 64;

/// Period of `cpu.max`, which is also the time of one full CPU in it. It is the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// Most bytes that are read of `cgroup.procs`. One process other than the shim suffices to refuse the
/// cgroup.
const MEMBERS_BYTES: u64 = 4096;

/// Why the limits cannot be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("`{}` is not in a file system of cgroups, version 2", path.display())]
    NotACgroup { path: PathBuf },
    #[error("`{}`: found {found}, expected a new cgroup, or one of user {user} without processes and children", path.display())]
    InUse { path: PathBuf, found: String, user: u32 },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("`{}` has no controller `{controller}` to pass on", parent.display())]
    NotDelegated { controller: &'static str, parent: PathBuf },
    #[error(transparent)]
    Host(#[from] HostError),
}

impl CgroupError {
    /// Returns what a user can do about the error.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::NotACgroup { .. } => {
                "name a directory below one that is delegated in `/sys/fs/cgroup`"
            }
            Self::InUse { .. } => {
                "name a cgroup that only this box uses, for example a missing one below the cgroup \
                 that is delegated to the shim's user"
            }
            Self::Disk(DiskError::NoDisk { .. }) => {
                "move the directory to a file system on a disk, or remove `resources.io`"
            }
            Self::NotDelegated { .. } | Self::Host(_) | Self::Disk(DiskError::Host(_)) => {
                "delegate the directory above to the shim's user, with memory, pids and cpu (and io \
                 for `resources.io`) in its `cgroup.subtree_control`, and no process in it (systemd: \
                 `Delegate=memory pids cpu io`)"
            }
        }
    }
}

/// Moves this process into the box's cgroup, if the config names one. Callers must not have started
/// a thread or a child: a child would stay in the old cgroup.
pub(crate) fn join(spec: &VmSpec) -> Result<(), CgroupError> {
    let Some(directory) = &spec.cgroup else { return Ok(()) };
    let parent = directory.parent().unwrap_or(directory);
    let found = statfs(parent).map_err(HostError::at("look at", parent))?;
    if found.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(CgroupError::NotACgroup { path: directory.clone() });
    }
    match fs::create_dir(directory) {
        Ok(()) => {}
        // The service manager or an earlier box of this name has created it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_unused(directory)?,
        Err(error) => return Err(HostError::at("make", directory)(error).into()),
    }
    let memory_bytes = memory_mib(spec.memory_mib, spec.disk, spec.disk_mib) << 20;
    let cpu_us = u64::from(spec.vcpus) * CPU_PERIOD_US;
    let tasks = u32::from(spec.vcpus) + OTHER_TASKS;
    set(directory, "memory", "memory.max", &memory_bytes.to_string())?;
    limit_swap(directory, memory_bytes)?;
    // The OOM killer then kills all processes of the box at once, because the VMM, the gate and
    // passt are of no use without each other.
    set(directory, "memory", "memory.oom.group", "1")?;
    set(directory, "pids", "pids.max", &tasks.to_string())?;
    set(directory, "cpu", "cpu.max", &format!("{cpu_us} {CPU_PERIOD_US}"))?;
    for disk in io_disks(spec)? {
        set(directory, "io", "io.max", &format!("{disk} {}", io_values(spec.io)))?;
    }
    let members = directory.join("cgroup.procs");
    write(&members, &std::process::id().to_string())
        .map_err(HostError::at("move the shim into", directory))?;
    Ok(())
}

/// Limits swap to as much as `memory.max`. Without it, a VMM that a guest has taken over could fill
/// the swap of the host.
///
/// A kernel that does not count swap has no such file, and needs no limit if it has no swap.
fn limit_swap(directory: &Path, bytes: u64) -> Result<(), CgroupError> {
    let file = directory.join("memory.swap.max");
    match write(&file, &bytes.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => Ok(other.map_err(HostError::at("set", &file))?),
    }
}

/// Returns the disks that hold the files of a box, if the config limits their use.
fn io_disks(spec: &VmSpec) -> Result<BTreeSet<Disk>, CgroupError> {
    if spec.io == IoConfig::default() {
        return Ok(BTreeSet::new());
    }
    let shares = spec.mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Virtiofs { directory, .. } => Some(directory.path.as_path()),
        MountSource::Tmpfs { .. } => None,
    });
    let layout = spec.image.as_ref().map(|image| image.layout.as_path());
    let own = [spec.paths.state_dir.as_path(), spec.paths.cache_dir.as_path()];
    Ok(Disk::of(shares.chain(layout).chain(own))?)
}

/// Returns the limits in the words of `io.max`.
fn io_values(limits: IoConfig) -> String {
    let word = |name, mib_per_s: Option<u32>| match mib_per_s {
        Some(mib) => format!("{name}={}", u64::from(mib) << 20),
        None => format!("{name}=max"),
    };
    format!("{} {}", word("rbps", limits.read_mib_per_s), word("wbps", limits.write_mib_per_s))
}

/// Refuses an existing cgroup whose limits would apply to other processes than those of the box.
fn check_unused(directory: &Path) -> Result<(), CgroupError> {
    let user = geteuid().as_raw();
    let in_use = |found| CgroupError::InUse { path: directory.to_owned(), found, user };
    let failed = |error| HostError::at("look at", directory)(error);
    let found = fs::symlink_metadata(directory).map_err(failed)?;
    if !found.is_dir() || found.uid() != user {
        let kind = if found.is_dir() { "a cgroup" } else { "a file that is no cgroup" };
        return Err(in_use(format!("{kind} of user {}", found.uid())));
    }
    let members = directory.join("cgroup.procs");
    let mut text = String::new();
    File::open(&members)
        .and_then(|file| file.take(MEMBERS_BYTES).read_to_string(&mut text))
        .map_err(HostError::at("read", &members))?;
    // A supervisor can have started the shim in this cgroup already.
    let own = std::process::id().to_string();
    if let Some(process) = text.lines().find(|process| *process != own) {
        return Err(in_use(format!("a cgroup with the process {process}")));
    }
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            let child = entry.file_name();
            return Err(in_use(format!("a cgroup with the child `{}`", child.display())));
        }
    }
    Ok(())
}

/// Returns the memory limit of a box: the memory of its guest and of the shim, and the size of its
/// disk if that is a tmpfs, whose pages count as the cgroup's memory.
fn memory_mib(guest_mib: u32, disk: DiskPlace, disk_mib: Option<u32>) -> u64 {
    let disk_mib = match disk {
        // A disk without a size has no memory of its own, and shares the memory of the guest.
        DiskPlace::Memory => disk_mib.unwrap_or(0),
        DiskPlace::StateDir => 0,
    };
    u64::from(guest_mib) + u64::from(disk_mib) + OVERHEAD_MIB
}

/// Writes a limit. If its file is missing, first enables the controller for the children of the
/// parent cgroup.
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

/// Writes to an interface file. It is not created, because a missing one means a missing
/// controller.
fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    #[test]
    fn only_an_empty_cgroup_of_this_user_is_given_limits() {
        // A directory with one file has the same form as a cgroup.
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("system.slice");
        fs::create_dir(&directory).unwrap();
        let members = directory.join("cgroup.procs");
        let found = || match check_unused(&directory) {
            Ok(()) => String::new(),
            Err(CgroupError::InUse { found, .. }) => found,
            Err(other) => panic!("{other}"),
        };
        fs::write(&members, "").unwrap();
        assert_eq!(found(), "");
        fs::write(&members, format!("{}\n", std::process::id())).unwrap();
        assert_eq!(found(), "");
        fs::write(&members, format!("{}\n1\n", std::process::id())).unwrap();
        assert_eq!(found(), "a cgroup with the process 1");
        fs::write(&members, "1\n".repeat(100_000)).unwrap();
        assert_eq!(found(), "a cgroup with the process 1");
        fs::write(&members, "").unwrap();
        fs::create_dir(directory.join("ssh.service")).unwrap();
        assert_eq!(found(), "a cgroup with the child `ssh.service`");
        fs::remove_dir(directory.join("ssh.service")).unwrap();
        chown(&directory, Some(1), None).unwrap();
        assert_eq!(found(), "a cgroup of user 1");
        let link = parent.path().join("link");
        symlink(&directory, &link).unwrap();
        assert!(matches!(check_unused(&link), Err(CgroupError::InUse { .. })));
    }

    #[test]
    fn limits_of_disks_are_words_of_io_max() {
        let limits = IoConfig { read_mib_per_s: Some(100), write_mib_per_s: None };
        assert_eq!(io_values(limits), "rbps=104857600 wbps=max");
        let limits = IoConfig { read_mib_per_s: None, write_mib_per_s: Some(u32::MAX) };
        assert_eq!(io_values(limits), "rbps=max wbps=4503599626321920");
    }

    #[test]
    fn swap_is_limited_where_the_kernel_counts_it() {
        let directory = tempfile::tempdir().unwrap();
        limit_swap(directory.path(), 7).unwrap();
        let file = directory.path().join("memory.swap.max");
        assert!(!file.exists());
        fs::write(&file, "").unwrap();
        limit_swap(directory.path(), 7).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "7");
    }

    #[test]
    fn disk_in_memory_adds_to_the_limit() {
        let beside_512 = |disk, disk_mib| memory_mib(512, disk, disk_mib) - 512 - OVERHEAD_MIB;
        assert_eq!(beside_512(DiskPlace::Memory, Some(64)), 64);
        assert_eq!(beside_512(DiskPlace::Memory, None), 0);
        assert_eq!(beside_512(DiskPlace::StateDir, Some(64)), 0);
        assert_eq!(memory_mib(u32::MAX, DiskPlace::Memory, Some(u32::MAX)) >> 33, 1);
    }
}
