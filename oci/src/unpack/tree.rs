//! The tree that a layer is unpacked into. Each operation on it is relative to a directory's fd.
//!
//! The names of an image are resolved with the tree as their root. A symbolic link of a layer,
//! absolute or with `..`, leads to the same file as in the box. Only the directory of an entry is
//! resolved this way. The operations on the entry itself use a single name, and never follow it.
//!
//! Links are followed and counted name by name ([`Tree::walk`]). The kernel could follow them too
//! (`RESOLVE_IN_ROOT` of `openat2(2)`), but it neither tells how many names it looks up nor stops
//! after some of them. It does not reset its count of links when it restarts a path walk either, so
//! that it can return `ELOOP` for a path with fewer than 40 links. It therefore opens only paths
//! without symbolic links.
//!
//! # Invariants
//!
//! - No other process changes the tree: it is in a private directory, under a lock.
//! - A path is resolved again for each entry. A later entry can have replaced a directory that was
//!   resolved before (CVE-2025-47290).

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fstat, fstatat, utimensat};
use nix::sys::time::TimeSpec;

use super::cross_layer::{Base, CrossLayerDependencies};
use super::entry_error::{EntryError, failed, path_error};
use super::error::LayerError;
use super::path::{EntryPath, SYMLINK_HOPS, components};
use super::place::{Place, file_type, set_owner_and_mode, time, without_xattrs};
use super::progress::Meter;
use super::reader::entry_error;
use super::skipped::SkippedNames;
use super::steps::{StepLimits, Steps};
use crate::host::metadata::UNDESCRIBED_DIR_MODE;
use crate::host::overlay_xattr::OverlayXattrs;
use crate::tar::archive::Metadata;

/// A directory whose modification time is set at the end, because each new entry in it changes the
/// time.
#[derive(Debug)]
struct DirTime {
    path: Vec<u8>,
    inode: u64,
    mtime: (i64, u32),
    origin: Origin,
}

/// The reason why a directory was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The archive has an entry for it.
    Entry,
    /// It is the parent of an entry.
    Implicit,
}

/// The action for a directory that is missing in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Stop,
}

/// A path on the way to its end: the open directory that was reached, and its path without symbolic
/// links.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) parent: OwnedFd,
    pub(super) path: Vec<u8>,
    /// Number of symbolic links that were followed.
    hops: usize,
}

impl Walk {
    /// Returns whether the directory has a symbolic link of this name.
    pub(super) fn has_link(&self, name: &[u8]) -> Result<bool, EntryError> {
        match fstatat(&self.parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(file_type(&found) == SFlag::S_IFLNK),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(failed("look at a parent of an entry")(errno)),
        }
    }
}

/// A directory of lower layers, and its modification time before an entry in it changed.
#[derive(Debug)]
struct LowerDir {
    directory: OwnedFd,
    mtime: TimeSpec,
}

/// The tree, as the fd of its root.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// User and group of directories without an entry.
    owner: (u32, u32),
    pub(super) overlay_xattrs: OverlayXattrs,
    /// Whether the tree is the merged view of lower layers ([`Base::Lower`]).
    pub(super) has_lower: bool,
    /// Whether no lower layers exist, so that a file which is missing here is missing for good.
    is_whole: bool,
    times: Vec<DirTime>,
    /// See [`CrossLayerDependencies::cleared`].
    cleared: BTreeSet<PathBuf>,
    /// See [`CrossLayerDependencies::skipped`].
    skipped: SkippedNames,
    /// Number of devices, and of hard links to devices, that were skipped.
    pub(super) skipped_devices: u64,
    /// See [`CrossLayerDependencies::undecided`].
    pub(super) undecided: u64,
    /// The directory of lower layers that was changed last. Its time is restored before the next
    /// directory is changed.
    touched: Option<LowerDir>,
    pub(super) remembered_bytes: usize,
    /// Names that were looked up.
    pub(super) steps: Steps,
}

impl Tree {
    /// Opens the tree at `root`, which is an empty directory or the view of lower layers.
    pub(super) fn new(
        root: OwnedFd,
        base: Base<'_>,
        overlay_xattrs: OverlayXattrs,
        steps: StepLimits,
    ) -> Result<Self, EntryError> {
        Self::open(root, base, overlay_xattrs, steps, (0, 0))
    }

    /// Opens an empty tree for an archive that has no lower layers. `owner` is the user and group of
    /// the directories for which it has no entry.
    pub(super) fn of_whole_archive(
        root: OwnedFd,
        steps: StepLimits,
        owner: (u32, u32),
    ) -> Result<Self, EntryError> {
        // Nothing stacks the tree, so that nothing is marked for overlayfs.
        let tree = Self::open(root, Base::Empty, OverlayXattrs::User, steps, owner)?;
        Ok(Self { is_whole: true, ..tree })
    }

    fn open(
        root: OwnedFd,
        base: Base<'_>,
        overlay_xattrs: OverlayXattrs,
        steps: StepLimits,
        owner: (u32, u32),
    ) -> Result<Self, EntryError> {
        let mut this = Self {
            root,
            owner,
            overlay_xattrs,
            has_lower: matches!(base, Base::Lower { .. }),
            is_whole: false,
            times: Vec::new(),
            cleared: BTreeSet::new(),
            skipped: SkippedNames::default(),
            skipped_devices: 0,
            undecided: 0,
            touched: None,
            remembered_bytes: 0,
            steps: Steps::new(steps),
        };
        if let Base::Lower { skipped, .. } = base {
            let paths = skipped.iter().map(|path| path.as_os_str().as_bytes().to_vec());
            this.skipped = paths.inspect(|path| this.remembered_bytes += cost(path)).collect();
        } else {
            // On top of lower layers, the root already has its metadata.
            let root = open_to_read(&this.root, b".").map_err(failed("open the root"))?;
            this.set_implicit(b"", root)?;
        }
        Ok(this)
    }

    /// Returns whether the entry with this error could be created on top of lower layers. This is
    /// possible only if the layer is unpacked alone.
    pub(super) fn is_undecided(&self, error: &EntryError) -> bool {
        // With lower layers, the same path can lead to another file: they can have the missing
        // target, or a symbolic link where this layer alone made a directory.
        !self.has_lower
            && !self.is_whole
            && matches!(
                error,
                EntryError::ParentNotDirectory
                    | EntryError::SymlinkLoop
                    | EntryError::HardLinkTarget { .. }
                    | EntryError::HardLinkToDirectory { .. }
            )
    }

    /// Returns the bytes of memory that are held until the end of the layer.
    pub(super) fn remembered_bytes(&self) -> usize {
        self.remembered_bytes
    }

    /// Returns the place of an entry that is not a directory, and creates missing parent directories.
    pub(super) fn place_for<'a>(&mut self, path: &'a EntryPath) -> Result<Place<'a>, EntryError> {
        let place = self.place(path)?;
        self.forget_skipped(&place);
        Ok(place)
    }

    /// Returns the place of a path, and creates missing parent directories.
    pub(super) fn place<'a>(&mut self, path: &'a EntryPath) -> Result<Place<'a>, EntryError> {
        let (directory, name) = path.split().ok_or(EntryError::Root)?;
        self.steps.take(components(directory).count())?;
        let place = match self.open_real(directory) {
            Ok(parent) => Place { parent, directory: Cow::Borrowed(directory), name },
            // A directory is missing, or the path has a symbolic link. Most entries have neither,
            // and need only the one system call above.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => {
                let walked = self.walk(directory, Missing::Make)?;
                let Walk { parent, path, .. } = walked.ok_or(EntryError::ParentNotDirectory)?;
                Place { parent, directory: Cow::Owned(path), name }
            }
            Err(errno) => return Err(path_error(errno)),
        };
        // The caller creates, replaces or removes the name, which changes the time of the
        // directory.
        self.touch(&place.parent)?;
        Ok(place)
    }

    /// Records the modification time of a directory before it changes. A directory of lower layers
    /// keeps its time unless the layer has an entry for it.
    pub(super) fn touch(&mut self, directory: &OwnedFd) -> Result<(), EntryError> {
        // In a tree of one layer, this layer has made every directory, and `finish` sets all times.
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
            // A later step can have removed the directory.
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(failed("restore the times of a directory")(errno)),
        }
    }

    /// Opens a directory by a path without symbolic links.
    pub(super) fn open_real(&self, directory: &[u8]) -> nix::Result<OwnedFd> {
        // Without symbolic links, the kernel either opens the directory with exactly this path or
        // returns an error. An entry that replaced a directory by a link cannot redirect the path.
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        self.open_path(directory, resolve)
    }

    /// Opens a directory by `O_PATH`.
    ///
    /// With `fs.protected_symlinks` (`proc_sys_fs(5)`) the kernel refuses to follow the last
    /// component of a path if it is a symbolic link in a sticky directory that is writable by all,
    /// as `/tmp` is, and neither the process nor the directory's owner owns the link. Images can
    /// have such links. The check does not apply to other components, so that `path/.` can be
    /// opened.
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

    /// Starts at the root of the tree.
    pub(super) fn start_walk(&self) -> Result<Walk, EntryError> {
        Ok(Walk { parent: self.open_real(b"").map_err(path_error)?, path: Vec::new(), hops: 0 })
    }

    /// Resolves a path, and returns the directory that it leads to.
    ///
    /// With [`Missing::Make`], missing directories are created, including the missing target of a
    /// symbolic link. With [`Missing::Stop`], a missing directory gives `None`.
    pub(super) fn walk(
        &mut self,
        directory: &[u8],
        missing: Missing,
    ) -> Result<Option<Walk>, EntryError> {
        let mut walk = self.start_walk()?;
        for name in components(directory) {
            let Some(next) = self.enter(walk, name, missing)? else { return Ok(None) };
            walk = next;
        }
        Ok(Some(walk))
    }

    /// Opens the directory at a path, or returns `None` if the path leads to none.
    pub(super) fn resolve(&mut self, directory: &[u8]) -> Result<Option<OwnedFd>, EntryError> {
        self.steps.take(components(directory).count())?;
        match self.open_real(directory) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            // The path has a symbolic link.
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                Ok(self.walk(directory, Missing::Stop)?.map(|walk| walk.parent))
            }
            Err(errno) => Err(path_error(errno)),
        }
    }

    /// Goes on by one name, and by the names of the symbolic links behind it. Returns `None` if there
    /// is no such directory, which only [`Missing::Stop`] allows.
    pub(super) fn enter(
        &mut self,
        walk: Walk,
        name: &[u8],
        missing: Missing,
    ) -> Result<Option<Walk>, EntryError> {
        let Walk { mut parent, mut path, mut hops } = walk;
        self.steps.take(1)?;
        let mut pending = vec![name.to_vec()];
        while let Some(name) = pending.pop() {
            // The parent is opened again by its path, whose names are looked up once more. An fd's
            // own `..` could lead out of the tree.
            if name == b".." {
                path.truncate(path.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                self.steps.take(components(&path).count())?;
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
                    self.steps.take(components(&target).count())?;
                    parent = place.parent;
                    // An absolute target starts at the root of the tree, as it does in the box.
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
        Ok(Some(Walk { parent, path, hops }))
    }

    /// Creates a parent directory for which no entry has come yet.
    fn make_implicit(&mut self, place: &Place<'_>) -> Result<(), EntryError> {
        self.touch(&place.parent)?;
        self.forget_skipped(place);
        let made = place.make_dir()?;
        self.set_implicit(&place.path(), made)
    }

    /// Sets the metadata of a directory without an entry. It is constant, so that each unpacking of
    /// a layer gives the same tree.
    pub(super) fn set_implicit(
        &mut self,
        path: &[u8],
        directory: OwnedFd,
    ) -> Result<(), EntryError> {
        let (uid, gid) = self.owner;
        let metadata = Metadata { mode: UNDESCRIBED_DIR_MODE, uid, gid, ..Metadata::default() };
        self.set_dir(path, directory, &metadata, Origin::Implicit)
    }

    /// Sets the metadata of a directory, and records its time for [`Self::finish`].
    fn set_dir(
        &mut self,
        path: &[u8],
        directory: OwnedFd,
        metadata: &Metadata,
        origin: Origin,
    ) -> Result<(), EntryError> {
        let directory = File::from(directory);
        set_owner_and_mode(&directory, metadata)?;
        // `finish` compares the inode, because a later entry can put another directory at this
        // path.
        let inode = fstat(&directory).map_err(failed("look at a directory"))?.st_ino;
        self.times.push(DirTime { path: path.to_vec(), inode, mtime: metadata.mtime, origin });
        self.remembered_bytes += path.len() + size_of::<DirTime>();
        Ok(())
    }

    /// Creates a directory, or sets the metadata of an existing one.
    pub(super) fn directory(
        &mut self,
        path: &EntryPath,
        metadata: &Metadata,
    ) -> Result<(), EntryError> {
        // The root of a box is not the image's. Docker and containerd start a container with a root
        // directory of their own, so images come with modes for it that would lock out every user
        // but root.
        if path.split().is_none() {
            return Ok(());
        }
        let place = self.place(path)?;
        // An entry describes a directory completely. The attributes that an earlier entry or a
        // lower layer gave it are therefore removed, but its content stays.
        let directory = match place.kind()? {
            Some(SFlag::S_IFDIR) => without_xattrs(place.open_dir()?)?,
            Some(_) => {
                self.clear_place(&place)?;
                place.make_dir()?
            }
            None => {
                self.forget_skipped(&place);
                place.make_dir()?
            }
        };
        self.set_dir(&place.path(), directory, metadata, Origin::Entry)
    }

    /// Skips an entry that is not created, and removes an earlier entry of its name. Returns the path
    /// without symbolic links.
    pub(super) fn skip(&mut self, path: &EntryPath) -> Result<Vec<u8>, EntryError> {
        let place = self.place_for(path)?;
        self.clear_place(&place)?;
        Ok(place.path())
    }

    /// Skips a device, and removes an earlier entry of its name.
    pub(super) fn skip_device(&mut self, path: &EntryPath) -> Result<(), EntryError> {
        let path = self.skip(path)?;
        self.skipped_devices += 1;
        self.remembered_bytes += cost(&path);
        self.skipped.insert(path);
        Ok(())
    }

    /// Returns the path without symbolic links of a name at which a device was skipped, or `None` if
    /// the path is no such name.
    pub(super) fn skipped_path(&mut self, path: &EntryPath) -> Result<Option<Vec<u8>>, EntryError> {
        // Most layers have no devices.
        let Some((directory, name)) = path.split().filter(|_| !self.skipped.is_empty()) else {
            return Ok(None);
        };
        let Some(Walk { parent, path, .. }) = self.walk(directory, Missing::Stop)? else {
            return Ok(None);
        };
        let path = Place { parent, directory: path.into(), name }.path();
        Ok(Some(path).filter(|path| self.skipped.contains(path)))
    }

    /// Returns whether a device was skipped at a path without symbolic links.
    pub(super) fn is_skipped(&self, path: &[u8]) -> bool {
        self.skipped.contains(path)
    }

    /// Forgets that devices were skipped at a place and below it, because another file takes it.
    fn forget_skipped(&mut self, place: &Place<'_>) {
        if !self.skipped.is_empty() {
            self.skipped.forget(&place.path());
        }
    }

    /// Forgets that devices were skipped at a name of a directory, or at all of its names.
    pub(super) fn forget_skipped_in(&mut self, directory: &[u8], name: Option<&[u8]>) {
        match name {
            None => self.skipped.forget_below(directory),
            Some(name) if directory.is_empty() => self.skipped.forget(name),
            Some(name) => self.skipped.forget(&[directory, name].join(&b'/')),
        }
    }

    /// Removes the file or directory at a place. If the layer is unpacked alone, the path is
    /// recorded, because the files of lower layers at this path must be removed too.
    fn clear_place(&mut self, place: &Place<'_>) -> Result<(), EntryError> {
        place.remove()?;
        if !self.has_lower {
            let path = place.path();
            self.remembered_bytes += cost(&path);
            self.cleared.insert(path_of(&path));
        }
        Ok(())
    }

    /// Sets the time of a directory. Returns `false` if the directory does not exist any more.
    fn set_time(&self, remembered: &DirTime) -> Result<bool, EntryError> {
        // A later entry can have removed the directory, or replaced a directory above it.
        let Ok(directory) = self.open_real(&remembered.path) else { return Ok(false) };
        // A later entry can have replaced the directory.
        if fstat(&directory).map_err(failed("look at a directory"))?.st_ino != remembered.inode {
            return Ok(false);
        }
        let mtime = time(remembered.mtime);
        utimensat(&directory, ".", &mtime, &mtime, UtimensatFlags::NoFollowSymlink)
            .map_err(failed("set the times of a directory"))?;
        Ok(true)
    }

    /// Sets the times of all directories, and returns the dependencies on lower layers.
    ///
    /// This must be the last operation on the tree, because each later one would change the times.
    pub(super) fn finish(
        mut self,
        meter: &mut Meter<'_>,
    ) -> Result<CrossLayerDependencies, LayerError> {
        let failed = |source| entry_error(b"/", source);
        self.restore_touched().map_err(failed)?;
        // An archive can have several entries for one directory. The last one takes precedence.
        let last: HashMap<u64, &DirTime> =
            self.times.iter().map(|directory| (directory.inode, directory)).collect();
        let mut undescribed = BTreeSet::new();
        for remembered in last.into_values() {
            meter.beat()?;
            let is_there = self.set_time(remembered).map_err(failed)?;
            if is_there && remembered.origin == Origin::Implicit {
                undescribed.insert(path_of(&remembered.path));
            }
        }
        // A later entry has described or replaced an implicit directory that is not in
        // `undescribed`. The files that came before this entry may belong behind a lower symbolic
        // link.
        let implicit = self.times.iter().filter(|directory| directory.origin == Origin::Implicit);
        let mut used_early: BTreeSet<PathBuf> =
            implicit.map(|directory| path_of(&directory.path)).collect();
        used_early.retain(|path| !undescribed.contains(path));
        // The root is a directory in every layer, and no layer describes it.
        undescribed.remove(Path::new(""));
        used_early.remove(Path::new(""));
        Ok(CrossLayerDependencies {
            undescribed,
            used_early,
            cleared: self.cleared,
            skipped: self.skipped.into_iter().map(|path| path_of(&path)).collect(),
            undecided: self.undecided,
            ..CrossLayerDependencies::default()
        })
    }
}

fn open_to_read(directory: &OwnedFd, name: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

/// Returns the bytes of memory for a path in a set.
fn cost(path: &[u8]) -> usize {
    path.len() + size_of::<PathBuf>()
}

fn path_of(path: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(path.to_vec()))
}
