//! Removal of a tree that an image or a guest has shaped.
//!
//! Trees can be deeper than any path or stack or number of open files, because an entry may go
//! through a symbolic link into what is deep already. So this walks with one open directory, goes
//! back by `..`, and keeps names on the heap.

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

/// Removes what `path` names, with all that is below it; what is not there is no error. The last name
/// is not followed if it is a symbolic link.
///
/// However deep the tree is, this takes two open files and no stack for it.
///
/// # Errors
///
/// What the system refused; the rest of the tree may be gone by then.
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

/// Removes `name` from the directory `parent`, with all that is below it; what is not there is no
/// error.
///
/// Nobody else may change the tree meanwhile.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> nix::Result<()> {
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

/// Removes entries of a directory until one is a directory that is not empty, and returns that
/// one's name.
fn remove_entries(directory: BorrowedFd<'_>) -> nix::Result<Option<Vec<u8>>> {
    // A description of its own, so that each reading starts at the first entry.
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
    fn tree_deeper_than_a_path_is_removed_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("outside")).unwrap();
        fs::write(root.path().join("outside/kept"), "").unwrap();
        let parent = OwnedFd::from(File::open(root.path()).unwrap());
        mkdirat(&parent, "tree", Mode::S_IRWXU).unwrap();
        let mut deep = openat(&parent, "tree", OPEN_DIR, Mode::empty()).unwrap();
        symlink("../outside", root.path().join("tree/link")).unwrap();
        for _ in 0..1500 {
            mkdirat(&deep, "wide", Mode::S_IRWXU).unwrap();
            mkdirat(&deep, "d", Mode::S_IRWXU).unwrap();
            deep = openat(&deep, "d", OPEN_DIR, Mode::empty()).unwrap();
        }
        remove_path(&root.path().join("tree")).unwrap();
        assert!(!root.path().join("tree").exists());
        assert!(root.path().join("outside/kept").exists());
        remove_path(&root.path().join("tree")).unwrap();
        remove_path(&root.path().join("nowhere/tree")).unwrap();
        remove_path(Path::new("/")).unwrap_err();
    }
}
