//! The tree that a layer is unpacked into: every operation on the file system, each relative to a
//! directory fd.
//!
//! Names from an image are resolved by the kernel with the tree as their root (`RESOLVE_IN_ROOT`),
//! so that a symbolic link in a layer, absolute or full of `..`, means what it means in the box.
//! Only the directory of an entry is resolved that way; what is then done to the entry takes a
//! single name, and never follows it.
//!
//! # Invariants
//!
//! - Nobody else works in the tree: it is in a private folder, under a lock.
//! - A path is resolved anew for each entry. A remembered directory could have been replaced by a later entry
//!   (CVE-2025-47290).

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat,
    futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr, lsetxattr};

use super::archive::Metadata;
use super::path::{EntryPath, PATH_BYTES, PathError, components};
use super::remove::remove_tree;
use crate::mount::Flavour;

/// Bound on symbolic links in one path: the kernel's own.
const SYMLINK_HOPS: usize = 40;

/// How often a resolution is tried again that a rename elsewhere on the machine has disturbed
/// (`EAGAIN`).
const RESOLVE_ATTEMPTS: usize = 64;

/// Mode of directories that no entry describes; what other tools use.
const IMPLICIT_DIR_MODE: u32 = 0o755;

/// An entry that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The name cannot be used.
    #[error("unusable name")]
    Name(#[source] PathError),
    /// The name of a hard link's target cannot be used.
    #[error("unusable hard link target")]
    LinkName(#[source] PathError),
    /// The name is that of a whiteout which hides nothing that could exist.
    #[error("malformed whiteout name")]
    Whiteout,
    /// The root of the layer is something else than a directory.
    #[error("the root of a layer can only be a directory")]
    Root,
    /// Something on the way to the entry is not a directory.
    #[error("a parent of the entry is not a directory")]
    ParentNotDirectory,
    /// The way to the entry has too many symbolic links.
    #[error("too many symbolic links on the way to the entry")]
    SymlinkLoop,
    /// The target of a symbolic link is none.
    #[error("malformed symbolic link: expected a target of 1 to {PATH_BYTES} bytes without NUL")]
    SymlinkTarget,
    /// The target of a hard link is not in the layer.
    #[error(
        "hard link target `{target}` is not in this layer: links to lower layers are not supported yet"
    )]
    HardLinkTarget {
        /// The target.
        target: String,
    },
    /// The target of a hard link is a directory.
    #[error("hard link target `{target}` is a directory")]
    HardLinkToDirectory {
        /// The target.
        target: String,
    },
    /// The owner is nobody in the user namespace of the process.
    #[error(
        "owner {uid}:{gid} is not mapped in this user namespace: give the user sub-ids in /etc/subuid and /etc/subgid"
    )]
    Unmapped {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// The process lacks a capability.
    #[error(
        "not permitted to {operation}: layers can be unpacked by root only, or in a user namespace"
    )]
    Privilege {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes an error of what `operation` returned.
fn failed<E: Into<io::Error>>(operation: &'static str) -> impl Fn(E) -> EntryError {
    move |error| {
        let source: io::Error = error.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => EntryError::Privilege { operation, source },
            _ => EntryError::System { operation, source },
        }
    }
}

/// A directory whose modification time is restored when nothing is put into it any more.
#[derive(Debug)]
struct DirTime {
    path: Vec<u8>,
    inode: u64,
    mtime: (i64, u32),
    origin: Origin,
}

/// Why a directory is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// An entry describes it.
    Entry,
    /// Something had to be put into it.
    Implicit,
}

/// A name in an open directory.
#[derive(Debug)]
pub(super) struct Place<'a> {
    parent: OwnedFd,
    name: &'a [u8],
}

/// The tree, by its root.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    flavour: Flavour,
    times: Vec<DirTime>,
    times_bytes: usize,
}

impl Tree {
    /// Takes an empty directory as the root.
    pub(super) fn new(root: OwnedFd) -> Result<Self, EntryError> {
        let flavour = Flavour::of_process(&root).map_err(failed("try to mark a directory"))?;
        let mut this = Self { root, flavour, times: Vec::new(), times_bytes: 0 };
        this.set_implicit(b"", this.open_real(b"")?)?;
        Ok(this)
    }

    /// Returns how much memory is held until the end.
    pub(super) fn remembered_bytes(&self) -> usize {
        self.times_bytes
    }

    /// Finds the place of an entry; missing directories on the way are made.
    pub(super) fn place<'a>(&mut self, path: &'a EntryPath) -> Result<Place<'a>, EntryError> {
        let (parent, name) = path.split().ok_or(EntryError::Root)?;
        let parent = match self.resolve(parent) {
            // The kernel's count of links goes on when it starts a long walk again, so this counts
            // for itself.
            Err(Errno::ENOENT | Errno::ELOOP) => self.make_dirs(parent)?,
            other => other.map_err(path_error)?,
        };
        Ok(Place { parent, name })
    }

    /// Opens the directory of a path, with the tree as the root of all names.
    fn resolve(&self, directory: &[u8]) -> nix::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        let path = if directory.is_empty() { b"." } else { directory };
        let how = || {
            OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
                .resolve(resolve)
        };
        let mut attempts = (0..RESOLVE_ATTEMPTS).map(|_| openat2(&self.root, path, how()));
        attempts.find(|result| !matches!(result, Err(Errno::EAGAIN))).unwrap_or(Err(Errno::EAGAIN))
    }

    /// Opens a directory by a path without symbolic links.
    fn open_real(&self, directory: &[u8]) -> Result<OwnedFd, EntryError> {
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        let path = if directory.is_empty() { b"." } else { directory };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat2(&self.root, path, OpenHow::new().flags(flags).resolve(resolve)).map_err(path_error)
    }

    /// Resolves a path name by name, and makes directories where there is nothing, also where a
    /// link leads to nothing.
    fn make_dirs(&mut self, directory: &[u8]) -> Result<OwnedFd, EntryError> {
        let mut pending: Vec<Vec<u8>> = components(directory).rev().map(<[u8]>::to_vec).collect();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut hops = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                real.pop();
                continue;
            }
            let place = Place { parent: self.open_real(&real.join(&b'/'))?, name: &name };
            match place.kind()? {
                Some(SFlag::S_IFLNK) => {
                    hops += 1;
                    if hops > SYMLINK_HOPS {
                        return Err(EntryError::SymlinkLoop);
                    }
                    let target =
                        readlinkat(&place.parent, place.name).map_err(path_error)?.into_vec();
                    if target.starts_with(b"/") {
                        real.clear();
                    }
                    pending.extend(components(&target).rev().map(<[u8]>::to_vec));
                    continue;
                }
                Some(SFlag::S_IFDIR) => {}
                Some(_) => return Err(EntryError::ParentNotDirectory),
                None => {
                    let made = place.make_dir()?;
                    self.set_implicit(&[real.join(&b'/'), name.clone()].join(&b'/'), made)?;
                }
            }
            real.push(name);
        }
        self.open_real(&real.join(&b'/'))
    }

    /// Gives a directory that no entry describes its metadata: the same in each run.
    fn set_implicit(&mut self, path: &[u8], directory: OwnedFd) -> Result<(), EntryError> {
        let path: Vec<&[u8]> = components(path).collect();
        let metadata = Metadata { mode: IMPLICIT_DIR_MODE, ..Metadata::default() };
        self.set_dir(&path.join(&b'/'), directory, &metadata, Origin::Implicit)
    }

    /// Sets all metadata of a directory but its time, which is remembered.
    fn set_dir(
        &mut self,
        path: &[u8],
        directory: OwnedFd,
        metadata: &Metadata,
        origin: Origin,
    ) -> Result<(), EntryError> {
        let directory = File::from(directory);
        set_owner_and_mode(&directory, metadata)?;
        let inode = fstat(&directory).map_err(failed("look at a directory"))?.st_ino;
        self.times.push(DirTime { path: path.to_vec(), inode, mtime: metadata.mtime, origin });
        self.times_bytes += path.len() + size_of::<DirTime>();
        Ok(())
    }

    /// Makes a directory, or takes the one that is there.
    pub(super) fn directory(
        &mut self,
        path: &EntryPath,
        metadata: &Metadata,
    ) -> Result<(), EntryError> {
        let directory = match path.split() {
            None => self.open_real(b"")?,
            Some(_) => {
                let place = self.place(path)?;
                match place.kind()? {
                    Some(SFlag::S_IFDIR) => place.open_dir()?,
                    Some(_) => place.remove().and_then(|()| place.make_dir())?,
                    None => place.make_dir()?,
                }
            }
        };
        self.set_dir(path.as_bytes(), directory, metadata, Origin::Entry)
    }

    /// Makes a hard link to another entry of the layer, which keeps the metadata it has.
    pub(super) fn hard_link(
        &mut self,
        path: &EntryPath,
        target: &EntryPath,
    ) -> Result<(), EntryError> {
        let shown = || super::show(target.as_bytes());
        let missing = || EntryError::HardLinkTarget { target: shown() };
        let Some((directory, name)) = target.split() else {
            return Err(EntryError::HardLinkToDirectory { target: "/".to_owned() });
        };
        let parent = match self.resolve(directory) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(missing()),
            other => other.map_err(path_error)?,
        };
        let from = Place { parent, name };
        let found = from.stat()?.ok_or_else(missing)?;
        if file_type(&found) == SFlag::S_IFDIR {
            return Err(EntryError::HardLinkToDirectory { target: shown() });
        }
        let place = self.place(path)?;
        if place.stat()?.is_some_and(|there| there.st_ino == found.st_ino) {
            return Ok(()); // A link to itself: replacing it would remove the only name.
        }
        let link = || linkat(&from.parent, from.name, &place.parent, place.name, AtFlags::empty());
        place.create("make a hard link", link)
    }

    /// Marks a directory as hiding what is below it; one that is missing is made, and what is no
    /// directory is left.
    pub(super) fn set_opaque(&mut self, path: &EntryPath) -> Result<(), EntryError> {
        let place = match self.place(path) {
            Err(EntryError::ParentNotDirectory) => return Ok(()),
            place => place?,
        };
        match place.kind()? {
            Some(SFlag::S_IFDIR) => place.mark_opaque(self.flavour),
            Some(_) => Ok(()),
            None => {
                let made = place.make_dir()?;
                self.set_implicit(path.as_bytes(), made)?;
                place.mark_opaque(self.flavour)
            }
        }
    }

    /// Hides what lower layers have at `path`; says whether that took an opaque directory.
    pub(super) fn hide(&mut self, path: &EntryPath) -> Result<bool, EntryError> {
        let place = match self.place(path) {
            // Below a file of this layer nothing can be seen.
            Err(EntryError::ParentNotDirectory) => return Ok(false),
            place => place?,
        };
        match place.kind()? {
            Some(SFlag::S_IFDIR) => place.mark_opaque(self.flavour).map(|()| true),
            Some(_) => Ok(false),
            None => place.make_whiteout().map(|()| false),
        }
    }

    /// Restores the times of directories, and lists those that no entry describes; nothing may be
    /// made afterwards.
    pub(super) fn finish(self) -> Result<Vec<PathBuf>, EntryError> {
        // A directory can be described more than once; the last time counts.
        let last: HashMap<u64, &DirTime> =
            self.times.iter().map(|directory| (directory.inode, directory)).collect();
        let mut implicit = Vec::new();
        for remembered in last.into_values() {
            let Ok(directory) = self.resolve(&remembered.path) else { continue };
            // A later entry may have replaced the directory, or a link on the way to it.
            if fstat(&directory).map_err(failed("look at a directory"))?.st_ino != remembered.inode
            {
                continue;
            }
            let mtime = time(remembered.mtime);
            utimensat(&directory, ".", &mtime, &mtime, UtimensatFlags::NoFollowSymlink)
                .map_err(failed("set the times of a directory"))?;
            if remembered.origin == Origin::Implicit {
                implicit.push(PathBuf::from(OsString::from_vec(remembered.path.clone())));
            }
        }
        implicit.sort_unstable();
        Ok(implicit)
    }
}

impl Place<'_> {
    /// Looks at what is there, without following it.
    fn stat(&self) -> Result<Option<FileStat>, EntryError> {
        match fstatat(&self.parent, self.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(failed("look at an entry")(errno)),
        }
    }

    fn kind(&self) -> Result<Option<SFlag>, EntryError> {
        Ok(self.stat()?.as_ref().map(file_type))
    }

    /// Removes what is there, whatever it is.
    pub(super) fn remove(&self) -> Result<(), EntryError> {
        remove_tree(self.parent.as_fd(), self.name)
            .map_err(failed("remove an entry that a later one replaces"))
    }

    /// Makes something, in place of what is there.
    fn create<T>(
        &self,
        operation: &'static str,
        make: impl Fn() -> nix::Result<T>,
    ) -> Result<T, EntryError> {
        match make() {
            Err(Errno::EEXIST) => {
                self.remove()?;
                make()
            }
            made => made,
        }
        .map_err(failed(operation))
    }

    /// Makes a file to be written; `set_file` gives it its metadata.
    pub(super) fn create_file(&self) -> Result<File, EntryError> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(&self.parent, self.name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        self.create("make a file", open).map(File::from)
    }

    /// Makes a symbolic link; its target is the box's affair.
    pub(super) fn symlink(&self, target: &[u8], metadata: &Metadata) -> Result<(), EntryError> {
        if target.is_empty() || target.len() > PATH_BYTES || target.contains(&0) {
            return Err(EntryError::SymlinkTarget);
        }
        self.create("make a symbolic link", || symlinkat(target, &self.parent, self.name))?;
        self.set_special(metadata)
    }

    /// Makes a named pipe.
    pub(super) fn fifo(&self, metadata: &Metadata) -> Result<(), EntryError> {
        let make = || mknodat(&self.parent, self.name, SFlag::S_IFIFO, Mode::S_IRUSR, 0);
        self.create("make a named pipe", make)?;
        self.set_special(metadata)?;
        // This does follow links, but the name is that of the pipe just made, which cannot be
        // opened for `fchmod`.
        fchmodat(&self.parent, self.name, mode(metadata), FchmodatFlags::FollowSymlink)
            .map_err(failed("set a mode"))?;
        self.set_times(metadata)
    }

    /// Sets owner, attributes and time of what cannot be opened.
    fn set_special(&self, metadata: &Metadata) -> Result<(), EntryError> {
        let (uid, gid) = owner(metadata);
        fchownat(&self.parent, self.name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(owner_error(metadata))?;
        for (name, value) in kept_xattrs(metadata) {
            // The kernel allows these on files and directories only; nothing is lost that could
            // have been there.
            if name.starts_with(b"user.") || name.starts_with(b"system.") {
                continue;
            }
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

    fn make_dir(&self) -> Result<OwnedFd, EntryError> {
        mkdirat(&self.parent, self.name, Mode::S_IRWXU).map_err(failed("make a directory"))?;
        self.open_dir()
    }

    fn open_dir(&self) -> Result<OwnedFd, EntryError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.parent, self.name, flags, Mode::empty()).map_err(failed("open a directory"))
    }

    fn mark_opaque(&self, flavour: Flavour) -> Result<(), EntryError> {
        fsetxattr(self.open_dir()?, flavour.opaque_xattr(), b"y", XattrFlags::empty())
            .map_err(failed("mark a directory as opaque"))
    }

    fn make_whiteout(&self) -> Result<(), EntryError> {
        mknodat(&self.parent, self.name, SFlag::S_IFCHR, Mode::empty(), 0)
            .map_err(failed("make a whiteout"))
    }
}

/// Says whether overlayfs hides what lower layers have in a directory.
pub(crate) fn is_opaque(directory: &OwnedFd) -> nix::Result<bool> {
    use rustix::io::Errno as E;
    // No layer can have either but by our hand.
    for flavour in [Flavour::Trusted, Flavour::User] {
        let mut value = [0_u8; 1];
        match fgetxattr(directory, flavour.opaque_xattr(), &mut value) {
            Ok(length) if value[..length] == *b"y" => return Ok(true),
            // Nothing but `y` is ever set, and a longer value is none of ours.
            Ok(_) | Err(E::NODATA | E::RANGE | E::NOTSUP) => {}
            Err(errno) => return Err(Errno::from_raw(errno.raw_os_error())),
        }
    }
    Ok(false)
}

/// Gives a file its metadata, in the order in which nothing is cleared again: owner, attributes,
/// mode, time.
pub(super) fn set_file(file: &File, metadata: &Metadata) -> Result<(), EntryError> {
    set_owner_and_mode(file, metadata)?;
    let mtime = time(metadata.mtime);
    futimens(file, &mtime, &mtime).map_err(failed("set the times of a file"))
}

/// Changing the owner clears setuid bits and `security.capability`, so it comes first.
fn set_owner_and_mode(file: &File, metadata: &Metadata) -> Result<(), EntryError> {
    let (uid, gid) = owner(metadata);
    fchown(file, uid, gid).map_err(owner_error(metadata))?;
    for (name, value) in kept_xattrs(metadata) {
        fsetxattr(file, name, value, XattrFlags::empty())
            .map_err(failed("set an extended attribute"))?;
    }
    fchmod(file, mode(metadata)).map_err(failed("set a mode"))
}

/// Chooses the attributes that mean something in a box.
///
/// Not `trusted.*`, which would let an image steer overlayfs, nor its unprivileged twin
/// `user.overlay.*`; not the labels of the builder's security module.
fn kept_xattrs(metadata: &Metadata) -> impl Iterator<Item = (&[u8], &[u8])> {
    let kept = |name: &[u8]| {
        (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
            || name == b"security.capability"
            || name.starts_with(b"system.posix_acl_")
    };
    metadata
        .xattrs
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
        .filter(move |(name, _)| kept(name))
}

/// Makes an error of a change of owner; ids that are not mapped are the only invalid ones.
fn owner_error(metadata: &Metadata) -> impl Fn(Errno) -> EntryError {
    let (uid, gid) = (metadata.uid, metadata.gid);
    move |errno| match errno {
        Errno::EINVAL => EntryError::Unmapped { uid, gid },
        errno => failed("set an owner")(errno),
    }
}

fn path_error(errno: Errno) -> EntryError {
    match errno {
        Errno::ENOTDIR => EntryError::ParentNotDirectory,
        Errno::ELOOP => EntryError::SymlinkLoop,
        errno => failed("open the directory of an entry")(errno),
    }
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn owner(metadata: &Metadata) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))
}

fn mode(metadata: &Metadata) -> Mode {
    Mode::from_bits_truncate(metadata.mode)
}

fn time((seconds, nanoseconds): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, nanoseconds.into())
}
