//! A directory in `staging`, in which a recipe makes its content.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::error::CacheError;
use super::layer_cache::LayerCache;
use super::name::{BOOT, TREE};
use super::record::Record;
use crate::host::directory::OPEN_DIR;

/// Name of a file that loses its name at once.
const UNNAMED: &str = "unnamed";

/// A directory in `staging`, whose lock this process holds.
pub(crate) struct Staged<'c> {
    cache: &'c LayerCache,
    /// Path in the cache, for errors.
    path: String,
    directory: OwnedFd,
}

impl<'c> Staged<'c> {
    /// Makes the directory `name`, which must not exist.
    pub(super) fn new(cache: &'c LayerCache, name: &str) -> Result<Self, CacheError> {
        let path = format!("staging/{name}");
        let made = make_directory(&cache.staging, name);
        let directory = made.map_err(cache.error("make", &path))?;
        Ok(Self { cache, path, directory })
    }

    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Makes the empty directory [`TREE`].
    pub(crate) fn make_tree(&self) -> Result<OwnedFd, CacheError> {
        make_directory(&self.directory, TREE).map_err(self.error("make the tree of"))
    }

    /// Writes the record of a tree.
    pub(crate) fn write_record(&self, record: &Record) -> Result<(), CacheError> {
        record.write(&self.directory).map_err(self.error("write the record of"))
    }

    /// Makes an empty file.
    pub(crate) fn make_file(&self, name: &str) -> Result<File, CacheError> {
        make_file(&self.directory, name).map_err(self.error("make a file in"))
    }

    /// Makes an empty file without a name.
    pub(crate) fn make_unnamed_file(&self) -> io::Result<File> {
        // `O_TMPFILE` would need no name, but some file systems do not support it.
        let file = make_file(&self.directory, UNNAMED)?;
        unlinkat(&self.directory, UNNAMED, UnlinkatFlags::NoRemoveDir)?;
        Ok(file)
    }

    /// Marks the content as made in this boot.
    pub(super) fn mark(&self) -> Result<(), CacheError> {
        symlinkat(self.cache.boot.as_os_str(), &self.directory, BOOT)
            .map_err(self.error("write the boot of"))
    }

    /// Returns a function that makes the error of a call on this directory.
    pub(crate) fn error<E: Into<io::Error>>(
        &self,
        action: &'static str,
    ) -> impl FnOnce(E) -> CacheError + use<E> {
        self.cache.error(action, &self.path)
    }
}

/// Mode of the files of the cache.
const READ_ONLY: Mode = Mode::S_IRUSR.union(Mode::S_IRGRP).union(Mode::S_IROTH);

fn make_directory(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    mkdirat(parent, name, Mode::S_IRWXU)?;
    openat(parent, name, OPEN_DIR, Mode::empty())
}

fn make_file(directory: &OwnedFd, name: &str) -> Result<File, Errno> {
    let flags =
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    // Only this user can reach the file, because the cache directory is private. A VMM that has become
    // another user opens the file again by its fd, for reading, and needs the permission.
    fchmod(&file, READ_ONLY)?;
    Ok(file.into())
}
