//! Merges layer trees into a plain directory by copying, for hosts without overlayfs.
//!
//! The trees have the whiteouts and marks of overlayfs (see [`unpack`](crate::unpack)), and this
//! module gives them the same meaning. For each name, the topmost tree that has it decides.
//! Directories of one name are merged down to the first opaque directory, or to the first tree in
//! which the name is not a directory. Whiteouts hide the name in the trees below.
//!
//! Contents are shared by reflinks if the file system supports them, and copied otherwise. Hard
//! links are not used, because a box would then write to the files in the cache.
//!
//! # Invariants
//!
//! - No other process changes the trees or the target at the same time.
//! - No symbolic link is followed. Each directory is opened by its path from the root in steps of
//!   at most `PATH_MAX`, so that trees can have any depth. At most one directory of each tree is
//!   open at the same time.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};

use super::contents::{Contents, Method};
use crate::host::directory::{OPEN_DIR, names_in, open_below};
use crate::host::metadata::copy_metadata;
use crate::host::overlay_xattr::{OverlayXattrs, is_opaque};

/// A directory to be filled: its path, and the trees whose directories at this path are merged,
/// topmost first.
struct Merged {
    path: Vec<u8>,
    trees: Vec<usize>,
}

/// The state of a copy.
struct Cloning<'a> {
    trees: &'a [OwnedFd],
    target: &'a OwnedFd,
    overlay_xattrs: OverlayXattrs,
    contents: Contents,
    /// Path in the target of each inode with several names, by device and inode number.
    links: HashMap<(u64, u64), Vec<u8>>,
}

/// Copies the merged view of `trees` to the empty directory `target`. The topmost tree is first.
///
/// The target receives the metadata of the topmost tree's root. The marks of overlayfs and the
/// labels of the host's security modules are not copied.
///
/// # Errors
///
/// When a system call fails, or when the target has a name already. The error names the path.
pub(crate) fn flatten(
    trees: &[OwnedFd],
    target: &OwnedFd,
    overlay_xattrs: OverlayXattrs,
) -> Result<Method, HostError> {
    let contents = Contents::default();
    let mut cloning = Cloning { trees, target, overlay_xattrs, contents, links: HashMap::new() };
    // The directories are kept on the heap, because a recursive function would need a stack as deep
    // as the tree.
    let mut pending = vec![Merged { path: Vec::new(), trees: (0..trees.len()).collect() }];
    while let Some(directory) = pending.pop() {
        cloning.fill(&directory, &mut pending)?;
    }
    Ok(cloning.contents.method())
}

impl Cloning<'_> {
    /// Creates all entries of a directory, and then sets its metadata.
    ///
    /// Subdirectories are created empty and added to `pending`. To fill them later does not change
    /// the times of this directory.
    fn fill(&mut self, merged: &Merged, pending: &mut Vec<Merged>) -> Result<(), HostError> {
        let failed = at("open the directory", &merged.path);
        let path = Path::new(OsStr::from_bytes(&merged.path));
        let open = |root: &OwnedFd| open_below(root, path);
        let roots = merged.trees.iter().filter_map(|tree| self.trees.get(*tree));
        let sources = roots.map(open).collect::<nix::Result<Vec<_>>>().map_err(&failed)?;
        let target = open(self.target).map_err(&failed)?;
        let mut decided = HashSet::new();
        for (i, source) in sources.iter().enumerate() {
            for name in names_in(source).map_err(at("list the directory", &merged.path))? {
                // A tree above has this name, and has decided about it even if it has only a
                // whiteout there.
                if !decided.insert(name.clone()) {
                    continue;
                }
                let path = join(&merged.path, &name);
                let found = fstatat(source, name.as_slice(), AtFlags::AT_SYMLINK_NOFOLLOW)
                    .map_err(at("look at", &path))?;
                if is_whiteout(&found) {
                    continue;
                }
                if kind(&found) == SFlag::S_IFDIR {
                    mkdirat(&target, name.as_slice(), Mode::S_IRWXU).map_err(at("make", &path))?;
                    let trees = merged.trees.get(i..).unwrap_or_default();
                    let below = trees.iter().copied().zip(sources.get(i..).unwrap_or_default());
                    let trees = self.merge(below, &name).map_err(at("look at", &path))?;
                    pending.push(Merged { path, trees });
                } else {
                    let entry = Entry { source, target: &target, name: &name, found: &found };
                    self.make(&entry, path)?;
                }
            }
        }
        let Some(top) = sources.first() else { return Ok(()) };
        // The metadata is set last, because each entry that is created changes the time of its
        // directory.
        copy_metadata(top, &target).map_err(at("set the metadata of", &merged.path))
    }

    /// Returns the trees whose directories of a name are merged. The first tree must have such a
    /// directory.
    fn merge<'a>(
        &self,
        below: impl Iterator<Item = (usize, &'a OwnedFd)>,
        name: &[u8],
    ) -> nix::Result<Vec<usize>> {
        let mut trees = Vec::new();
        for (tree, source) in below {
            match fstatat(source, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(found) if kind(&found) == SFlag::S_IFDIR => {}
                Err(Errno::ENOENT) => continue,
                // A whiteout or another file hides the directories below.
                Ok(_) => break,
                Err(errno) => return Err(errno),
            }
            trees.push(tree);
            if is_opaque(&openat(source, name, OPEN_DIR, Mode::empty())?, self.overlay_xattrs)? {
                break;
            }
        }
        Ok(trees)
    }

    /// Creates an entry that is not a directory.
    fn make(&mut self, entry: &Entry<'_>, path: Vec<u8>) -> Result<(), HostError> {
        // The inode has several names. Another tree can hide some of them, so that this can be the
        // only visible one.
        let inode = (entry.found.st_nlink > 1).then_some((entry.found.st_dev, entry.found.st_ino));
        if let Some(first) = inode.and_then(|inode| self.links.get(&inode)) {
            return self.link(first, entry).map_err(at("make a hard link", &path));
        }
        let made = match kind(entry.found) {
            SFlag::S_IFREG => entry.make_file(&mut self.contents),
            SFlag::S_IFLNK => entry.make_symlink(),
            SFlag::S_IFIFO => entry.make_fifo(),
            // `unpack` creates no files of other types.
            _ => Err(Errno::EOPNOTSUPP.into()),
        };
        made.map_err(at("copy", &path))?;
        if let Some(inode) = inode {
            self.links.insert(inode, path);
        }
        Ok(())
    }

    fn link(&self, first: &[u8], entry: &Entry<'_>) -> nix::Result<()> {
        let (parent, name) = match first.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (first.get(..slash), first.get(slash + 1..)),
            None => (Some(&b""[..]), Some(first)),
        };
        let parent = Path::new(OsStr::from_bytes(parent.unwrap_or_default()));
        // The directory of the first name is not open any more, because only one directory of a
        // tree is open at a time.
        let parent = open_below(self.target, parent)?;
        let name = name.unwrap_or_default();
        linkat(&parent, name, entry.target, entry.name, AtFlags::empty())
    }
}

/// A name in a directory of a tree, and the directory in which it is created.
struct Entry<'a> {
    source: &'a OwnedFd,
    target: &'a OwnedFd,
    name: &'a [u8],
    found: &'a FileStat,
}

impl Entry<'_> {
    fn make_file(&self, contents: &mut Contents) -> io::Result<()> {
        let source = openat(
            self.source,
            self.name,
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let target = openat(self.target, self.name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let size_bytes = u64::try_from(self.found.st_size).unwrap_or_default();
        contents.copy(source.as_fd(), target.as_fd(), size_bytes)?;
        copy_metadata(&source, &target)
    }

    fn make_symlink(&self) -> io::Result<()> {
        let text = readlinkat(self.source, self.name)?;
        symlinkat(text.as_os_str(), self.target, self.name)?;
        // On Linux a symbolic link has no mode of its own (`symlink(7)`).
        self.set_owner()?;
        self.set_times()
    }

    fn make_fifo(&self) -> io::Result<()> {
        mknodat(self.target, self.name, SFlag::S_IFIFO, Mode::S_IRUSR, 0)?;
        self.set_owner()?;
        // The mode comes after the owner, because `chown(2)` clears the setuid and setgid bits.
        fchmodat(self.target, self.name, mode(self.found), FchmodatFlags::NoFollowSymlink)?;
        self.set_times()
    }

    fn set_owner(&self) -> io::Result<()> {
        let (uid, gid) = owner(self.found);
        Ok(fchownat(self.target, self.name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    fn set_times(&self) -> io::Result<()> {
        let atime = TimeSpec::new(self.found.st_atime, self.found.st_atime_nsec);
        let mtime = TimeSpec::new(self.found.st_mtime, self.found.st_mtime_nsec);
        let flags = UtimensatFlags::NoFollowSymlink;
        Ok(utimensat(self.target, self.name, &atime, &mtime, flags)?)
    }
}

/// Returns whether an inode is a whiteout of overlayfs: a character device 0:0.
fn is_whiteout(found: &FileStat) -> bool {
    kind(found) == SFlag::S_IFCHR && found.st_rdev == 0
}

fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT
}

fn mode(found: &FileStat) -> Mode {
    Mode::from_bits_truncate(found.st_mode & 0o7777)
}

fn owner(found: &FileStat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(found.st_uid)), Some(Gid::from_raw(found.st_gid)))
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') }
}

/// Returns a function that converts an error of `action` on `path`, a path below the root. The path
/// is escaped, because it comes from an image.
fn at<E: Into<io::Error>>(action: &'static str, path: &[u8]) -> impl Fn(E) -> HostError {
    let path = PathBuf::from(format!("/{}", path.escape_ascii()));
    move |error| HostError::at(action, &path)(error)
}

#[cfg(test)]
mod tests;
