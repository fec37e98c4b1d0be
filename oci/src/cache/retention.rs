//! What stays in the layer cache: removal of what was not used for long, or is too much.
//!
//! Everything in `ready` counts by itself, with the bytes of its files and a block for each entry; the
//! last use is when it was locked last for a box. The least recently used goes first. What a box uses
//! stays, whatever the limits say: each use is a shared lock, and removal takes the exclusive one.

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::cache::layer_cache::{CacheError, LayerCache, list};

/// What an entry costs beside its content: a block of most file systems.
const ENTRY_BYTES: u64 = 4096;

/// Age from which on a list of layers that nobody has finished writing is left over: writing takes
/// no time.
const UNFINISHED: Duration = Duration::from_secs(3600);

/// Limits on the layer cache; without any, only what nobody can use is removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Most bytes that are kept, but for what is in use.
    pub max_bytes: Option<u64>,
    /// Longest time without a use.
    pub max_age: Option<Duration>,
}

/// What was removed, and what is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers that were removed.
    pub removed: u64,
    /// Their bytes.
    pub freed_bytes: u64,
    /// Layers that are left.
    pub kept: u64,
    /// Their bytes.
    pub kept_bytes: u64,
}

/// Something in the cache; in the order in which it is removed.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    last_use: SystemTime,
    name: String,
    bytes: u64,
    is_usable: bool,
}

impl LayerCache {
    /// Removes what the limits do not allow and no box uses, and what dead processes have left.
    ///
    /// Any number of processes may do so at a time, and unpack meanwhile.
    ///
    /// # Errors
    ///
    /// When the cache cannot be read, or something cannot be removed.
    pub fn collect(&self, retention: &Retention) -> Result<Collected, CacheError> {
        // No layer has this name: all that is swept are other processes' directories.
        self.sweep("")?;
        let mut candidates = self.candidates()?;
        candidates.sort();
        let now = SystemTime::now();
        let mut total: u64 = candidates.iter().map(|candidate| candidate.bytes).sum();
        let mut collected = Collected::default();
        for Candidate { last_use, name, bytes, is_usable } in candidates {
            let age = now.duration_since(last_use).unwrap_or_default();
            let is_over = retention.max_age.is_some_and(|max| age > max)
                || retention.max_bytes.is_some_and(|max| total > max);
            if (is_over || !is_usable) && self.remove(&name)? {
                total -= bytes;
                collected.removed += 1;
                collected.freed_bytes += bytes;
            } else {
                collected.kept += 1;
                collected.kept_bytes += bytes;
            }
        }
        self.remove_stale_locks()?;
        self.remove_stale_stacks(now)?;
        Ok(collected)
    }

    fn candidates(&self) -> Result<Vec<Candidate>, CacheError> {
        let names = list(&self.ready).map_err(|errno: Errno| self.error("list", "ready")(errno))?;
        let candidate = |name: String| {
            let record = self.record(&name)?;
            let is_usable = record.is_some() && self.is_ready(&name)?;
            let facts = record.unwrap_or_default().facts;
            let bytes = facts.bytes + ENTRY_BYTES.saturating_mul(facts.entries);
            Ok(Candidate { last_use: self.last_use(&name), name, bytes, is_usable })
        };
        names.into_iter().map(candidate).collect()
    }

    /// Finds the time of the last use; long ago if nobody knows.
    fn last_use(&self, name: &str) -> SystemTime {
        let found = fstatat(&self.locks, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok();
        let seconds = found.and_then(|found| u64::try_from(found.st_mtime).ok());
        let nanoseconds = found.and_then(|found| u32::try_from(found.st_mtime_nsec).ok());
        let since = Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0));
        SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Removes something, unless it is in use; says whether it did.
    fn remove(&self, name: &str) -> Result<bool, CacheError> {
        let Some(lock) = self.try_lock(name)? else { return Ok(false) };
        // Another process may have been faster.
        let is_gone_by_us = self.discard(name)?;
        self.remove_lock(name, lock).map(|()| is_gone_by_us)
    }

    /// Removes the file of an exclusive lock. Who waits for it finds that it has no name any more, and
    /// takes a new one.
    pub(crate) fn remove_lock(&self, name: &str, lock: File) -> Result<(), CacheError> {
        let removed = self.unlink(&self.locks, "locks", name);
        drop(lock);
        removed
    }

    fn remove_stale_locks(&self) -> Result<(), CacheError> {
        let error = |errno: Errno| self.error("list", "locks")(errno);
        for name in list(&self.locks).map_err(error)? {
            let is_needed =
                |directory| fstatat(directory, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok();
            if is_needed(&self.ready) || is_needed(&self.staging) {
                continue;
            }
            // Looked at again, as it may have been made before it was locked.
            if let Some(_lock) = self.try_lock(&name)?
                && !is_needed(&self.ready)
            {
                self.unlink(&self.locks, "locks", &name)?;
            }
        }
        Ok(())
    }

    /// Removes lists of layers of which one is missing: they are composed again.
    fn remove_stale_stacks(&self, now: SystemTime) -> Result<(), CacheError> {
        let error = |errno: Errno| self.error("list", "stacks")(errno);
        for name in list(&self.stacks).map_err(error)? {
            let is_stale = match name.ends_with(".new") {
                true => self
                    .written(&name)
                    .is_none_or(|time| now.duration_since(time).is_ok_and(|age| age > UNFINISHED)),
                false => !self.is_complete(&name)?,
            };
            if is_stale {
                self.unlink(&self.stacks, "stacks", &name)?;
            }
        }
        Ok(())
    }

    fn written(&self, stack: &str) -> Option<SystemTime> {
        let path = self.stacks.try_clone().ok().map(File::from)?;
        let found = fstatat(&path, stack, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        let since = Duration::from_secs(u64::try_from(found.st_mtime).ok()?);
        SystemTime::UNIX_EPOCH.checked_add(since)
    }

    fn unlink(
        &self,
        directory: &std::os::fd::OwnedFd,
        directory_name: &str,
        name: &str,
    ) -> Result<(), CacheError> {
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.error("remove", &format!("{directory_name}/{name}"))(
                io::Error::from(errno),
            )),
        }
    }
}
