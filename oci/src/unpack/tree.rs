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

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fstat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::linkat;

use super::archive::Metadata;
use super::path::{EntryPath, PATH_BYTES, PathError, components};
use super::place::{Place, file_type, set_owner_and_mode, time};
use super::seams::{Ground, Seams};
use crate::metadata::UNDESCRIBED_DIR_MODE;
use crate::mount::Flavour;

/// Bound on symbolic links in one path: the kernel's own.
const SYMLINK_HOPS: usize = 40;

/// How often a resolution is tried again that a rename elsewhere on the machine has disturbed
/// (`EAGAIN`).
const RESOLVE_ATTEMPTS: usize = 64;

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
    /// The target of a hard link is nowhere.
    #[error(
        "hard link target `{target}` does not exist: expected a file of this layer or of one below"
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
    /// The process lacks a capability.
    #[error(
        "not permitted to {operation}: layers can be unpacked by root only, user namespaces are not supported yet"
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
pub(super) fn failed<E: Into<io::Error>>(operation: &'static str) -> impl Fn(E) -> EntryError {
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

/// A hard link whose target was not there when its entry came.
#[derive(Debug)]
struct LateLink {
    path: EntryPath,
    target: EntryPath,
}

/// A directory of lower layers, and the time that it had before something was put into it.
#[derive(Debug)]
struct LowerDir {
    directory: OwnedFd,
    mtime: TimeSpec,
}

/// The tree, by its root.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    flavour: Flavour,
    /// Whether the tree is the view of lower layers, and what is written a layer on top of them.
    has_lower: bool,
    times: Vec<DirTime>,
    late_links: Vec<LateLink>,
    late_link_count: u64,
    /// The last directory that something was put into, on top of lower layers.
    touched: Option<LowerDir>,
    remembered_bytes: usize,
}

impl Tree {
    /// Takes the directory `root`: an empty one, or the view of lower layers.
    pub(super) fn new(
        root: OwnedFd,
        ground: Ground<'_>,
        flavour: Flavour,
    ) -> Result<Self, EntryError> {
        let mut this = Self {
            root,
            flavour,
            has_lower: matches!(ground, Ground::Lower(_)),
            times: Vec::new(),
            late_links: Vec::new(),
            late_link_count: 0,
            touched: None,
            remembered_bytes: 0,
        };
        if !this.has_lower {
            this.set_implicit(b"", this.open_real(b"")?)?;
        }
        Ok(this)
    }

    /// Returns how much memory is held until the end.
    pub(super) fn remembered_bytes(&self) -> usize {
        self.remembered_bytes
    }

    /// Finds the place of an entry; missing directories on the way are made.
    pub(super) fn place<'a>(&mut self, path: &'a EntryPath) -> Result<Place<'a>, EntryError> {
        let (parent, name) = path.split().ok_or(EntryError::Root)?;
        let parent = match self.resolve(parent) {
            // The kernel's count of links goes on when it starts a long walk again, so this counts
            // for itself.
            Err(Errno::ENOENT | Errno::ELOOP) => self.make_dirs(parent)?,
            Err(Errno::ENOTDIR) if self.has_lower => self.make_dirs(parent)?,
            other => other.map_err(path_error)?,
        };
        self.touch(&parent)?;
        Ok(Place { parent, name })
    }

    /// Remembers the time of a directory that is about to change: on top of lower layers, one that
    /// no entry describes keeps it.
    fn touch(&mut self, directory: &OwnedFd) -> Result<(), EntryError> {
        if !self.has_lower {
            return Ok(());
        }
        self.restore_touched()?;
        let found = fstat(directory).map_err(failed("look at a directory"))?;
        let directory = directory.try_clone().map_err(failed("keep a directory open"))?;
        let mtime = TimeSpec::new(found.st_mtime, found.st_mtime_nsec);
        self.touched = Some(LowerDir { directory, mtime });
        Ok(())
    }

    fn restore_touched(&mut self) -> Result<(), EntryError> {
        let Some(LowerDir { directory, mtime }) = self.touched.take() else { return Ok(()) };
        let follow = UtimensatFlags::NoFollowSymlink;
        match utimensat(&directory, ".", &TimeSpec::UTIME_OMIT, &mtime, follow) {
            // The entry itself may have removed the directory.
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(failed("restore the times of a directory")(errno)),
        }
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
                Some(_) if !self.has_lower => return Err(EntryError::ParentNotDirectory),
                there => {
                    self.touch(&place.parent)?;
                    // In the layer itself it would have been refused when that was unpacked alone.
                    if there.is_some() {
                        place.remove()?;
                    }
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
        let metadata = Metadata { mode: UNDESCRIBED_DIR_MODE, ..Metadata::default() };
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
        self.remembered_bytes += path.len() + size_of::<DirTime>();
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
                    Some(SFlag::S_IFDIR) => place.open_plain_dir()?,
                    Some(_) => place.remove().and_then(|()| place.make_dir())?,
                    None => place.make_dir()?,
                }
            }
        };
        self.set_dir(path.as_bytes(), directory, metadata, Origin::Entry)
    }

    /// Makes a hard link to another entry, which keeps the metadata it has. One whose target is not
    /// there waits for the end of the layer.
    pub(super) fn hard_link(
        &mut self,
        path: EntryPath,
        target: EntryPath,
    ) -> Result<(), EntryError> {
        if self.link(&path, &target)? {
            return Ok(());
        }
        self.place(&path)?.remove()?;
        self.late_link_count += 1;
        self.remembered_bytes +=
            path.as_bytes().len() + target.as_bytes().len() + size_of::<LateLink>();
        self.late_links.push(LateLink { path, target });
        Ok(())
    }

    /// Makes a hard link, if its target is there.
    fn link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<bool, EntryError> {
        let a_directory =
            || EntryError::HardLinkToDirectory { target: super::show(target.as_bytes()) };
        let (directory, name) = target.split().ok_or_else(a_directory)?;
        let parent = match self.resolve(directory) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
            other => other.map_err(path_error)?,
        };
        let from = Place { parent, name };
        let Some(found) = from.stat()? else { return Ok(false) };
        if file_type(&found) == SFlag::S_IFDIR {
            return Err(a_directory());
        }
        let place = self.place(path)?;
        if place.stat()?.is_some_and(|there| there.st_ino == found.st_ino) {
            return Ok(true); // A link to itself: replacing it would remove the only name.
        }
        let link = || linkat(&from.parent, from.name, &place.parent, place.name, AtFlags::empty());
        place.create("make a hard link", link).map(|()| true)
    }

    /// Makes the hard links that waited for their targets. Those that wait for a lower layer's stay
    /// undone, unless all lower layers are there: then one is an error, with its path.
    pub(super) fn make_late_links(&mut self) -> Result<(), (EntryPath, EntryError)> {
        for LateLink { path, target } in std::mem::take(&mut self.late_links) {
            let mut make = || {
                // A later entry of the same name has won.
                if self.place(&path)?.kind()?.is_some() || self.link(&path, &target)? {
                    return Ok(());
                }
                match self.has_lower {
                    false => Ok(()),
                    true => {
                        Err(EntryError::HardLinkTarget { target: super::show(target.as_bytes()) })
                    }
                }
            };
            make().map_err(|error| (path.clone(), error))?;
        }
        Ok(())
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

    /// Removes what a whiteout of the layer above names, or, for an opaque directory, what is in it.
    pub(super) fn clear(&mut self, path: &EntryPath, what: Cleared) -> Result<(), EntryError> {
        let directory = match (what, path.split()) {
            (Cleared::Itself, Some((parent, _))) => parent,
            (Cleared::Itself, None) => return Ok(()),
            (Cleared::Content, _) => path.as_bytes(),
        };
        let directory = match self.resolve(directory) {
            // There is nothing to be removed.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
            other => other.map_err(path_error)?,
        };
        self.touch(&directory)?;
        let names = match (what, path.split()) {
            (Cleared::Itself, Some((_, name))) => vec![name.to_vec()],
            _ => names_in(&directory).map_err(failed("list a directory"))?,
        };
        for name in names {
            let parent = directory.try_clone().map_err(failed("keep a directory open"))?;
            Place { parent, name: &name }.remove()?;
        }
        Ok(())
    }

    /// Says whether a path leads through a symbolic link to which `is_kept` does not apply.
    pub(super) fn leads_through_link(
        &self,
        path: &EntryPath,
        is_kept: impl Fn(&EntryPath) -> bool,
    ) -> Result<bool, EntryError> {
        for ancestor in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
            let Some((parent, name)) = ancestor.split() else { continue };
            let Ok(parent) = self.open_real(parent) else { return Ok(false) };
            if (Place { parent, name }).kind()? == Some(SFlag::S_IFLNK) {
                return Ok(!is_kept(&ancestor));
            }
        }
        Ok(false)
    }

    /// Restores the times of directories, and says where the tree depends on lower layers; nothing
    /// may be made afterwards.
    pub(super) fn finish(mut self) -> Result<Seams, EntryError> {
        self.restore_touched()?;
        // A directory can be described more than once; the last time counts.
        let last: HashMap<u64, &DirTime> =
            self.times.iter().map(|directory| (directory.inode, directory)).collect();
        let mut undescribed = BTreeSet::new();
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
                undescribed.insert(path_of(&remembered.path));
            }
        }
        let implicit = self.times.iter().filter(|directory| directory.origin == Origin::Implicit);
        let mut used_early: BTreeSet<PathBuf> =
            implicit.map(|directory| path_of(&directory.path)).collect();
        used_early.retain(|path| !undescribed.contains(path));
        let root = PathBuf::new();
        used_early.remove(&root);
        Ok(Seams {
            undescribed_root: undescribed.remove(&root),
            undescribed,
            used_early,
            late_links: self.late_link_count,
            ..Seams::default()
        })
    }
}

/// What [`Tree::clear`] removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cleared {
    /// What the path names.
    Itself,
    /// All that is in the directory which the path names.
    Content,
}

fn names_in(directory: &OwnedFd) -> nix::Result<Vec<Vec<u8>>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut names = Vec::new();
    for entry in Dir::openat(directory, ".", flags, Mode::empty())?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn path_of(path: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(path.to_vec()))
}

fn path_error(errno: Errno) -> EntryError {
    match errno {
        Errno::ENOTDIR => EntryError::ParentNotDirectory,
        Errno::ELOOP => EntryError::SymlinkLoop,
        errno => failed("open the directory of an entry")(errno),
    }
}
