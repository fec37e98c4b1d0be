//! The state folder of a box, which `destroy` removes.
//!
//! ```text
//! <paths.state_dir>/
//! └── <id>/
//!     ├── lock          locked (flock) by a shim for as long as it lives
//!     ├── agent.sock    leads to the agent in the guest
//!     └── …             the shim's own
//! ```
//!
//! Only a folder that no live shim holds is removed: two boxes of the same id are one box after
//! the other, and the second `VmManager` of a live id must not take the first one's folder away.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// Longest id that the shim accepts.
const MAX_ID_BYTES: usize = 64;

/// The state folder of a box could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum StateFolderError {
    /// Something else, perhaps a symlink, stands where the folder should be. It was left alone.
    #[error("`{}` is not a folder; it was not removed", path.display())]
    NotAFolder {
        /// Where the folder should be.
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
        /// The folder.
        path: PathBuf,
        /// What the runtime says.
        source: tokio::task::JoinError,
    },
}

/// Where the state of a box is, if the shim ever made it.
#[derive(Clone, Debug)]
pub(crate) struct StateFolder {
    path: PathBuf,
    /// The shim refuses other names, so there is nothing of it to remove behind them.
    is_possible: bool,
}

impl StateFolder {
    pub(crate) fn new(state_dir: &Path, id: &str) -> Self {
        Self { path: state_dir.join(id), is_possible: state_dir.is_absolute() && is_legal(id) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder with all in it, unless a live shim holds it. Never follows a symlink.
    pub(crate) async fn remove(self) -> Result<(), StateFolderError> {
        let path = self.path.clone();
        // The writable layer in it may be large.
        let removal = tokio::task::spawn_blocking(move || self.remove_now());
        removal.await.map_err(|source| StateFolderError::Interrupted { path, source })?
    }

    fn remove_now(&self) -> Result<(), StateFolderError> {
        if !self.is_possible {
            return Ok(());
        }
        match fs::symlink_metadata(&self.path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(StateFolderError::NotAFolder { path: self.path.clone() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(system("look at", &self.path)(error)),
        }
        let lock_path = self.path.join("lock");
        let lock = open_lock(&lock_path).map_err(system("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(system("lock", &lock_path)(error)),
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(system("remove", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Opens the lock as a shim does: it is made when it does not exist.
fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
}

/// The shim's rule for `id`.
fn is_legal(id: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let begins = id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    begins && id.len() <= MAX_ID_BYTES && id.bytes().all(legal)
}

fn system(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateFolderError {
    move |source| StateFolderError::System { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn folder_is_removed_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("demo/upper")).unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        let folder = StateFolder::new(dir.path(), "demo");
        folder.remove_now().unwrap();
        folder.remove_now().unwrap();
        assert!(!dir.path().join("demo").exists());
        assert!(dir.path().join("other").exists());
    }

    #[test]
    fn symlink_is_refused_and_its_target_kept() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::create_dir(&precious).unwrap();
        symlink(&precious, dir.path().join("demo")).unwrap();
        let error = StateFolder::new(dir.path(), "demo").remove_now().unwrap_err();
        assert!(matches!(error, StateFolderError::NotAFolder { .. }), "{error}");
        assert!(precious.exists());
    }

    #[test]
    fn folder_of_a_live_shim_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("demo")).unwrap();
        let lock = File::create(dir.path().join("demo/lock")).unwrap();
        lock.try_lock().unwrap();
        StateFolder::new(dir.path(), "demo").remove_now().unwrap();
        assert!(dir.path().join("demo").exists());
    }

    #[test]
    fn names_that_lead_elsewhere_remove_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("state/demo")).unwrap();
        for id in ["", ".", "..", "demo/", "../state", "/", "a/b"] {
            StateFolder::new(&dir.path().join("state"), id).remove_now().unwrap();
        }
        assert!(dir.path().join("state/demo").exists());
    }
}
