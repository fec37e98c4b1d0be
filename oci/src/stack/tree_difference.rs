//! The first difference between two trees.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use crate::host::directory::{names_in, open_below};
use crate::host::xattr::{names_of, value_of};

/// Size of the buffers of the comparison. It makes the cost of a system call small against the
/// copy.
const COMPARE_BYTES: usize = 128 * 1024;

/// Finds the first path at which two trees differ, and the property that differs.
///
/// The walk keeps paths on the heap and opens directories from the root, because trees can be
/// deeper than the stack or the number of open files allows.
pub(super) fn difference(
    ours: &OwnedFd,
    fresh: &OwnedFd,
) -> io::Result<Option<(PathBuf, &'static str)>> {
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let (a, b) = (open_below(ours, &path)?, open_below(fresh, &path)?);
        // Directories below the root were compared as entries of their parent.
        if path.as_os_str().is_empty()
            && let Some(what) = differs(&fstat(&a)?, &fstat(&b)?)
        {
            return Ok(Some((path, what)));
        }
        if attributes(&a)? != attributes(&b)? {
            return Ok(Some((path, "extended attributes")));
        }
        let (mut names, mut expected) = (names_in(&a)?, names_in(&b)?);
        // A directory lists its names in an order that depends on the file system.
        names.sort_unstable();
        expected.sort_unstable();
        if names != expected {
            return Ok(Some((path, "names in the directory")));
        }
        for name in names {
            let below = path.join(OsStr::from_bytes(&name));
            let stat =
                |directory| fstatat(directory, name.as_slice(), AtFlags::AT_SYMLINK_NOFOLLOW);
            let found = stat(&a)?;
            if let Some(what) = differs(&found, &stat(&b)?) {
                return Ok(Some((below, what)));
            }
            // Both inodes have the same type, because `differs` compares the whole mode.
            match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFDIR => pending.push(below),
                SFlag::S_IFREG => {
                    if let Some(what) = file_differs(&a, &b, &name)? {
                        return Ok(Some((below, what)));
                    }
                }
                SFlag::S_IFLNK
                    if readlinkat(&a, name.as_slice())? != readlinkat(&b, name.as_slice())? =>
                {
                    return Ok(Some((below, "target of the symbolic link")));
                }
                _ => {}
            }
        }
    }
    Ok(None)
}

/// Returns the first property in which two inodes differ.
///
/// Sizes and link counts of directories are left out, because they depend on the file system. Only
/// the type of a whiteout counts: no box sees its metadata, and its time is that of its making.
fn differs(a: &FileStat, b: &FileStat) -> Option<&'static str> {
    let is_dir = is_type(a, SFlag::S_IFDIR);
    if is_whiteout(a) && is_whiteout(b) {
        return None;
    }
    let pairs = [
        ("type or mode", a.st_mode == b.st_mode),
        ("owner", (a.st_uid, a.st_gid) == (b.st_uid, b.st_gid)),
        ("time", (a.st_mtime, a.st_mtime_nsec) == (b.st_mtime, b.st_mtime_nsec)),
        ("size", is_dir || a.st_size == b.st_size),
        ("device", a.st_rdev == b.st_rdev),
        ("number of hard links", is_dir || a.st_nlink == b.st_nlink),
    ];
    pairs.into_iter().find(|(_, is_equal)| !is_equal).map(|(what, _)| what)
}

/// Returns whether an inode is a whiteout of overlayfs.
fn is_whiteout(found: &FileStat) -> bool {
    is_type(found, SFlag::S_IFCHR) && found.st_rdev == 0
}

fn is_type(found: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == kind
}

/// Returns the first property in which two regular files of the same size differ.
fn file_differs(a: &OwnedFd, b: &OwnedFd, name: &[u8]) -> io::Result<Option<&'static str>> {
    let open = |directory| {
        // Verification must not change the access times of cached files.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
        openat(directory, name, flags, Mode::empty())
    };
    let (a, b) = (open(a)?, open(b)?);
    if attributes(&a)? != attributes(&b)? {
        return Ok(Some("extended attributes"));
    }
    let (mut a, mut b) = (File::from(a), File::from(b));
    let (mut left, mut right) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    loop {
        let count = a.read(&mut left)?;
        // Both files have the same size. If one ends early, it has changed during the comparison,
        // which no process may do, so it counts as damaged.
        if b.read_exact(&mut right[..count]).is_err() || left[..count] != right[..count] {
            return Ok(Some("content"));
        }
        if count == 0 {
            return Ok(None);
        }
    }
}

/// Reads all extended attributes of an open file, sorted by name.
fn attributes(file: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = names_of(file)?;
    names.sort_unstable();
    names.into_iter().map(|name| Ok((value_of(file, &name)?, name))).collect()
}
