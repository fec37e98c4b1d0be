//! Finding layers in the cache, and locking them for use.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstatat};

use super::error::CacheError;
use super::layer_cache::LayerCache;
use super::lock::LayerLease;
use super::name::{BOOT, SYNCED, TREE};
use super::record::Record;
use crate::host::directory::OPEN_DIR;
use crate::unpack::cross_layer::CrossLayerDependencies;
use crate::unpack::facts::LayerFacts;

/// A layer in the cache.
#[derive(Debug)]
pub struct CachedLayer {
    /// The tree, a lower directory for overlayfs. Callers must not write to it.
    pub path: PathBuf,
    /// Whether the layer was in the cache already.
    pub hit: bool,
    /// Facts that do not depend on other layers.
    pub facts: LayerFacts,
    /// The paths at which the layer depends on the layers below it.
    pub(crate) dependencies: CrossLayerDependencies,
    /// Name in the cache.
    pub(crate) name: String,
    /// Keeps the layer from being removed. Callers must keep it while the layer is mounted.
    pub lease: LayerLease,
}

/// The state of the directory of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerState {
    Missing,
    Ready,
    /// Damaged, or written in an earlier boot and not marked as synced, so that a crash may have
    /// lost the content of files.
    Unusable,
}

impl LayerCache {
    /// Returns the layer `name` if it is ready, and if no process is about to remove it.
    pub(crate) fn get(&self, name: &str) -> Result<Option<CachedLayer>, CacheError> {
        let Some(lease) = self.lease(name)? else { return Ok(None) };
        // The lease comes first, so that no process removes the layer while its record is read.
        let record = self.record(name)?;
        let path = self.tree_path(name);
        Ok(record.map(|Record { facts, dependencies }| CachedLayer {
            path,
            hit: true,
            facts,
            dependencies,
            name: name.to_owned(),
            lease,
        }))
    }

    /// Locks the layer `name` against removal, if it is ready and no process is about to remove it.
    pub(crate) fn lease(&self, name: &str) -> Result<Option<LayerLease>, CacheError> {
        match self.is_ready(name)? {
            true => self.lease_listed(name),
            // Taking the lock, even for a moment, would keep another process from making the layer.
            false => Ok(None),
        }
    }

    /// Does the same for a layer in the list of a stack. A layer in a list nearly always exists,
    /// so it is looked at only once, when it is locked.
    pub(crate) fn lease_listed(&self, name: &str) -> Result<Option<LayerLease>, CacheError> {
        let Some(lease) = self.try_lock_shared(name)? else { return Ok(None) };
        if !self.is_ready(name)? {
            return Ok(None);
        }
        lease.record_use();
        Ok(Some(lease))
    }

    /// Reads the record of the layer `name`. Returns `None` if the layer is missing or damaged.
    pub(crate) fn record(&self, name: &str) -> Result<Option<Record>, CacheError> {
        let directory = openat(&self.ready, name, OPEN_DIR, Mode::empty()).map_err(io::Error::from);
        match directory.and_then(|directory| Record::read(&directory)) {
            // A file is missing, or a file of another type has its name.
            Err(source)
                if [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP]
                    .map(|errno| Some(errno as i32))
                    .contains(&source.raw_os_error()) =>
            {
                Ok(None)
            }
            read => read.map_err(self.error("read the record of", &format!("ready/{name}"))),
        }
    }

    /// Returns whether the layer `name` is ready and has a valid record.
    pub(super) fn is_usable(&self, name: &str) -> Result<bool, CacheError> {
        Ok(self.is_ready(name)? && self.record(name)?.is_some())
    }

    /// Returns whether the layer `name` is ready. Its record is not read.
    pub(crate) fn is_ready(&self, name: &str) -> Result<bool, CacheError> {
        Ok(self.state_of(name)? == LayerState::Ready)
    }

    pub(super) fn state_of(&self, name: &str) -> Result<LayerState, CacheError> {
        let error = |errno: Errno| self.error("look at", &format!("ready/{name}"))(errno);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = match openat(&self.ready, name, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::ENOENT) => return Ok(LayerState::Missing),
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(LayerState::Unusable),
            Err(errno) => return Err(error(errno)),
        };
        // In the boot that wrote the layer, the page cache has its content even if the disk does
        // not.
        let is_durable = || {
            exists(&directory, SYNCED)
                || readlinkat(&directory, BOOT).is_ok_and(|id| id == self.boot)
        };
        Ok(match exists(&directory, TREE) && is_durable() {
            true => LayerState::Ready,
            false => LayerState::Unusable,
        })
    }
}

/// Returns whether `directory` has an entry `name`, which may be a dangling symbolic link.
pub(crate) fn exists(directory: &OwnedFd, name: &str) -> bool {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}
