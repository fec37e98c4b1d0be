//! A name in an open directory, and the operations on it.
//!
//! Each operation uses a single name relative to the directory's fd, and never follows a symbolic
//! link of that name. This keeps an image from writing outside of its tree. The metadata of a new
//! inode is set by its own fd where it can be opened, and by the name otherwise.

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens,
    mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};
use rustix::fs::{XattrFlags, fremovexattr, fsetxattr, lsetxattr};

use super::entry_error::{EntryError, failed};
use super::mapped::MappedIds;
use super::path::PATH_BYTES;
use crate::host::overlay_xattr::OverlayXattrs;
use crate::host::remove::remove_tree;
use crate::host::xattr::{is_kept, kept_names_of};
use crate::tar::archive::Metadata;

/// A name in an open directory.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) parent: OwnedFd,
    /// Path of `parent` below the root. It has no symbolic links if the place comes from
    /// `Tree::place`.
    pub(super) directory: Cow<'a, [u8]>,
    pub(super) name: &'a [u8],
}

impl Place<'_> {
    /// Returns the path below the root.
    pub(super) fn path(&self) -> Vec<u8> {
        match self.directory.is_empty() {
            true => self.name.to_vec(),
            false => [&self.directory, self.name].join(&b'/'),
        }
    }

    /// Returns the status of the inode with this name, or `None` if the name does not exist.
    pub(super) fn stat(&self) -> Result<Option<FileStat>, EntryError> {
        match fstatat(&self.parent, self.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(failed("look at an entry")(errno)),
        }
    }

    pub(super) fn kind(&self) -> Result<Option<SFlag>, EntryError> {
        Ok(self.stat()?.as_ref().map(file_type))
    }

    /// Removes the file or the whole directory with this name.
    pub(super) fn remove(&self) -> Result<(), EntryError> {
        remove_tree(self.parent.as_fd(), self.name)
            .map_err(failed("remove an entry that a later one replaces"))
    }

    /// Creates an inode, and replaces an existing one of this name.
    ///
    /// The name is removed only after `EEXIST`, because most names are new and a removal first
    /// would cost a system call for each.
    pub(super) fn create<T>(
        &self,
        action: &'static str,
        make: impl Fn() -> nix::Result<T>,
    ) -> Result<T, EntryError> {
        match make() {
            Err(Errno::EEXIST) => {
                self.remove()?;
                make()
            }
            made => made,
        }
        .map_err(failed(action))
    }

    /// Creates an empty file and opens it for writing. Callers must set its metadata by `set_file`.
    pub(super) fn create_file(&self) -> Result<File, EntryError> {
        // With `O_EXCL` the kernel returns `EEXIST` for an existing name of any type. A symbolic
        // link is then replaced, and never followed. Only the owner has access until `set_file`
        // sets the mode of the entry.
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(&self.parent, self.name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        self.create("make a file", open).map(File::from)
    }

    /// Creates a symbolic link. The target is not checked beyond its length, because only the guest
    /// follows it.
    pub(super) fn symlink(&self, target: &[u8], metadata: &Metadata) -> Result<(), EntryError> {
        if target.is_empty() || target.len() > PATH_BYTES || target.contains(&0) {
            return Err(EntryError::SymlinkTarget);
        }
        self.create("make a symbolic link", || symlinkat(target, &self.parent, self.name))?;
        self.set_special(metadata)
    }

    /// Creates a named pipe.
    pub(super) fn fifo(&self, metadata: &Metadata) -> Result<(), EntryError> {
        let make = || mknodat(&self.parent, self.name, SFlag::S_IFIFO, Mode::S_IRUSR, 0);
        self.create("make a named pipe", make)?;
        self.set_special(metadata)?;
        // The mode comes after the owner, because `chown(2)` clears the setuid and setgid bits. It
        // is not passed to `mknodat(2)`, which would apply the umask to it.
        fchmodat(&self.parent, self.name, mode(metadata), FchmodatFlags::NoFollowSymlink)
            .map_err(failed("set a mode"))
    }

    /// Sets owner, extended attributes and times of an inode that cannot be opened: to open a named
    /// pipe would block, and to open a symbolic link would follow it.
    fn set_special(&self, metadata: &Metadata) -> Result<(), EntryError> {
        let (uid, gid) = owner(metadata);
        fchownat(&self.parent, self.name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(owner_error(metadata))?;
        for (name, value) in kept_xattrs(metadata) {
            // The kernel allows `user.*` only on regular files and directories (`xattr(7)`), and no
            // ACLs (`system.*`) on symbolic links. Both are skipped for all types without an fd.
            if name.starts_with(b"user.") || name.starts_with(b"system.") {
                continue;
            }
            // `setxattrat(2)` needs Linux 6.13. On older kernels a path in procfs stands for the fd
            // of the directory.
            let path =
                [format!("/proc/self/fd/{}/", self.parent.as_raw_fd()).as_bytes(), self.name]
                    .concat();
            lsetxattr(path, name, value, XattrFlags::empty())
                .map_err(failed("set an extended attribute"))?;
        }
        self.set_times(metadata)
    }

    fn set_times(&self, metadata: &Metadata) -> Result<(), EntryError> {
        let mtime = time(metadata.mtime);
        utimensat(&self.parent, self.name, &mtime, &mtime, UtimensatFlags::NoFollowSymlink)
            .map_err(failed("set the times of an entry"))
    }

    pub(super) fn make_dir(&self) -> Result<OwnedFd, EntryError> {
        mkdirat(&self.parent, self.name, Mode::S_IRWXU).map_err(failed("make a directory"))?;
        self.open_dir()
    }

    /// Opens a directory by `O_PATH`, which is enough to resolve names in it.
    pub(super) fn open_path(&self) -> Result<OwnedFd, EntryError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.parent, self.name, flags, Mode::empty()).map_err(failed("open a directory"))
    }

    pub(super) fn open_dir(&self) -> Result<OwnedFd, EntryError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.parent, self.name, flags, Mode::empty()).map_err(failed("open a directory"))
    }

    pub(super) fn mark_opaque(&self, overlay_xattrs: OverlayXattrs) -> Result<(), EntryError> {
        // `fsetxattr(2)` refuses an fd of `O_PATH`, so the directory is opened for reading.
        fsetxattr(self.open_dir()?, overlay_xattrs.opaque_xattr(), b"y", XattrFlags::empty())
            .map_err(failed("mark a directory as opaque"))
    }

    pub(super) fn make_whiteout(&self) -> Result<(), EntryError> {
        // Overlayfs reads a character device with the number 0:0 as a whiteout. Since Linux 5.8 its
        // creation needs no capability, so that it also works in a user namespace.
        mknodat(&self.parent, self.name, SFlag::S_IFCHR, Mode::empty(), 0)
            .map_err(failed("make a whiteout"))
    }
}

/// Removes the extended attributes that an earlier entry gave to a directory.
pub(super) fn without_xattrs(directory: OwnedFd) -> Result<OwnedFd, EntryError> {
    for name in kept_names_of(&directory).map_err(failed("list extended attributes"))? {
        fremovexattr(&directory, name).map_err(failed("remove an extended attribute"))?;
    }
    Ok(directory)
}

/// Sets the metadata of a file. The times are last, because the other calls and writes change them.
pub(super) fn set_file(file: &File, metadata: &Metadata) -> Result<(), EntryError> {
    set_owner_and_mode(file, metadata)?;
    let mtime = time(metadata.mtime);
    futimens(file, &mtime, &mtime).map_err(failed("set the times of a file"))
}

/// Sets owner, extended attributes and mode. The owner is first, because `fchown(2)` clears the
/// setuid and setgid bits and `security.capability`.
pub(super) fn set_owner_and_mode(file: &File, metadata: &Metadata) -> Result<(), EntryError> {
    let (uid, gid) = owner(metadata);
    fchown(file, uid, gid).map_err(owner_error(metadata))?;
    for (name, value) in kept_xattrs(metadata) {
        fsetxattr(file, name, value, XattrFlags::empty())
            .map_err(failed("set an extended attribute"))?;
    }
    fchmod(file, mode(metadata)).map_err(failed("set a mode"))
}

fn kept_xattrs(metadata: &Metadata) -> impl Iterator<Item = (&[u8], &[u8])> {
    let xattrs = metadata.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    xattrs.filter(|(name, _)| is_kept(name))
}

/// Returns a function that converts the error of a change of owner. The kernel returns `EINVAL`
/// only for ids that are not mapped in the user namespace.
fn owner_error(metadata: &Metadata) -> impl Fn(Errno) -> EntryError {
    let (uid, gid) = (metadata.uid, metadata.gid);
    move |errno| match errno {
        Errno::EINVAL => {
            let (uids, gids) = (MappedIds::users(), MappedIds::groups());
            EntryError::Unmapped { uid, gid, uids, gids }
        }
        errno => failed("set an owner")(errno),
    }
}

pub(super) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn owner(metadata: &Metadata) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))
}

fn mode(metadata: &Metadata) -> Mode {
    Mode::from_bits_truncate(metadata.mode)
}

pub(super) fn time((seconds, nanoseconds): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, nanoseconds.into())
}
