//! Removes trees whose names come from an image or a guest.
//!
//! A tree can be deeper than `PATH_MAX`, than a recursive function's stack and than the limit on
//! open files, because an entry can lead through a symbolic link into a directory that is deep
//! already. This code therefore keeps one directory open, returns to the parent by `..`, and stores
//! the names on the heap.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::openat;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::host::directory::OPEN_DIR;

/// Removes the file or tree at `path`. A missing path is not an error. If the last component is a
/// symbolic link, the link is removed and not its target.
///
/// This needs a constant number of open files and a constant stack for trees of any depth.
///
/// # Errors
///
/// When a system call fails. A part of the tree can have been removed by then.
pub fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match File::open(parent) {
        Ok(parent) => Ok(remove_tree(parent.as_fd(), name.as_bytes())?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the file or tree `name` from the directory `parent`. A missing name is not an error.
///
/// No other process must change the tree at the same time, because `..` would then lead to another
/// directory.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> nix::Result<()> {
    // `unlinkat` without a `stat` before it: Linux returns `EISDIR` for a directory, and POSIX
    // defines `EPERM`.
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno),
    }
    let mut below: Vec<Vec<u8>> = Vec::new();
    let mut directory = openat(parent, name, OPEN_DIR, Mode::empty())?;
    loop {
        if let Some(next) = remove_entries(directory.as_fd())? {
            directory = openat(&directory, next.as_slice(), OPEN_DIR, Mode::empty())?;
            below.push(next);
            continue;
        }
        let Some(emptied) = below.pop() else {
            return unlinkat(parent, name, UnlinkatFlags::RemoveDir);
        };
        directory = openat(&directory, "..", OPEN_DIR, Mode::empty())?;
        unlinkat(&directory, emptied.as_slice(), UnlinkatFlags::RemoveDir)?;
    }
}

/// Removes the entries of a directory up to the first directory that is not empty, and returns the
/// name of that directory.
fn remove_entries(directory: BorrowedFd<'_>) -> nix::Result<Option<Vec<u8>>> {
    // The directory is opened again, because duplicates of an fd share the offset of `readdir(3)`.
    // A new open file description starts at the first entry.
    let reading: OwnedFd = openat(directory, ".", OPEN_DIR, Mode::empty())?;
    for entry in Dir::from_fd(reading)?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => continue,
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
        match unlinkat(directory, name, UnlinkatFlags::RemoveDir) {
            Ok(()) => {}
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => return Ok(Some(name.to_bytes().to_vec())),
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::mkdirat;

    use super::*;

    #[test]
    fn tree_of_1500_levels_is_removed_without_following_links() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("outside")).unwrap();
        fs::write(root.path().join("outside/kept"), "").unwrap();
        let parent = OwnedFd::from(File::open(root.path()).unwrap());
        mkdirat(&parent, "tree", Mode::S_IRWXU).unwrap();
        let mut deep = openat(&parent, "tree", OPEN_DIR, Mode::empty()).unwrap();
        symlink("../outside", root.path().join("tree/link")).unwrap();
        // More levels than most processes can have open files: the usual soft limit is 1024. Each
        // level also has an empty directory, which is removed without being opened.
        for _ in 0..1500 {
            mkdirat(&deep, "wide", Mode::S_IRWXU).unwrap();
            mkdirat(&deep, "d", Mode::S_IRWXU).unwrap();
            deep = openat(&deep, "d", OPEN_DIR, Mode::empty()).unwrap();
        }
        remove_path(&root.path().join("tree")).unwrap();
        assert!(!root.path().join("tree").exists());
        assert!(root.path().join("outside/kept").exists());
        // A missing tree, or a missing parent of the tree, is not an error.
        remove_path(&root.path().join("tree")).unwrap();
        remove_path(&root.path().join("nowhere/tree")).unwrap();
        remove_path(Path::new("/")).unwrap_err();
    }
}
