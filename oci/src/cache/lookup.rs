//! Finding content in the cache, and locking it for use.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstatat};

use super::content::Content;
use super::error::CacheError;
use super::layer_cache::LayerCache;
use super::lock::LayerLease;
use super::name::{BOOT, Form, SYNCED};
use super::record::Record;
use crate::block::image::MetadataImage;
use crate::block::layer_file::LayerFile;
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

/// Content of the cache, locked against removal.
#[derive(Debug)]
pub(crate) struct Cached<C> {
    pub(crate) content: C,
    /// Whether the content was in the cache already.
    pub(crate) hit: bool,
    /// Name in the cache.
    pub(crate) name: String,
    pub(crate) lease: LayerLease,
}

impl LayerCache {
    /// Returns the content `name` if it is ready, and if no process is about to remove it.
    pub(crate) fn get<C: Content>(&self, name: &str) -> Result<Option<Cached<C>>, CacheError> {
        match self.is_ready(name)? {
            true => self.get_listed(name),
            // Taking the lock, even for a moment, would keep another process from making it.
            false => Ok(None),
        }
    }

    /// Does the same for content in a list. It nearly always exists, so it is looked at only once,
    /// when it is locked.
    pub(crate) fn get_listed<C: Content>(
        &self,
        name: &str,
    ) -> Result<Option<Cached<C>>, CacheError> {
        // The lease comes first, so that no process removes the content while it is opened.
        let Some((lease, directory)) = self.lease_open(name)? else { return Ok(None) };
        let content = self.unless_damaged(name, C::open(&directory))?;
        let name = name.to_owned();
        Ok(content.map(|content| Cached { content, hit: true, name, lease }))
    }

    /// Returns the tree of a layer from its record.
    pub(crate) fn layer(&self, cached: Cached<Record>) -> CachedLayer {
        let Cached { content: Record { facts, dependencies }, hit, name, lease } = cached;
        CachedLayer { path: self.tree_path(&name), hit, facts, dependencies, name, lease }
    }

    /// Locks the layer `name` against removal, if it is ready and no process is about to remove it.
    pub(crate) fn lease(&self, name: &str) -> Result<Option<LayerLease>, CacheError> {
        match self.is_ready(name)? {
            true => self.lease_listed(name),
            // Taking the lock, even for a moment, would keep another process from making the layer.
            false => Ok(None),
        }
    }

    /// Does the same for a layer in a list.
    pub(crate) fn lease_listed(&self, name: &str) -> Result<Option<LayerLease>, CacheError> {
        Ok(self.lease_open(name)?.map(|(lease, _)| lease))
    }

    /// Locks the content `name` against removal if it is ready, and opens its directory.
    fn lease_open(&self, name: &str) -> Result<Option<(LayerLease, OwnedFd)>, CacheError> {
        let Some(lease) = self.try_lock_shared(name)? else { return Ok(None) };
        let Some(directory) = self.open_ready(name)?.ok() else { return Ok(None) };
        lease.record_use();
        Ok(Some((lease, directory)))
    }

    /// Opens the content `name`. Returns `None` if it is missing or damaged.
    pub(crate) fn open_content<C: Content>(&self, name: &str) -> Result<Option<C>, CacheError> {
        let directory = openat(&self.ready, name, OPEN_DIR, Mode::empty()).map_err(io::Error::from);
        self.unless_damaged(name, directory.and_then(|directory| C::open(&directory)))
    }

    /// Returns opened content, or `None` if the error shows that it is missing or damaged.
    fn unless_damaged<C>(
        &self,
        name: &str,
        opened: io::Result<Option<C>>,
    ) -> Result<Option<C>, CacheError> {
        match opened {
            // A file is missing, or a file of another type has its name.
            Err(source)
                if [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP, Errno::EISDIR]
                    .map(|errno| Some(errno as i32))
                    .contains(&source.raw_os_error()) =>
            {
                Ok(None)
            }
            opened => opened.map_err(self.error("open", &format!("ready/{name}"))),
        }
    }

    /// Returns the disk space that the content `name` takes. Returns `None` if it is damaged.
    pub(super) fn stored_bytes(&self, name: &str) -> Result<Option<u64>, CacheError> {
        match Form::of(name) {
            Form::Tree => self.stored_bytes_of::<Record>(name),
            Form::LayerFile => self.stored_bytes_of::<LayerFile>(name),
            Form::MetadataImage => self.stored_bytes_of::<MetadataImage>(name),
        }
    }

    fn stored_bytes_of<C: Content>(&self, name: &str) -> Result<Option<u64>, CacheError> {
        let content = self.open_content::<C>(name)?;
        let bytes = content.map(|content| content.stored_bytes()).transpose();
        bytes.map_err(self.error("look at", &format!("ready/{name}")))
    }

    /// Returns whether the content `name` is ready. It is not opened.
    pub(crate) fn is_ready(&self, name: &str) -> Result<bool, CacheError> {
        Ok(self.state_of(name)? == LayerState::Ready)
    }

    pub(super) fn state_of(&self, name: &str) -> Result<LayerState, CacheError> {
        Ok(self.open_ready(name)?.err().unwrap_or(LayerState::Ready))
    }

    /// Opens the directory of the content `name` as a path if it is ready, or else returns its state.
    fn open_ready(&self, name: &str) -> Result<Result<OwnedFd, LayerState>, CacheError> {
        let error = |errno: Errno| self.error("look at", &format!("ready/{name}"))(errno);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = match openat(&self.ready, name, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::ENOENT) => return Ok(Err(LayerState::Missing)),
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(Err(LayerState::Unusable)),
            Err(errno) => return Err(error(errno)),
        };
        // In the boot that wrote the layer, the page cache has its content even if the disk does
        // not.
        let is_durable = || {
            exists(&directory, SYNCED)
                || readlinkat(&directory, BOOT).is_ok_and(|id| id == self.boot)
        };
        Ok(match exists(&directory, Form::of(name).entry()) && is_durable() {
            true => Ok(directory),
            false => Err(LayerState::Unusable),
        })
    }
}

/// Returns whether `directory` has an entry `name`, which may be a dangling symbolic link.
pub(crate) fn exists(directory: &OwnedFd, name: &str) -> bool {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}
