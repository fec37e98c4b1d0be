//! Retention: removal of the layers that were not used for a long time, or that take too much
//! space.
//!
//! Each directory in `ready` counts on its own. The size of a tree is the size of its regular files
//! and one block for each entry. The size of a layer file or a metadata image is that of its blocks
//! on the disk. The last use is the last time at which a shared lock was taken for a box.
//! The least recently used layer is removed first. A layer that a box uses is never removed, even
//! above the limits, because each use is a shared lock and removal takes the exclusive lock.

use std::time::{Duration, SystemTime};

use nix::errno::Errno;

use super::error::CacheError;
use super::layer_cache::{LayerCache, modified, names};
use super::lookup::exists;

/// Limits on the layer cache. Without any limit, only layers that cannot be used are removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Largest total size of the layers. Layers in use count, but are kept beyond it.
    pub max_bytes: Option<u64>,
    /// Longest time since the last use of a layer.
    pub max_age: Option<Duration>,
}

/// The result of [`LayerCache::collect`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Number of layers that were removed.
    pub removed: u64,
    /// Size of the layers that were removed.
    pub freed_bytes: u64,
    /// Number of layers that were kept.
    pub kept: u64,
    /// Size of the layers that were kept.
    pub kept_bytes: u64,
}

/// A layer that may be removed. Its order is the order of removal.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    last_use: SystemTime,
    name: String,
    bytes: u64,
    is_usable: bool,
}

impl LayerCache {
    /// Removes the layers that exceed the limits and that no box uses, and the files that dead
    /// processes have left.
    ///
    /// Several processes can do so at the same time, while others unpack layers.
    ///
    /// # Errors
    ///
    /// Fails if the cache cannot be read, or if a file cannot be removed.
    pub fn collect(&self, retention: &Retention) -> Result<Collected, CacheError> {
        self.sweep()?;
        let mut candidates = self.candidates()?;
        candidates.sort();
        let now = SystemTime::now();
        let mut total: u64 = candidates.iter().map(|candidate| candidate.bytes).sum();
        let mut collected = Collected::default();
        for Candidate { last_use, name, bytes, is_usable } in candidates {
            let age = now.duration_since(last_use).unwrap_or_default();
            let is_over = retention.max_age.is_some_and(|max| age > max)
                || retention.max_bytes.is_some_and(|max| total > max);
            if (is_over || !is_usable) && self.remove_unused(&name)? {
                total -= bytes;
                collected.removed += 1;
                collected.freed_bytes += bytes;
            } else {
                collected.kept += 1;
                collected.kept_bytes += bytes;
            }
        }
        // These come last, because the removal of layers makes locks and lists stale.
        self.clear_locks()?;
        self.remove_stale_lists(now)?;
        Ok(collected)
    }

    fn candidates(&self) -> Result<Vec<Candidate>, CacheError> {
        let names = names(&self.ready).map_err(self.error("list", "ready"))?;
        let candidate = |name: String| {
            let stored_bytes = self.stored_bytes(&name)?;
            let is_usable = stored_bytes.is_some() && self.is_ready(&name)?;
            let bytes = stored_bytes.unwrap_or_default();
            // A layer without a lock file was never used, so it is the first to go.
            let last_use = modified(&self.locks, &name).unwrap_or(SystemTime::UNIX_EPOCH);
            Ok(Candidate { last_use, name, bytes, is_usable })
        };
        names.into_iter().map(candidate).collect()
    }

    /// Removes a layer and its lock, unless the layer is in use. Returns whether this process
    /// removed it.
    fn remove_unused(&self, name: &str) -> Result<bool, CacheError> {
        let Some(lock) = self.try_lock(name)? else { return Ok(false) };
        // Another process that collects at the same time may have removed the layer before.
        let is_removed_here = self.discard(name)?;
        self.remove_lock(name, lock).map(|()| is_removed_here)
    }

    /// Removes the locks of layers that do not exist, and the content of others. A failed or refused
    /// layer leaves its lock.
    fn clear_locks(&self) -> Result<(), CacheError> {
        let error = |errno: Errno| self.error("list", "locks")(errno);
        for name in names(&self.locks).map_err(error)? {
            if exists(&self.ready, &name) || exists(&self.staging, &name) {
                self.empty_lock(&name)?;
                continue;
            }
            // The layer may have been made before the lock was taken, so this looks again.
            if let Some(_lock) = self.try_lock(&name)?
                && !exists(&self.ready, &name)
            {
                self.remove_file(&self.locks, "locks", &name)?;
            }
        }
        Ok(())
    }
}
