//! The removal of a box directory, which is a step of `destroy`.
//!
//! [`BoxDir`] describes the directory and its lock. The removal takes the lock first, because a
//! second `VmManager` with the id of a live box must not remove that box's directory. It removes
//! `run.json`, the locked file, last. A shim that starts meanwhile therefore finds the lock held,
//! or makes a new directory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use a3s_box_core::box_dir::{LockError, lock_patiently};
use a3s_box_core::{BoxDir, BoxId};
use a3s_box_oci::remove_path;
use a3s_box_sys::HostError;

/// Why a box directory could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum BoxDirectoryError {
    /// Another kind of file, perhaps a symlink, has the name of the directory. It was not removed.
    #[error("`{}` is not a directory; it was not removed", path.display())]
    NotADirectory {
        /// Path of the directory.
        path: PathBuf,
    },
    /// The lock of the box could not be tried.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The host refused a call.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The tokio runtime ended before the removal was complete.
    #[error("`{}` was not removed", path.display())]
    Interrupted {
        /// Path of the directory.
        path: PathBuf,
        /// The error of the removal's task.
        source: tokio::task::JoinError,
    },
}

/// Returns the directory of box `id` in `state_dir`.
///
/// Returns `None` if the id is not valid or `state_dir` is not absolute. The shim refuses both, so
/// no shim has made such a directory. An invalid id may contain `..`, so no path must be made of
/// it.
pub(crate) fn find(state_dir: &Path, id: &str) -> Option<BoxDir> {
    let id: BoxId = id.parse().ok()?;
    state_dir.is_absolute().then(|| BoxDir::new(state_dir, &id))
}

/// Removes `directory` and everything in it, unless a live shim has locked it. Follows no symlink.
pub(crate) async fn remove(directory: BoxDir) -> Result<(), BoxDirectoryError> {
    let path = directory.path().to_owned();
    // The writable layer in it may be large, and a removal blocks its thread.
    let removal = tokio::task::spawn_blocking(move || remove_now(&directory));
    removal.await.map_err(|source| BoxDirectoryError::Interrupted { path, source })?
}

/// Result of an attempt to lock the directory.
enum Attempt {
    Absent,
    Locked(File),
}

fn remove_now(directory: &BoxDir) -> Result<(), BoxDirectoryError> {
    match lock_patiently(|| attempt(directory))? {
        Some(Attempt::Locked(_lock)) => remove_locked(directory),
        // If the lock was held during all attempts, the directory belongs to a live shim.
        Some(Attempt::Absent) | None => Ok(()),
    }
}

/// Tries once to lock the directory. Returns `None` if another process holds the lock.
fn attempt(directory: &BoxDir) -> Result<Option<Attempt>, BoxDirectoryError> {
    let path = directory.path();
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(BoxDirectoryError::NotADirectory { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Attempt::Absent)),
        Err(error) => return Err(HostError::at("look at", path)(error).into()),
    }
    Ok(directory.try_lock()?.map(Attempt::Locked))
}

/// Removes the content of a directory whose lock the caller holds, then `run.json`, then the
/// directory.
fn remove_locked(directory: &BoxDir) -> Result<(), BoxDirectoryError> {
    let (path, run_file) = (directory.path(), directory.run_file());
    // A reader that finds the lock held takes the content for the record of a live box, so the
    // content goes first.
    directory.open_run_file()?.set_len(0).map_err(HostError::at("empty", &run_file))?;
    for entry in fs::read_dir(path).map_err(HostError::at("read", path))? {
        let entry = entry.map_err(HostError::at("read", path))?.path();
        if entry != run_file {
            remove_path(&entry).map_err(HostError::at("remove", &entry))?;
        }
    }
    remove_path(&run_file).map_err(HostError::at("remove", &run_file))?;
    match fs::remove_dir(path) {
        // After the removal of `run.json`, another shim can have started in the directory, and
        // another process can have removed the directory.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => Ok(other.map_err(HostError::at("remove", path))?),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use a3s_box_core::box_dir::LOCK_PATIENCE;

    use super::*;

    #[test]
    fn removal_includes_a_kept_disk_and_leaves_other_directories_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("demo/upper")).unwrap();
        fs::write(find(dir.path(), "demo").unwrap().kept_disk(), "x").unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        let directory = find(dir.path(), "demo").unwrap();
        remove_now(&directory).unwrap();
        remove_now(&directory).unwrap();
        assert!(!dir.path().join("demo").exists());
        assert!(dir.path().join("other").exists());
    }

    #[test]
    fn symlink_is_refused_and_its_target_kept() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::create_dir(&precious).unwrap();
        symlink(&precious, dir.path().join("demo")).unwrap();
        let error = remove_now(&find(dir.path(), "demo").unwrap()).unwrap_err();
        assert!(matches!(error, BoxDirectoryError::NotADirectory { .. }), "{error}");
        assert!(precious.exists());
    }

    #[test]
    fn directory_of_a_live_shim_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("demo")).unwrap();
        let mut lock = File::create(dir.path().join("demo/run.json")).unwrap();
        lock.try_lock().unwrap();
        lock.write_all(b"x").unwrap();
        remove_now(&find(dir.path(), "demo").unwrap()).unwrap();
        assert_eq!(fs::read(dir.path().join("demo/run.json")).unwrap(), b"x");
    }

    #[test]
    fn removal_waits_for_a_reader_of_the_records() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("demo")).unwrap();
        let reader = File::create(dir.path().join("demo/run.json")).unwrap();
        reader.try_lock_shared().unwrap();
        let reading = thread::spawn(move || {
            thread::sleep(LOCK_PATIENCE / 2);
            drop(reader);
        });
        remove_now(&find(dir.path(), "demo").unwrap()).unwrap();
        reading.join().unwrap();
        assert!(!dir.path().join("demo").exists());
    }

    #[test]
    fn removal_never_touches_the_directory_of_a_concurrent_start() {
        let dir = tempfile::tempdir().unwrap();
        let directory = find(dir.path(), "demo").unwrap();
        let is_over = AtomicBool::new(false);
        let mut intact = 0;
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        // One attempt without waiting coincides with a start more often.
                        if let Ok(Some(_lock)) = directory.try_lock() {
                            // The removal fails only if the lock lets several threads in, which the
                            // assertion below detects.
                            let _failed = remove_locked(&directory);
                        }
                    }
                });
            }
            for _ in 0..300 {
                // A shim makes the directory, takes the lock, and then makes its files.
                let lock = loop {
                    // The directory may exist, or be removed before the lock is opened.
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
    fn id_or_state_directory_that_a_shim_refuses_has_no_directory() {
        for id in ["", ".", "..", "demo/", "../state", "/", "a/b"] {
            assert!(find(Path::new("/state"), id).is_none(), "{id}");
        }
        assert!(find(Path::new("relative"), "demo").is_none());
    }
}
