//! The folder of a box: everything that it leaves on this host while it lives.
//!
//! ```text
//! <paths.state_dir>/           0700
//! └── <id>/                    0700
//!     ├── lock                 locked (flock) for as long as the shim lives
//!     ├── agent.sock           libkrun listens; leads to the agent in the guest
//!     ├── control.sock         the shim listens until PID 1 of the guest has connected
//!     ├── root/                mount point; the mount is seen by the shim only
//!     ├── upper/, work/        writable layer of the root, unless it is in
//!     ├── disk/                mount point of a tmpfs or of
//!     ├── disk.img             a file system in a file
//!     └── console.log          output of the workload, unless `console.path` says otherwise
//! ```
//!
//! Liveness is the lock: it ends with the process, however that ends. The next start of the same
//! id takes the folder over and removes what is stale.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::spec::VmSpec;

const LOCK: &str = "lock";
const AGENT_SOCKET: &str = "agent.sock";
const CONTROL_SOCKET: &str = "control.sock";
const ROOT: &str = "root";
pub(crate) const UPPER: &str = "upper";
pub(crate) const WORK: &str = "work";
const DISK: &str = "disk";
const DISK_IMAGE: &str = "disk.img";
const CONSOLE: &str = "console.log";

/// What is removed at the start, if a killed shim left it, and at the end.
const TRANSIENT: [&str; 7] = [AGENT_SOCKET, CONTROL_SOCKET, ROOT, UPPER, WORK, DISK, DISK_IMAGE];

/// The state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateDirError {
    #[error("box `{id}` is in use: another shim holds `{}`", lock.display())]
    InUse { id: String, lock: PathBuf },
    #[error("`{}`: found {found}, expected a folder of user {expected} with mode 0700", path.display())]
    NotPrivate { path: PathBuf, found: String, expected: u32 },
    #[error("cannot {action} `{}`", path.display())]
    System { action: &'static str, path: PathBuf, source: io::Error },
}

/// The folder of this box, locked.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Held until the process ends.
    _lock: File,
}

/// The longest path of a socket in the folder of box `id`.
pub(crate) fn longest_socket_path(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(id).join(CONTROL_SOCKET)
}

impl StateDir {
    /// Makes the folder or takes it over, locks it, and removes what a killed shim left.
    pub(crate) fn acquire(spec: &VmSpec) -> Result<Self, StateDirError> {
        let path = spec.paths.state_dir.join(&spec.id);
        private_folder(&spec.paths.state_dir)?;
        private_folder(&path)?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path);
        let lock = lock.map_err(system("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(StateDirError::InUse { id: spec.id.clone(), lock: lock_path });
            }
            Err(fs::TryLockError::Error(error)) => return Err(system("lock", &lock_path)(error)),
        }
        let state = Self { path, _lock: lock };
        for name in TRANSIENT {
            let stale = state.path.join(name);
            remove(&stale).map_err(system("remove the stale", &stale))?;
        }
        DirBuilder::new()
            .mode(0o700)
            .create(state.root())
            .map_err(system("make", &state.root()))?;
        Ok(state)
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.path.join(AGENT_SOCKET)
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.path.join(CONTROL_SOCKET)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path.join(ROOT)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.path
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.path.join(DISK)
    }

    pub(crate) fn disk_image(&self) -> PathBuf {
        self.path.join(DISK_IMAGE)
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.path.join(CONSOLE)
    }

    /// Paths that the end of the box removes, for whoever ends it.
    pub(crate) fn transient(&self) -> Vec<PathBuf> {
        TRANSIENT.iter().map(|name| self.path.join(name)).collect()
    }

    /// Removes the folder. Only for a box that was never started: its console is lost.
    pub(crate) fn remove(&self) {
        // What cannot be removed now is removed by the next start of this id.
        let _best_effort = fs::remove_dir_all(&self.path);
    }
}

/// Removes files and folders at the end of a box. The mounts keep `root` and `disk` busy until this
/// process has ended: these empty folders stay.
pub(crate) fn remove_transient(paths: &[PathBuf]) {
    let mount_point = |path: &PathBuf| path.ends_with(ROOT) || path.ends_with(DISK);
    for path in paths.iter().filter(|path| !mount_point(path)) {
        // What cannot be removed now is removed by the next start of this id.
        let _best_effort = remove(path);
    }
}

/// Removes a file or a folder with all in it; `root` and `disk` of a killed shim are empty here,
/// because their mounts ended with its namespace. Never follows a symlink.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn private_folder(path: &Path) -> Result<(), StateDirError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(system("make", path))?;
    let found = fs::symlink_metadata(path).map_err(system("look at", path))?;
    let user = geteuid().as_raw();
    if found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    let kind = if found.is_dir() { "a folder" } else { "something else" };
    let found = format!("{kind} of user {} with mode {:04o}", found.uid(), found.mode() & 0o7777);
    Err(StateDirError::NotPrivate { path: path.to_owned(), found, expected: user })
}

fn system(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateDirError {
    move |source| StateDirError::System { action, path: path.to_owned(), source }
}
