//! The locks of layers: one file for each layer, locked by its open file description ([`FileLock`]).
//!
//! A shared lock means that a process uses the layer, an exclusive lock that a process writes or
//! removes it. The kernel releases a lock when its open file description is closed, at the latest
//! when the process ends.
//!
//! A box keeps its shared locks while it runs, also when a guest has taken over its VMM. Their files
//! are therefore open for reading only. Nothing can be written through them, and the kernel takes no
//! exclusive lock on them, which would block all other boxes with this layer.
//!
//! As long as a lock is exclusive, its file has the pid of the holder, so that a process that waits
//! can name it. Otherwise the file is empty, unless the holder was killed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::error::{CacheError, Holder};
use super::layer_cache::LayerCache;
use crate::host::file_lock::FileLock;

/// Upper bound on the length of a lock file. A pid has at most 10 digits.
const HOLDER_LIMIT_BYTES: u64 = 16;

/// A shared lock on a layer. It ends when the file descriptor is closed, at the latest with the
/// process. The file descriptor is open for reading only.
#[derive(Debug)]
pub struct LayerLease(File);

impl LayerLease {
    /// Records that the layer was used now, for [`collect`](LayerCache::collect).
    pub(super) fn record_use(&self) {
        // The owner of a file may set its time without writing to it. An error is ignored, because
        // it only makes the layer look older than it is.
        let _used = self.0.set_modified(SystemTime::now());
    }

    /// Returns whether another process holds a shared lock as well.
    pub(super) fn is_shared(&self) -> bool {
        // An error counts as such a process, because otherwise the caller would wait for one.
        FileLock::Exclusive.is_excluded(&self.0).unwrap_or(true)
    }
}

impl AsFd for LayerLease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<LayerLease> for OwnedFd {
    fn from(lease: LayerLease) -> Self {
        lease.0.into()
    }
}

/// The exclusive lock of a layer.
#[derive(Debug)]
pub(crate) struct LayerLock(File);

impl LayerLock {
    /// Replaces the content of the file by the pid of this process.
    fn sign(&self) {
        // A lock without a pid is as good, and on a full disk there may be no space for one.
        let emptied = self.0.set_len(0);
        let _best_effort =
            emptied.and_then(|()| self.0.write_all_at(process::id().to_string().as_bytes(), 0));
    }
}

impl AsFd for LayerLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for LayerLock {
    fn drop(&mut self) {
        // The next holder does the same.
        let _best_effort = self.0.set_len(0);
    }
}

impl LayerCache {
    /// Takes a shared lock of `name`, or returns `None` if another process holds the exclusive
    /// lock.
    pub(super) fn try_lock_shared(&self, name: &str) -> Result<Option<LayerLease>, CacheError> {
        let file = self.lock_file(name, OFlag::O_RDONLY | OFlag::O_CREAT)?;
        Ok(self.try_take(FileLock::Shared, &file, name)?.then_some(LayerLease(file)))
    }

    /// Takes the exclusive lock of `name`, or returns `None` if another process holds a lock.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<LayerLock>, CacheError> {
        let file = self.lock_file(name, OFlag::O_RDWR | OFlag::O_CREAT)?;
        if !self.try_take(FileLock::Exclusive, &file, name)? {
            return Ok(None);
        }
        let lock = LayerLock(file);
        lock.sign();
        Ok(Some(lock))
    }

    /// Takes a lock, unless another process holds one that excludes it or the file was removed in the
    /// meantime. A lock on a removed file excludes no process, because others make and lock a new file
    /// of that name.
    fn try_take(&self, kind: FileLock, file: &File, name: &str) -> Result<bool, CacheError> {
        let path = format!("locks/{name}");
        let is_taken = kind.try_take(file).map_err(self.error("lock", &path))?;
        // The link count is read after the lock was taken, because a file is removed only by a
        // process that holds its exclusive lock.
        Ok(is_taken && file.metadata().map_err(self.error("look at", &path))?.nlink() > 0)
    }

    /// Removes the file of an exclusive lock. A process that waits for the lock finds that its file
    /// has no name any more (see `try_take`), and makes a new one.
    pub(crate) fn remove_lock(&self, name: &str, lock: LayerLock) -> Result<(), CacheError> {
        // The name is removed while the lock is held. In the other order, another process could
        // take the lock in between, and would then hold it on a file without a name.
        let removed = self.remove_file(&self.locks, "locks", name);
        drop(lock);
        removed
    }

    /// Returns the process that holds the exclusive lock of `name`.
    pub(super) fn holder(&self, name: &str) -> Holder {
        let read = || {
            let file = self.lock_file(name, OFlag::O_RDONLY).ok()?;
            // Without an exclusive lock, the file may have the pid of a process that was killed.
            if !FileLock::Shared.is_excluded(&file).ok()? {
                return None;
            }
            let mut text = String::new();
            file.take(HOLDER_LIMIT_BYTES).read_to_string(&mut text).ok()?;
            text.parse().ok()
        };
        Holder { pid: read() }
    }

    /// Removes the content of a lock file that is too long for a pid. No lock is taken, because boxes
    /// may hold one for as long as they run.
    pub(super) fn empty_lock(&self, name: &str) -> Result<(), CacheError> {
        let file = match self.lock_file(name, OFlag::O_WRONLY) {
            Err(CacheError::Host(error)) if error.source.kind() == io::ErrorKind::NotFound => {
                return Ok(());
            }
            opened => opened?,
        };
        let path = format!("locks/{name}");
        let found = file.metadata().map_err(self.error("look at", &path))?;
        if found.len() <= HOLDER_LIMIT_BYTES {
            return Ok(());
        }
        tracing::warn!(name, bytes = found.len(), "removing the content of a lock file");
        // The time of the last use stays.
        let emptied = file.set_len(0).and_then(|()| file.set_modified(found.modified()?));
        emptied.map_err(self.error("empty", &path))
    }

    fn lock_file(&self, name: &str, flags: OFlag) -> Result<File, CacheError> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.locks, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map(File::from)
            .map_err(|errno: Errno| self.error("open lock", &format!("locks/{name}"))(errno))
    }
}
