//! A directory in `staging`, in which a recipe makes its content.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, symlinkat, unlinkat};

use super::error::CacheError;
use super::layer_cache::LayerCache;
use super::lock::LayerLock;
use super::name::{BOOT, Form, LAYER_FILE, METADATA_IMAGE, TREE};
use super::record::{CROSS_LAYER_FILE, FACTS, Record};
use super::task::Unpackers;
use crate::host::directory::{OPEN_DIR, names_in};

/// Name of a file that loses its name at once.
const UNNAMED: &str = "unnamed";

/// The files of a record.
const RECORD: [(&str, SFlag); 2] = [(FACTS, SFlag::S_IFREG), (CROSS_LAYER_FILE, SFlag::S_IFREG)];

/// How often a record has each of the remembered names at most: once in each of six sets, which add two
/// bytes to a name.
const RECORD_SETS: u64 = 8;

/// Size that a record may have in any case.
const RECORD_FLOOR_BYTES: u64 = 1 << 20;

/// A directory in `staging`, whose lock this process holds.
pub(crate) struct Staged<'c> {
    cache: &'c LayerCache,
    /// Path in the cache, for errors.
    path: String,
    directory: OwnedFd,
    lock: &'c LayerLock,
}

impl<'c> Staged<'c> {
    /// Makes the directory `name`, which must not exist.
    pub(super) fn new(
        cache: &'c LayerCache,
        name: &str,
        lock: &'c LayerLock,
    ) -> Result<Self, CacheError> {
        let path = format!("staging/{name}");
        let made = make_directory(&cache.staging, name);
        let directory = made.map_err(cache.error("make", &path))?;
        Ok(Self { cache, path, directory, lock })
    }

    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Returns the path of the directory, for errors.
    pub(crate) fn place(&self) -> PathBuf {
        self.cache.path_of(&self.path)
    }

    /// Returns the lock of the directory.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Returns the way to have work done by other processes, if the cache has one.
    pub(crate) fn unpackers(&self) -> Option<&dyn Unpackers> {
        self.cache.unpackers.as_deref()
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

    /// Returns whether the directory has what content of this form consists of, and nothing else.
    ///
    /// A process that a blob has taken over may have made it. It is therefore checked before this
    /// process opens a file in it: to open a named pipe would block, and a mark of the cache would be
    /// believed.
    pub(super) fn has_only(&self, form: Form) -> io::Result<bool> {
        let look = |name: &str| fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let expected = match form {
            Form::Tree => &[(TREE, SFlag::S_IFDIR), RECORD[0], RECORD[1]][..],
            Form::LayerFile => &[(LAYER_FILE, SFlag::S_IFREG)],
            Form::MetadataImage => &[(METADATA_IMAGE, SFlag::S_IFREG)],
        };
        let own = geteuid().as_raw();
        let found = look(".")?;
        if found.st_uid != own || found.st_mode & 0o7777 != Mode::S_IRWXU.bits() {
            return Ok(false);
        }
        let mut names = names_in(&self.directory)?;
        names.sort_unstable();
        let mut known: Vec<&[u8]> = expected.iter().map(|(name, _)| name.as_bytes()).collect();
        known.sort_unstable();
        if names != known {
            return Ok(false);
        }
        let record_bytes =
            RECORD_FLOOR_BYTES + RECORD_SETS * self.cache.limits.remembered_bytes as u64;
        for (name, kind) in expected {
            let found = look(name)?;
            let is_of_kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == *kind;
            let is_correct = match *kind {
                // The root of a tree has the owner and the mode that the image gives to it.
                SFlag::S_IFDIR => true,
                // A second name would be a way to change the file.
                _ => found.st_uid == own && found.st_nlink == 1,
            };
            let size = u64::try_from(found.st_size).unwrap_or(u64::MAX);
            let fits = form != Form::Tree || size <= record_bytes;
            if !(is_of_kind && is_correct && fits) {
                return Ok(false);
            }
        }
        Ok(true)
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
