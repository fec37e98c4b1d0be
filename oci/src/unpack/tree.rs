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
//! - Nobody else works in the tree: it is in a private directory, under a lock.
//! - A path is resolved anew for each entry. A remembered directory could have been replaced by a later entry
//!   (CVE-2025-47290).

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fstat, utimensat};
use nix::sys::time::TimeSpec;

use super::cross_layer::{Base, CrossLayerDependencies};
use super::entry_error::{EntryError, failed, path_error};
use super::path::{EntryPath, components};
use super::place::{Place, plain, set_owner_and_mode, time};
use crate::host::metadata::UNDESCRIBED_DIR_MODE;
use crate::host::overlay_xattr::OverlayXattrs;
use crate::tar::archive::Metadata;

/// Bound on symbolic links in one path: the kernel's own.
const SYMLINK_HOPS: usize = 40;

/// How often a resolution is tried again that a rename elsewhere on the machine has disturbed
/// (`EAGAIN`).
const RESOLVE_ATTEMPTS: usize = 64;

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

/// Where a path leads: an open directory, and the same path without symbolic links.
#[derive(Debug)]
pub(super) struct Walked {
    pub(super) parent: OwnedFd,
    pub(super) path: Vec<u8>,
}

/// What is done about a directory that is missing on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Stop,
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
    pub(super) overlay_xattrs: OverlayXattrs,
    /// Whether the tree is the view of lower layers, and what is written a layer on top of them.
    pub(super) has_lower: bool,
    times: Vec<DirTime>,
    /// As in [`CrossLayerDependencies`].
    cleared: BTreeSet<PathBuf>,
    /// As in [`CrossLayerDependencies`].
    pub(super) undecided: u64,
    /// The last directory that something was put into, on top of lower layers.
    touched: Option<LowerDir>,
    pub(super) remembered_bytes: usize,
}

impl Tree {
    /// Takes the directory `root`: an empty one, or the view of lower layers.
    pub(super) fn new(
        root: OwnedFd,
        base: Base<'_>,
        overlay_xattrs: OverlayXattrs,
    ) -> Result<Self, EntryError> {
        let mut this = Self {
            root,
            overlay_xattrs,
            has_lower: matches!(base, Base::Lower(_)),
            times: Vec::new(),
            cleared: BTreeSet::new(),
            undecided: 0,
            touched: None,
            remembered_bytes: 0,
        };
        if !this.has_lower {
            let root = open_to_read(&this.root, b".").map_err(failed("open the root"))?;
            this.set_implicit(b"", root)?;
        }
        Ok(this)
    }

    /// Whether an error is none yet: of a layer alone, where only lower layers can tell.
    pub(super) fn is_undecided(&self, error: &EntryError) -> bool {
        !self.has_lower
            && matches!(
                error,
                EntryError::ParentNotDirectory
                    | EntryError::SymlinkLoop
                    | EntryError::HardLinkTarget { .. }
                    | EntryError::HardLinkToDirectory { .. }
            )
    }

    /// Returns how much memory is held until the end.
    pub(super) fn remembered_bytes(&self) -> usize {
        self.remembered_bytes
    }

    /// Finds the place of an entry; missing directories on the way are made.
    pub(super) fn place<'a>(&mut self, path: &'a EntryPath) -> Result<Place<'a>, EntryError> {
        let (directory, name) = path.split().ok_or(EntryError::Root)?;
        let place = match self.open_real(directory) {
            Ok(parent) => Place { parent, directory: Cow::Borrowed(directory), name },
            // Something is missing, or a symbolic link.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => {
                let walked = self.walk(directory, Missing::Make)?;
                let Walked { parent, path } = walked.ok_or(EntryError::ParentNotDirectory)?;
                Place { parent, directory: Cow::Owned(path), name }
            }
            Err(errno) => return Err(path_error(errno)),
        };
        self.touch(&place.parent)?;
        Ok(place)
    }

    /// Remembers the time of a directory that is about to change: on top of lower layers, one that
    /// no entry describes keeps it.
    pub(super) fn touch(&mut self, directory: &OwnedFd) -> Result<(), EntryError> {
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
    pub(super) fn resolve(&self, directory: &[u8]) -> nix::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        let mut attempts = (0..RESOLVE_ATTEMPTS).map(|_| self.open_path(directory, resolve));
        attempts.find(|result| !matches!(result, Err(Errno::EAGAIN))).unwrap_or(Err(Errno::EAGAIN))
    }

    /// Opens a directory by a path without symbolic links.
    pub(super) fn open_real(&self, directory: &[u8]) -> nix::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        self.open_path(directory, resolve)
    }

    /// A symbolic link at the end of a path is guarded where everybody may write, as in `/tmp`
    /// (`fs.protected_symlinks`, proc(5)): one of another owner than the directory's is refused. In an
    /// image it is what it is; on the way to `.` it is not guarded.
    fn open_path(&self, directory: &[u8], resolve: ResolveFlag) -> nix::Result<OwnedFd> {
        let path = if directory.is_empty() { b"." } else { directory };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open =
            |path: &[u8]| openat2(&self.root, path, OpenHow::new().flags(flags).resolve(resolve));
        match open(path) {
            Err(Errno::EACCES) => open(&[path, b"/."].concat()),
            opened => opened,
        }
    }

    /// Resolves a path name by name, and says where it leads: `None` if to nothing, unless missing
    /// directories are to be made, which they are also where a link leads to nothing.
    ///
    /// The kernel's count of links goes on when it starts a long walk again, so this counts for
    /// itself.
    pub(super) fn walk(
        &mut self,
        directory: &[u8],
        missing: Missing,
    ) -> Result<Option<Walked>, EntryError> {
        let mut pending: Vec<Vec<u8>> = components(directory).rev().map(<[u8]>::to_vec).collect();
        let (mut parent, mut path) = (self.open_real(b"").map_err(path_error)?, Vec::new());
        let mut hops = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                path.truncate(path.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                parent = self.open_real(&path).map_err(path_error)?;
                continue;
            }
            let place = Place { parent, directory: Cow::Borrowed(path.as_slice()), name: &name };
            match place.kind()? {
                Some(SFlag::S_IFLNK) => {
                    hops += 1;
                    if hops > SYMLINK_HOPS {
                        return Err(EntryError::SymlinkLoop);
                    }
                    let target =
                        readlinkat(&place.parent, place.name).map_err(path_error)?.into_vec();
                    parent = place.parent;
                    if target.starts_with(b"/") {
                        path.clear();
                        parent = self.open_real(b"").map_err(path_error)?;
                    }
                    pending.extend(components(&target).rev().map(<[u8]>::to_vec));
                    continue;
                }
                Some(SFlag::S_IFDIR) => {}
                _ if missing == Missing::Stop => return Ok(None),
                None => self.make_implicit(&place)?,
                Some(_) => return Err(EntryError::ParentNotDirectory),
            }
            parent = place.open_path()?;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name);
        }
        Ok(Some(Walked { parent, path }))
    }

    /// Makes a directory that no entry describes so far.
    fn make_implicit(&mut self, place: &Place<'_>) -> Result<(), EntryError> {
        self.touch(&place.parent)?;
        let made = place.make_dir()?;
        self.set_implicit(&place.path(), made)
    }

    /// Gives a directory that no entry describes its metadata: the same in each run.
    pub(super) fn set_implicit(
        &mut self,
        path: &[u8],
        directory: OwnedFd,
    ) -> Result<(), EntryError> {
        let metadata = Metadata { mode: UNDESCRIBED_DIR_MODE, ..Metadata::default() };
        self.set_dir(path, directory, &metadata, Origin::Implicit)
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
        if path.split().is_none() {
            let root = open_to_read(&self.root, b".").map_err(failed("open the root"))?;
            return self.set_dir(b"", plain(root)?, metadata, Origin::Entry);
        }
        let place = self.place(path)?;
        let directory = match place.kind()? {
            Some(SFlag::S_IFDIR) => plain(place.open_dir()?)?,
            Some(_) => {
                self.clear_place(&place)?;
                place.make_dir()?
            }
            None => place.make_dir()?,
        };
        self.set_dir(&place.path(), directory, metadata, Origin::Entry)
    }

    /// Makes nothing where an entry is that is not made, and removes what is there.
    pub(super) fn skip(&mut self, path: &EntryPath) -> Result<(), EntryError> {
        let place = self.place(path)?;
        self.clear_place(&place)
    }

    /// Removes what is at a place. Of a layer alone this remains to be told: what lower layers have
    /// there goes as well.
    fn clear_place(&mut self, place: &Place<'_>) -> Result<(), EntryError> {
        place.remove()?;
        if !self.has_lower {
            let path = place.path();
            self.remembered_bytes += path.len() + size_of::<PathBuf>();
            self.cleared.insert(path_of(&path));
        }
        Ok(())
    }

    /// Restores the times of directories, and says where the tree depends on lower layers; nothing
    /// may be made afterwards.
    pub(super) fn finish(mut self) -> Result<CrossLayerDependencies, EntryError> {
        self.restore_touched()?;
        // A directory can be described more than once; the last time counts.
        let last: HashMap<u64, &DirTime> =
            self.times.iter().map(|directory| (directory.inode, directory)).collect();
        let mut undescribed = BTreeSet::new();
        for remembered in last.into_values() {
            let Ok(directory) = self.open_real(&remembered.path) else { continue };
            // A later entry may have replaced the directory.
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
        Ok(CrossLayerDependencies {
            undescribed_root: undescribed.remove(&root),
            undescribed,
            used_early,
            cleared: self.cleared,
            undecided: self.undecided,
            ..CrossLayerDependencies::default()
        })
    }
}

fn open_to_read(directory: &OwnedFd, name: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

fn path_of(path: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(path.to_vec()))
}
