//! [`BoxDir`]: the directory of a box, the name of each file in it, and its lock.
//!
//! ```text
//! <paths.state_dir>/           mode 0700, and no other user can replace it
//! └── <id>/                    mode 0700
//!     ├── run.json             RunRecord; locked with flock(2) for as long as the shim lives
//!     ├── exit.json.new        becomes exit.json by a rename
//!     ├── exit.json            ExitRecord, once the box has ended
//!     ├── agent.sock           libkrun listens; it leads to the agent in the guest
//!     ├── exec.sock            libkrun listens; it leads to the processes of the guest
//!     ├── control.sock         the shim listens until the guest program has connected
//!     ├── root/                mount point of the root, which only the shim sees
//!     ├── upper/, work/        writable layer of the root, unless it is in disk/
//!     ├── disk/                mount point of a tmpfs, or of
//!     ├── disk.img             an ext4 file system in a file
//!     ├── kept-disk.img.new    becomes kept-disk.img by a rename
//!     ├── kept-disk.img        such a file system that the next start of the id continues with
//!     ├── console.log          output of the workload, unless `console.path` is set
//!     └── console.log.1        older output
//! ```
//!
//! # Invariants
//!
//! - The lock on `run.json` is the only proof that a box is live, because the kernel drops it with
//!   the process however that ends. A pid may belong to another process by now.
//! - A lock counts only if the locked inode is still the file of that name. The owner of the lock
//!   may remove the directory, and a lock on the removed file protects nothing.
//! - The fd of a lock is open for reading only. A shim keeps it while it is a VMM, and a guest that
//!   has taken over the VMM must not write to the record through it.
//! - A lock is tried for [`LOCK_PATIENCE`]. Readers of the records hold it for microseconds.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use a3s_box_sys::HostError;

use crate::BoxId;

/// Name of the file that holds a [`RunRecord`](crate::RunRecord), and of the lock.
pub const RUN_FILE: &str = "run.json";

/// Name of the file that holds an [`ExitRecord`](crate::ExitRecord).
pub const EXIT_FILE: &str = "exit.json";

/// Name of the exit record while it is not complete.
pub const EXIT_DRAFT: &str = "exit.json.new";

/// Name of the socket that leads to the agent in the guest.
pub const AGENT_SOCKET: &str = "agent.sock";

/// Name of the socket that leads to the service for the processes of the guest.
pub const EXEC_SOCKET: &str = "exec.sock";

/// Name of the socket of the control connection.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Name of the mount point of the root.
pub const ROOT: &str = "root";

/// Name of the directory of the root's writable layer, in the box directory or in [`DISK`].
pub const UPPER: &str = "upper";

/// Name of the directory that overlayfs needs beside [`UPPER`] (`workdir=`).
pub const WORK: &str = "work";

/// Name of the mount point of the file system that holds the writable layer.
pub const DISK: &str = "disk";

/// Name of the file that holds that file system, if it is not in memory.
pub const DISK_IMAGE: &str = "disk.img";

/// Name of the file that holds the file system of a box with `resources.disk_keep`. It is the only
/// file besides the records and the console that outlives the end of the box.
pub const KEPT_DISK: &str = "kept-disk.img";

/// Name of that file while it is not complete.
pub const KEPT_DISK_DRAFT: &str = "kept-disk.img.new";

/// Name of the file that holds the workload's output.
pub const CONSOLE: &str = "console.log";

/// Time for which a lock is tried before the box counts as live. A reader of the records holds the
/// lock for microseconds, a child that a killed shim has forked holds it until its `execve(2)`, and
/// a removal of the directory holds it until its end.
pub const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// Time between two attempts to take the lock.
const LOCK_RETRY: Duration = Duration::from_millis(1);

/// The directory of a box, and the paths in it. Making the value touches no file.
///
/// ```
/// use std::path::Path;
///
/// use a3s_box_core::{BoxDir, BoxId};
///
/// let id: BoxId = "demo".parse().unwrap();
/// let directory = BoxDir::new(Path::new("/run/a3s-box"), &id);
/// assert_eq!(directory.path(), Path::new("/run/a3s-box/demo"));
/// assert_eq!(directory.exit_file(), Path::new("/run/a3s-box/demo/exit.json"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoxDir {
    path: PathBuf,
}

/// The lock of a box could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// `run.json` is a directory, a FIFO or another special file.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// Path of `run.json`.
        path: PathBuf,
    },
    /// The host refused a call. `open` fails with `ELOOP` if `run.json` is a symlink.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl BoxDir {
    /// Returns the directory of box `id` in the state directory `state_dir` (`paths.state_dir`).
    #[must_use]
    pub fn new(state_dir: &Path, id: &BoxId) -> Self {
        Self { path: state_dir.join(id.as_str()) }
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of `run.json`, the file that is locked.
    #[must_use]
    pub fn run_file(&self) -> PathBuf {
        self.path.join(RUN_FILE)
    }

    /// Returns the path of `exit.json`.
    #[must_use]
    pub fn exit_file(&self) -> PathBuf {
        self.path.join(EXIT_FILE)
    }

    /// Returns the path of `exit.json.new`.
    #[must_use]
    pub fn exit_draft(&self) -> PathBuf {
        self.path.join(EXIT_DRAFT)
    }

    /// Returns the path of the socket that leads to the agent in the guest.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.path.join(AGENT_SOCKET)
    }

    /// Returns the path of the socket that leads to the service for the processes of the guest.
    #[must_use]
    pub fn exec_socket(&self) -> PathBuf {
        self.path.join(EXEC_SOCKET)
    }

    /// Returns the path of the socket of the control connection.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.path.join(CONTROL_SOCKET)
    }

    /// Returns the socket path of most bytes, which the kernel's limit on such paths applies to.
    #[must_use]
    pub fn longest_socket_path(&self) -> PathBuf {
        [self.agent_socket(), self.exec_socket(), self.control_socket()]
            .into_iter()
            .max_by_key(|path| path.as_os_str().len())
            .unwrap_or_default()
    }

    /// Returns the path of the mount point of the root.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.path.join(ROOT)
    }

    /// Returns the path of the mount point of the file system that holds the writable layer.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.path.join(DISK)
    }

    /// Returns the path of the file that holds that file system.
    #[must_use]
    pub fn disk_image(&self) -> PathBuf {
        self.path.join(DISK_IMAGE)
    }

    /// Returns the path of the disk that is kept for the next start.
    #[must_use]
    pub fn kept_disk(&self) -> PathBuf {
        self.path.join(KEPT_DISK)
    }

    /// Returns the path of that disk while it is not complete.
    #[must_use]
    pub fn kept_disk_draft(&self) -> PathBuf {
        self.path.join(KEPT_DISK_DRAFT)
    }

    /// Returns the path of the workload's output.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.path.join(CONSOLE)
    }

    /// Tries once to lock `run.json`, and makes the file if it does not exist. Returns `None` if
    /// another process holds the lock, or has removed the file or the directory meanwhile. The lock
    /// lasts until the returned file is closed, which is open for reading only.
    ///
    /// # Errors
    ///
    /// [`LockError`].
    pub fn try_lock(&self) -> Result<Option<File>, LockError> {
        let path = self.run_file();
        // With O_NONBLOCK, open(2) does not wait for a writer if the file is a FIFO. `create` would
        // open the file for writing.
        let opened = OpenOptions::new()
            .read(true)
            .mode(0o600)
            .custom_flags(libc::O_CREAT | libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path);
        let Some(file) = unless_removed(opened).map_err(HostError::at("open", &path))? else {
            return Ok(None);
        };
        let locked = file.metadata().map_err(HostError::at("look at", &path))?;
        if !locked.is_file() {
            return Err(LockError::NotAFile { path });
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                return Err(HostError::at("lock", &path)(error).into());
            }
        }
        let found = unless_removed(fs::symlink_metadata(&path));
        let found = found.map_err(HostError::at("look at", &path))?;
        // Another process may have removed the file, and a third one may have made it anew.
        let is_same =
            found.is_some_and(|found| (found.dev(), found.ino()) == (locked.dev(), locked.ino()));
        Ok(is_same.then_some(file))
    }

    /// Opens `run.json` for writing. The caller holds its lock, so that nobody replaces the file.
    ///
    /// # Errors
    ///
    /// The host refuses to open the file.
    pub fn open_run_file(&self) -> Result<File, HostError> {
        let path = self.run_file();
        let opened = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        opened.map_err(HostError::at("open", &path))
    }
}

/// Calls `attempt` until it returns a value or an error, for at most [`LOCK_PATIENCE`]. Returns
/// `None` if each attempt in this time returned `None`.
///
/// An attempt is a call of [`BoxDir::try_lock`], with what must precede it each time: the shim
/// makes the directory, and a supervisor that removes it checks whether it exists.
///
/// # Errors
///
/// The error of `attempt`.
pub fn lock_patiently<T, E>(
    mut attempt: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let found = attempt()?;
        if found.is_some() || Instant::now() >= deadline {
            return Ok(found);
        }
        thread::sleep(LOCK_RETRY);
    }
}

/// Maps `NotFound` to `None`.
fn unless_removed<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;

    fn demo() -> (tempfile::TempDir, BoxDir) {
        let state_dir = tempfile::tempdir().unwrap();
        let directory = BoxDir::new(state_dir.path(), &"demo".parse().unwrap());
        fs::create_dir(directory.path()).unwrap();
        (state_dir, directory)
    }

    #[test]
    fn longest_socket_path_is_at_least_as_long_as_each_socket_path() {
        let directory = BoxDir::new(Path::new("/s"), &"a".parse().unwrap());
        assert_eq!(directory.longest_socket_path(), Path::new("/s/a/control.sock"));
    }

    #[test]
    fn held_lock_is_refused_until_its_file_is_closed() {
        let (_state_dir, directory) = demo();
        let held = directory.try_lock().unwrap().unwrap();
        assert!(directory.try_lock().unwrap().is_none());
        drop(held);
        assert!(directory.try_lock().unwrap().is_some());
    }

    #[test]
    fn lock_is_open_for_reading_only_and_its_holder_can_open_the_file_for_writing() {
        let (_state_dir, directory) = demo();
        let held = directory.try_lock().unwrap().unwrap();
        (&held).write_all(b"x").unwrap_err();
        held.set_len(1).unwrap_err();
        directory.open_run_file().unwrap().write_all(b"x").unwrap();
        assert_eq!(fs::read(directory.run_file()).unwrap(), b"x");
        assert!(directory.try_lock().unwrap().is_none(), "the lock is held");
    }

    #[test]
    fn lock_in_a_removed_directory_is_none() {
        let (_state_dir, directory) = demo();
        fs::remove_dir(directory.path()).unwrap();
        assert!(directory.try_lock().unwrap().is_none());
    }

    #[test]
    fn symlink_and_directory_as_run_file_are_refused() {
        let (_state_dir, directory) = demo();
        symlink("elsewhere", directory.run_file()).unwrap();
        let error = directory.try_lock().unwrap_err();
        assert!(matches!(error, LockError::Host(HostError { action: "open", .. })), "{error}");
        fs::remove_file(directory.run_file()).unwrap();
        fs::create_dir(directory.run_file()).unwrap();
        directory.try_lock().unwrap_err();
    }

    #[test]
    fn attempts_end_with_the_first_value_or_after_the_patience() {
        let mut count = 0;
        let found = lock_patiently(|| {
            count += 1;
            Ok::<_, LockError>((count == 3).then_some(count))
        });
        assert_eq!(found.unwrap(), Some(3));
        let start = Instant::now();
        assert!(lock_patiently(|| Ok::<_, LockError>(None::<File>)).unwrap().is_none());
        assert!(start.elapsed() >= LOCK_PATIENCE);
    }
}
