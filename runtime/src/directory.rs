//! The state directory of a box, which `destroy` removes.
//!
//! ```text
//! <paths.state_dir>/
//! └── <id>/
//!     ├── run.json      locked (flock) by a shim for as long as it lives
//!     ├── exit.json     how the shim ended
//!     ├── agent.sock    leads to the agent in the guest
//!     └── …             the shim's own
//! ```
//!
//! Only a directory that no live shim holds is removed: two boxes of the same id are one box after
//! the other, and the second `VmManager` of a live id must not take the first one's directory away. The
//! lock goes last, so that a shim which starts meanwhile finds it held, or a directory of its own.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use a3s_box_core::record::RUN_FILE;
use a3s_box_oci::remove_path;
use nix::fcntl::OFlag;

/// Longest id that the shim accepts.
const MAX_ID_BYTES: usize = 64;

/// How long the lock may be taken before the box counts as live, as the shim has it: readers of the
/// records hold it for some microseconds.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// How often the lock is tried meanwhile.
const LOCK_RETRY: Duration = Duration::from_millis(1);

/// The state directory of a box could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum StateDirectoryError {
    /// Something else, perhaps a symlink, stands where the directory should be. It was left alone.
    #[error("`{}` is not a directory; it was not removed", path.display())]
    NotADirectory {
        /// Where the directory should be.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} `{}`", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The tokio runtime ended meanwhile.
    #[error("`{}` was not removed", path.display())]
    Interrupted {
        /// The directory.
        path: PathBuf,
        /// What the runtime says.
        source: tokio::task::JoinError,
    },
}

/// Where the state of a box is, if the shim ever made it.
#[derive(Clone, Debug)]
pub(crate) struct StateDirectory {
    path: PathBuf,
    /// The shim refuses other names, so there is nothing of it to remove behind them.
    is_possible: bool,
}

impl StateDirectory {
    pub(crate) fn new(state_dir: &Path, id: &str) -> Self {
        Self { path: state_dir.join(id), is_possible: state_dir.is_absolute() && is_legal(id) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a shim may have made it.
    pub(crate) fn is_possible(&self) -> bool {
        self.is_possible
    }

    /// Removes the directory with all in it, unless a live shim holds it. Never follows a symlink.
    pub(crate) async fn remove(self) -> Result<(), StateDirectoryError> {
        let path = self.path.clone();
        // The writable layer in it may be large.
        let removal = tokio::task::spawn_blocking(move || self.remove_now());
        removal.await.map_err(|source| StateDirectoryError::Interrupted { path, source })?
    }

    fn remove_now(&self) -> Result<(), StateDirectoryError> {
        if !self.is_possible {
            return Ok(());
        }
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match fs::symlink_metadata(&self.path) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => {
                    return Err(StateDirectoryError::NotADirectory { path: self.path.clone() });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(system("look at", &self.path)(error)),
            }
            match self.try_lock() {
                Ok(Some(lock)) => return self.remove_locked(&lock),
                Ok(None) if Instant::now() >= deadline => return Ok(()),
                Ok(None) => thread::sleep(LOCK_RETRY),
                // Somebody else removes the directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(system("lock", &self.path.join(RUN_FILE))(error)),
            }
        }
    }

    /// The lock of the directory that is there; none if somebody else holds it, or had it and removed it.
    fn try_lock(&self) -> io::Result<Option<File>> {
        let path = self.path.join(RUN_FILE);
        // As a shim does: it is made when it does not exist.
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let (found, locked) = (fs::symlink_metadata(&path)?, lock.metadata()?);
        let is_same = (found.dev(), found.ino()) == (locked.dev(), locked.ino());
        Ok(is_same.then_some(lock))
    }

    fn remove_locked(&self, lock: &File) -> Result<(), StateDirectoryError> {
        let lock_path = self.path.join(RUN_FILE);
        // Whoever sees the lock held from here on must not take it for the box's.
        lock.set_len(0).map_err(system("empty", &lock_path))?;
        for entry in fs::read_dir(&self.path).map_err(system("read", &self.path))? {
            let path = entry.map_err(system("read", &self.path))?.path();
            if path != lock_path {
                remove_path(&path).map_err(system("remove", &path))?;
            }
        }
        remove_path(&lock_path).map_err(system("remove", &lock_path))?;
        match fs::remove_dir(&self.path) {
            // A shim has started in it.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(system("remove", &self.path)),
        }
    }
}

/// The shim's rule for `id`.
fn is_legal(id: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let begins = id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    begins && id.len() <= MAX_ID_BYTES && id.bytes().all(legal)
}

fn system(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateDirectoryError {
    move |source| StateDirectoryError::System { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn directory_is_removed_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("demo/upper")).unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        let directory = StateDirectory::new(dir.path(), "demo");
        directory.remove_now().unwrap();
        directory.remove_now().unwrap();
        assert!(!dir.path().join("demo").exists());
        assert!(dir.path().join("other").exists());
    }

    #[test]
    fn symlink_is_refused_and_its_target_kept() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::create_dir(&precious).unwrap();
        symlink(&precious, dir.path().join("demo")).unwrap();
        let error = StateDirectory::new(dir.path(), "demo").remove_now().unwrap_err();
        assert!(matches!(error, StateDirectoryError::NotADirectory { .. }), "{error}");
        assert!(precious.exists());
    }

    #[test]
    fn directory_of_a_live_shim_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("demo")).unwrap();
        let mut lock = File::create(dir.path().join("demo/run.json")).unwrap();
        lock.try_lock().unwrap();
        lock.write_all(b"x").unwrap();
        StateDirectory::new(dir.path(), "demo").remove_now().unwrap();
        assert_eq!(fs::read(dir.path().join("demo/run.json")).unwrap(), b"x");
    }

    #[test]
    fn reader_of_the_records_does_not_keep_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("demo")).unwrap();
        let reader = File::create(dir.path().join("demo/run.json")).unwrap();
        reader.try_lock_shared().unwrap();
        let reading = thread::spawn(move || {
            thread::sleep(LOCK_PATIENCE / 2);
            drop(reader);
        });
        StateDirectory::new(dir.path(), "demo").remove_now().unwrap();
        reading.join().unwrap();
        assert!(!dir.path().join("demo").exists());
    }

    #[test]
    fn directory_that_a_start_makes_meanwhile_is_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        let directory = StateDirectory::new(dir.path(), "demo");
        let is_over = AtomicBool::new(false);
        let mut intact = 0;
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        // Without its patience, to meet the start more often.
                        if let Ok(Some(lock)) = directory.try_lock() {
                            // The other one's removal, where a change of the code lets both in.
                            let _failed = directory.remove_locked(&lock);
                        }
                    }
                });
            }
            for _ in 0..300 {
                // As a shim does: the directory, the lock, then what is in it.
                let lock = loop {
                    // It exists, or is removed again before the lock is opened.
                    let _exists = fs::create_dir(directory.path());
                    if let Ok(Some(lock)) = directory.try_lock() {
                        break lock;
                    }
                };
                let files: Vec<PathBuf> =
                    (0..20).map(|i| directory.path().join(i.to_string())).collect();
                let written = files.iter().all(|file| fs::write(file, "").is_ok());
                thread::yield_now();
                intact += u32::from(written && files.iter().all(|file| file.exists()));
                drop(lock);
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(intact, 300);
    }

    #[test]
    fn names_that_lead_elsewhere_remove_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("state/demo")).unwrap();
        for id in ["", ".", "..", "demo/", "../state", "/", "a/b"] {
            StateDirectory::new(&dir.path().join("state"), id).remove_now().unwrap();
        }
        assert!(dir.path().join("state/demo").exists());
    }
}
