//! The cgroups of the processes that the service starts, one for each (`cgroups(7)`, version 2).
//!
//! ```text
//! /sys/fs/cgroup/              the workload is here, as all processes are by default
//! └── a3s-box-exec/
//!     ├── 1/                   a process with all its descendants
//!     └── 2/
//! ```
//!
//! A descendant cannot leave a cgroup by detaching itself, and `cgroup.kill` reaches all members at
//! once, also while they fork. Only root of the guest can move a process to another cgroup.
//!
//! All paths start at a descriptor that was opened before the workload: the workload can mount
//! another file system at `/sys/fs/cgroup`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc::pid_t;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Name of the directory with all cgroups of the service.
const PARENT: &str = "a3s-box-exec";

/// Controllers for the counts of memory and processes. CPU time is counted without one.
const CONTROLLERS: [&str; 2] = ["+memory", "+pids"];

/// Maximum size of a file of the kernel that is read, in bytes. `cgroup.procs` has up to 8 for each
/// process.
const FILE_BYTES: u64 = 1024 * 1024;

/// The cgroups cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the cgroup `{path}`", path = path.display())]
pub(crate) struct CgroupError {
    action: &'static str,
    path: PathBuf,
    source: Errno,
}

/// The directory with all cgroups of the service.
#[derive(Debug)]
pub(crate) struct Cgroups {
    directory: OwnedFd,
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    /// Number of the last cgroup, which is its name.
    last: u64,
    /// Cgroups whose process has ended, but which have members still.
    left: Vec<String>,
}

/// The cgroup of one process.
#[derive(Debug)]
pub(super) struct Cgroup {
    all: Arc<Cgroups>,
    name: String,
}

/// What the kernel has counted for a cgroup. `None`: it does not count it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) cpu_us: Option<u64>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) pids: Option<u64>,
}

impl Cgroups {
    /// Makes the directory in the mount of cgroup2 at `mount`.
    pub(crate) fn open(mount: &Path) -> Result<Self, CgroupError> {
        let failed = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| CgroupError { action, path, source }
        };
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let root = nix::fcntl::open(mount, flags, Mode::empty()).map_err(failed("open", mount))?;
        let path = mount.join(PARENT);
        match mkdirat(&root, PARENT, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed("make", &path)(errno)),
        }
        let directory =
            openat(&root, PARENT, flags, Mode::empty()).map_err(failed("open", &path))?;
        for directory in [&root, &directory] {
            for controller in CONTROLLERS {
                // A kernel without the controller refuses it. The count is then missing.
                drop(write_file(directory, "cgroup.subtree_control", controller));
            }
        }
        Ok(Self { directory, names: Mutex::default() })
    }

    /// Makes a cgroup, and removes those that have become empty.
    pub(super) fn create(self: &Arc<Self>) -> io::Result<Cgroup> {
        self.sweep();
        let name = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.last += 1;
            names.last.to_string()
        };
        mkdirat(&self.directory, name.as_str(), Mode::from_bits_truncate(0o755))?;
        Ok(Cgroup { all: Arc::clone(self), name })
    }

    /// Removes the cgroups that processes have left and that have no members any more.
    pub(super) fn sweep(&self) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.left.retain(|name| {
            // EBUSY: the cgroup has members. After any other error nothing is left to remove.
            self.remove(name) == Err(Errno::EBUSY)
        });
    }

    fn remove(&self, name: &str) -> nix::Result<()> {
        unlinkat(&self.directory, name, UnlinkatFlags::RemoveDir)
    }
}

impl Cgroup {
    /// Opens the file to which a child writes in order to enter.
    pub(super) fn procs(&self) -> io::Result<OwnedFd> {
        Ok(openat(
            &self.all.directory,
            format!("{}/cgroup.procs", self.name).as_str(),
            OFlag::O_WRONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?)
    }

    /// Kills all members.
    pub(super) fn kill(&self) -> io::Result<()> {
        write_file(&self.all.directory, &format!("{}/cgroup.kill", self.name), "1")
    }

    /// Returns the PIDs of all members.
    pub(super) fn members(&self) -> io::Result<Vec<pid_t>> {
        let text = self.read("cgroup.procs")?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Returns what the kernel has counted.
    pub(super) fn usage(&self) -> Usage {
        let number = |name: &str| self.read(name).ok()?.trim().parse().ok();
        let cpu = self.read("cpu.stat").ok();
        let cpu_us = cpu.as_deref().and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("usage_usec "))?.parse().ok()
        });
        Usage { cpu_us, memory_bytes: number("memory.current"), pids: number("pids.current") }
    }

    fn read(&self, file: &str) -> io::Result<String> {
        let path = format!("{}/{file}", self.name);
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(&self.all.directory, path.as_str(), flags, Mode::empty())?;
        let mut text = String::new();
        File::from(file).take(FILE_BYTES).read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Cgroup {
    /// Removes the cgroup now or, if a descendant of the process lives on, later.
    fn drop(&mut self) {
        if self.all.remove(&self.name) == Err(Errno::EBUSY) {
            let mut names = self.all.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.left.push(std::mem::take(&mut self.name));
        }
    }
}

/// Writes a file of the kernel, with one call of `write(2)`.
fn write_file(directory: impl AsFd, path: &str, text: &str) -> io::Result<()> {
    let file = openat(directory, path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    File::from(file).write_all(text.as_bytes())
}
