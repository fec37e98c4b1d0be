//! The locks of layers: one file for each layer, locked by `flock(2)`.
//!
//! A shared lock means that a process uses the layer, an exclusive lock that a process writes or
//! removes it. The kernel releases a lock when its open file description is closed, at the latest
//! when the process ends.

use std::fs::{File, TryLockError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::error::CacheError;
use super::layer_cache::LayerCache;

/// A shared lock on a layer. It ends when the file descriptor is closed, at the latest with the
/// process.
#[derive(Debug)]
pub struct LayerLease(File);

impl LayerLease {
    /// Records that the layer was used now, for [`collect`](LayerCache::collect).
    pub(super) fn record_use(&self) {
        // An error is ignored, because it only makes the layer look older than it is.
        let _used = self.0.set_modified(SystemTime::now());
    }

    /// Returns whether another process holds a shared lock as well. If none does, the lock becomes
    /// exclusive: flock(2) converts a lock that is taken again through its open file description.
    pub(super) fn is_shared(&self) -> bool {
        self.0.try_lock().is_err()
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

impl LayerCache {
    /// Takes a shared lock of `name`, or returns `None` if another process holds the exclusive
    /// lock.
    pub(super) fn try_lock_shared(&self, name: &str) -> Result<Option<LayerLease>, CacheError> {
        let lock = self.lock_file(name)?;
        let locked = lock.try_lock_shared();
        self.current(lock, locked, name).map(|lock| lock.map(LayerLease))
    }

    /// Takes the exclusive lock of `name`, or returns `None` if another process holds a lock.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<File>, CacheError> {
        let lock = self.lock_file(name)?;
        let locked = lock.try_lock();
        self.current(lock, locked, name)
    }

    /// Returns a lock that was taken, unless its file was removed in the meantime. A lock on a
    /// removed file excludes no process, because others make and lock a new file of that name.
    fn current(
        &self,
        lock: File,
        locked: Result<(), TryLockError>,
        name: &str,
    ) -> Result<Option<File>, CacheError> {
        let path = format!("locks/{name}");
        match locked {
            // The link count is read after the lock was taken, because a file is removed only by a
            // process that holds its exclusive lock.
            Ok(()) => {
                let found = lock.metadata().map_err(self.error("look at", &path))?;
                Ok((found.nlink() > 0).then_some(lock))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(self.error("lock", &path)(source)),
        }
    }

    /// Removes the file of an exclusive lock. A process that waits for the lock finds that its file
    /// has no name any more (see `current`), and makes a new one.
    pub(crate) fn remove_lock(&self, name: &str, lock: File) -> Result<(), CacheError> {
        // The name is removed while the lock is held. In the other order, another process could
        // take the lock in between, and would then hold it on a file without a name.
        let removed = self.remove_file(&self.locks, "locks", name);
        drop(lock);
        removed
    }

    fn lock_file(&self, name: &str) -> Result<File, CacheError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.locks, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map(File::from)
            .map_err(|errno: Errno| self.error("open lock", &format!("locks/{name}"))(errno))
    }
}
