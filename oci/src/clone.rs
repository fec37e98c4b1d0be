//! A root made by copying, where overlayfs cannot be had: layer trees, merged into a plain folder.
//!
//! The trees are in the form of overlayfs (see [`whiteout`](crate::unpack)), and are understood here
//! as overlayfs does: the topmost tree that has a name decides about it, directories are merged down
//! to one that is opaque or to something else in between, and whiteouts hide. Contents are shared by
//! reflinks where the file system has them, else copied; never by hard links, through which a box
//! would write into the cache.
//!
//! # Invariants
//!
//! - Nobody else changes the trees or the target meanwhile.
//! - No link is followed; directories are found by their names from the root, in steps that the
//!   kernel takes, so that no depth of a tree matters. What is open at once is a directory of each
//!   tree.

mod contents;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat,
    futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};

use self::contents::Contents;
use crate::mount::Flavour;
use crate::unpack::{is_opaque, names_in};

/// Longest part of a path in one step: the kernel takes 4095 bytes (`PATH_MAX` with its NUL).
const STEP_BYTES: usize = 4095;

/// Room for a list or a value of extended attributes: enough for nearly all files, and then the most
/// that there can be (`XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of the kernel's `limits.h`).
const XATTR_BYTES: [usize; 2] = [256, 65536];

/// A root that cannot be made by copying.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `/{}`", path.escape_ascii())]
pub struct CloneError {
    operation: &'static str,
    /// Path from the root.
    path: Vec<u8>,
    source: io::Error,
}

/// How the contents of files came into the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// All share their blocks with the layers.
    Reflink,
    /// Some are copies.
    Copy,
}

/// A directory to be made: where it is, and the trees whose directories of that name it merges,
/// topmost first.
struct Merged {
    path: Vec<u8>,
    trees: Vec<usize>,
}

/// The copy that is being made.
struct Cloning<'a> {
    trees: &'a [OwnedFd],
    target: &'a OwnedFd,
    flavour: Flavour,
    contents: Contents,
    /// Where each file with more than one name was made first.
    links: HashMap<(u64, u64), Vec<u8>>,
}

/// Copies the merged view of `trees`, which has the topmost first, into the empty folder `target`.
///
/// The target gets the metadata of the topmost tree's root. Marks of overlayfs are not copied, nor
/// what the host's security modules added.
pub(crate) fn flatten(
    trees: &[OwnedFd],
    target: &OwnedFd,
    flavour: Flavour,
) -> Result<Method, CloneError> {
    let contents = Contents::default();
    let mut cloning = Cloning { trees, target, flavour, contents, links: HashMap::new() };
    let mut pending = vec![Merged { path: Vec::new(), trees: (0..trees.len()).collect() }];
    while let Some(directory) = pending.pop() {
        cloning.fill(&directory, &mut pending)?;
    }
    Ok(cloning.contents.method())
}

impl Cloning<'_> {
    /// Makes all that is in a directory, and its metadata; directories in it are made empty, to be
    /// filled later, which does not change the times of this one.
    fn fill(&mut self, merged: &Merged, pending: &mut Vec<Merged>) -> Result<(), CloneError> {
        let failed = at("open the folder", &merged.path);
        let open = |root: &OwnedFd| open_dir(root, &merged.path);
        let roots = merged.trees.iter().filter_map(|tree| self.trees.get(*tree));
        let sources = roots.map(open).collect::<nix::Result<Vec<_>>>().map_err(&failed)?;
        let target = open(self.target).map_err(&failed)?;
        let mut decided = HashSet::new();
        for (i, source) in sources.iter().enumerate() {
            for name in names_in(source).map_err(at("list the folder", &merged.path))? {
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
        set_metadata(top, &target).map_err(at("set the metadata of", &merged.path))
    }

    /// Finds the trees whose directories of a name are merged; the first has one.
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
                Ok(_) => break,
                Err(errno) => return Err(errno),
            }
            trees.push(tree);
            if is_opaque(&openat(source, name, OPEN_DIR, Mode::empty())?, self.flavour)? {
                break;
            }
        }
        Ok(trees)
    }

    /// Makes what is no directory.
    fn make(&mut self, entry: &Entry<'_>, path: Vec<u8>) -> Result<(), CloneError> {
        // More names than one; not all of them need to be visible.
        let inode = (entry.found.st_nlink > 1).then_some((entry.found.st_dev, entry.found.st_ino));
        if let Some(first) = inode.and_then(|inode| self.links.get(&inode)) {
            return self.link(first, entry).map_err(at("make a hard link", &path));
        }
        let made = match kind(entry.found) {
            SFlag::S_IFREG => entry.make_file(&mut self.contents),
            SFlag::S_IFLNK => entry.make_symlink(),
            SFlag::S_IFIFO => entry.make_fifo(),
            // Unpacking makes nothing else.
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
        let parent = open_dir(self.target, parent.unwrap_or_default())?;
        let name = name.unwrap_or_default();
        linkat(&parent, name, entry.target, entry.name, AtFlags::empty())
    }
}

/// A name in a directory of a tree, and the directory it is to be made in.
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
        contents.copy(source.as_fd(), target.as_fd(), self.found.st_size)?;
        set_metadata(&source, &target)
    }

    fn make_symlink(&self) -> io::Result<()> {
        let text = readlinkat(self.source, self.name)?;
        symlinkat(text.as_os_str(), self.target, self.name)?;
        self.set_owner()?;
        self.set_times()
    }

    fn make_fifo(&self) -> io::Result<()> {
        mknodat(self.target, self.name, SFlag::S_IFIFO, Mode::S_IRUSR, 0)?;
        self.set_owner()?;
        // This does follow links, but the name is that of the pipe just made.
        fchmodat(self.target, self.name, mode(self.found), FchmodatFlags::FollowSymlink)?;
        self.set_times()
    }

    fn set_owner(&self) -> io::Result<()> {
        let (uid, gid) = owner(self.found);
        Ok(fchownat(self.target, self.name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    fn set_times(&self) -> io::Result<()> {
        let (atime, mtime) = times(self.found);
        let flags = UtimensatFlags::NoFollowSymlink;
        Ok(utimensat(self.target, self.name, &atime, &mtime, flags)?)
    }
}

/// Gives an open file or directory the metadata of another, in the order in which nothing is cleared
/// again: a change of the owner clears setuid bits and `security.capability`.
fn set_metadata(source: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let found = fstat(source)?;
    let (uid, gid) = owner(&found);
    fchown(target, uid, gid)?;
    copy_xattrs(source, target)?;
    fchmod(target, mode(&found))?;
    let (atime, mtime) = times(&found);
    Ok(futimens(target, &atime, &mtime)?)
}

/// Copies the attributes that unpacking keeps; others are overlayfs' or of the host.
fn copy_xattrs(source: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let list = match read_xattr(|buffer| flistxattr(source, buffer)) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        list => list?,
    };
    for name in list.split(|byte| *byte == 0).filter(|name| is_kept(name)) {
        let value = read_xattr(|buffer| fgetxattr(source, name, buffer))?;
        fsetxattr(target, name, &value, XattrFlags::empty())?;
    }
    Ok(())
}

/// Reads into a small buffer, and into a large one if that does not do.
fn read_xattr(
    read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut last = Err(rustix::io::Errno::RANGE);
    for size in XATTR_BYTES {
        let mut buffer = vec![0_u8; size];
        last = read(&mut buffer).map(|length| {
            buffer.truncate(length);
            buffer
        });
        if !matches!(last, Err(rustix::io::Errno::RANGE)) {
            break;
        }
    }
    last
}

fn is_kept(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        || name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
}

const OPEN_DIR: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Opens a directory by its path from a root, however long that is.
fn open_dir(root: &OwnedFd, path: &[u8]) -> nix::Result<OwnedFd> {
    let how = || {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        OpenHow::new().flags(OPEN_DIR).resolve(resolve | ResolveFlag::RESOLVE_NO_XDEV)
    };
    let mut directory = openat2(root, ".", how())?;
    let mut rest = path;
    while !rest.is_empty() {
        let (step, after) = match rest.get(..STEP_BYTES) {
            None => (rest, &b""[..]),
            // A name has at most 255 bytes, so there is a slash.
            Some(longest) => {
                let slash = longest.iter().rposition(|byte| *byte == b'/');
                let slash = slash.ok_or(Errno::ENAMETOOLONG)?;
                (rest.get(..slash).unwrap_or_default(), rest.get(slash + 1..).unwrap_or_default())
            }
        };
        directory = openat2(&directory, step, how())?;
        rest = after;
    }
    Ok(directory)
}

/// Overlayfs' form of a whiteout: a character device 0:0.
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

/// Times of the last access and change of contents.
fn times(found: &FileStat) -> (TimeSpec, TimeSpec) {
    (
        TimeSpec::new(found.st_atime, found.st_atime_nsec),
        TimeSpec::new(found.st_mtime, found.st_mtime_nsec),
    )
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') }
}

/// Makes an error of what an operation on `path` returned.
fn at<E: Into<io::Error>>(operation: &'static str, path: &[u8]) -> impl Fn(E) -> CloneError {
    let path = path.to_vec();
    move |error| CloneError { operation, path: path.clone(), source: error.into() }
}

#[cfg(test)]
mod tests;
