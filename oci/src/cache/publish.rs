//! Making layers: each is written in `staging` under the exclusive lock, and published by one
//! rename.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::symlinkat;

use super::error::CacheError;
use super::layer_cache::{LayerCache, names};
use super::lookup::{CachedLayer, LayerState};
use super::name::{BOOT, TREE};
use super::record::Record;
use crate::host::directory::OPEN_DIR;
use crate::host::remove::remove_tree;

/// Time between two attempts to take a lock that another process holds. It is short compared with
/// the time to unpack a layer, and long compared with the time of an attempt.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// A way to make a layer.
pub(crate) trait Recipe {
    /// Returns the name of the layer in the cache.
    fn name(&self) -> String;

    /// Makes the layer in `directory`. `tree` is the empty directory [`TREE`] in it.
    fn make(&mut self, directory: &OwnedFd, tree: OwnedFd) -> Result<Record, CacheError>;

    /// Reports that another process is making the layer. The cache calls this every few
    /// milliseconds, and an error ends the wait.
    fn wait(&mut self) -> Result<(), CacheError>;
}

impl LayerCache {
    /// Returns the layer that `recipe` makes, and makes it first if it is not in the cache.
    ///
    /// If another process is making the same layer, this waits for that process, and makes the
    /// layer itself if the other process fails.
    pub(crate) fn get_or_make(&self, recipe: &mut dyn Recipe) -> Result<CachedLayer, CacheError> {
        let name = recipe.name();
        let mut hit = true;
        loop {
            if let Some(cached) = self.get(&name)? {
                return Ok(CachedLayer { hit, ..cached });
            }
            match self.try_lock(&name)? {
                Some(lock) => {
                    // Another process may have published the layer before the lock was taken.
                    if !self.is_usable(&name)? {
                        self.make(recipe, &name)?;
                        hit = false;
                    }
                    drop(lock);
                }
                // Waiting would never end: no process can replace the layer while boxes use it.
                None if self.is_damaged_in_use(&name)? => {
                    return Err(CacheError::Damaged { path: self.layer_path(&name) });
                }
                None => self.wait_for(recipe)?,
            }
        }
    }

    /// Waits a moment for the process that is making the layer of `recipe`.
    pub(crate) fn wait_for(&self, recipe: &mut dyn Recipe) -> Result<(), CacheError> {
        recipe.wait()?;
        thread::sleep(LOCK_RETRY);
        Ok(())
    }

    /// Makes and publishes a layer. The caller holds the exclusive lock of `name`.
    fn make(&self, recipe: &mut dyn Recipe, name: &str) -> Result<(), CacheError> {
        self.sweep()?;
        // The layer is missing or unusable. An unusable one must be removed, because a directory
        // that is not empty would make the rename fail.
        self.discard(name)?;
        let published = self.stage(recipe, name).and_then(|()| self.publish_as(name, name));
        if published.is_err()
            && let Err(errno) = remove_tree(self.staging.as_fd(), name.as_bytes())
        {
            // The caller receives the first error. The next process that unpacks a layer removes
            // the directory.
            tracing::warn!(name, %errno, "cannot remove a staging directory");
        }
        published
    }

    /// Makes the layer of `recipe` in the staging directory `name`, which must not exist.
    pub(crate) fn stage(&self, recipe: &mut dyn Recipe, name: &str) -> Result<(), CacheError> {
        let directory = format!("staging/{name}");
        let make = || {
            mkdirat(&self.staging, name, Mode::S_IRWXU)?;
            let directory = openat(&self.staging, name, OPEN_DIR, Mode::empty())?;
            mkdirat(&directory, TREE, Mode::S_IRWXU)?;
            let root = openat(&directory, TREE, OPEN_DIR, Mode::empty())?;
            Ok((directory, root))
        };
        let (staged, tree) =
            make().map_err(|errno: Errno| self.error("make", &directory)(errno))?;
        let record = recipe.make(&staged, tree)?;
        let write = || -> io::Result<()> {
            record.write(&staged)?;
            Ok(symlinkat(self.boot.as_os_str(), &staged, BOOT)?)
        };
        write().map_err(self.error("write the record of", &directory))
    }

    /// Publishes the staging directory `staged` as the layer `name`, whose exclusive lock the
    /// caller holds.
    pub(crate) fn publish_as(&self, staged: &str, name: &str) -> Result<(), CacheError> {
        renameat(&self.staging, staged, &self.ready, name)
            .map_err(self.error("publish", &format!("ready/{name}")))
    }

    /// Removes the layer `name`, whose exclusive lock the caller holds. Returns whether it existed.
    ///
    /// The layer is first renamed into `staging`, so that no process ever finds a part of it in
    /// `ready`.
    pub(crate) fn discard(&self, name: &str) -> Result<bool, CacheError> {
        // A process that died may have left a staging directory, which would stop the rename.
        self.remove_staged(name)?;
        match renameat(&self.ready, name, &self.staging, name) {
            Ok(()) => self.remove_staged(name).map(|()| true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.error("remove", &format!("ready/{name}"))(errno)),
        }
    }

    /// Removes a layer, unless another process uses it.
    pub(crate) fn forget(&self, layer: CachedLayer) -> Result<(), CacheError> {
        drop(layer.lease);
        match self.try_lock(&layer.name)? {
            Some(_lock) => self.discard(&layer.name).map(drop),
            None => Ok(()),
        }
    }

    /// Removes the staging directory `name`, whose exclusive lock the caller holds.
    pub(crate) fn remove_staged(&self, name: &str) -> Result<(), CacheError> {
        remove_tree(self.staging.as_fd(), name.as_bytes())
            .map_err(self.error("remove", &format!("staging/{name}")))
    }

    /// Removes the staging directories of dead processes. These are the ones whose lock is free:
    /// the kernel releases the locks of a process when it dies.
    pub(crate) fn sweep(&self) -> Result<(), CacheError> {
        for stale in names(&self.staging).map_err(self.error("list", "staging"))? {
            if let Some(_lock) = self.try_lock(&stale)? {
                tracing::debug!(%stale, "removing the staging directory of a dead process");
                self.remove_staged(&stale)?;
            }
        }
        Ok(())
    }

    /// Returns whether boxes use the layer `name` although it is damaged, so that no process is
    /// making it and none can.
    fn is_damaged_in_use(&self, name: &str) -> Result<bool, CacheError> {
        let Some(lease) = self.try_lock_shared(name)? else { return Ok(false) };
        Ok(!self.is_usable(name)?
            && self.state_of(name)? != LayerState::Missing
            && lease.is_shared())
    }
}
