//! Directories that no other user can enter or replace.
//!
//! The trees of images hold setuid files of any owner, and boxes execute the files in them. A store
//! is therefore a directory of the user of this process with mode 0700. No other user must be able
//! to put another directory in its place. Each directory and symbolic link in its path must belong
//! to this user or to root, and each directory must be writable by others only if it has the sticky
//! bit, as `/tmp` has. The path of the store then leads to the same directory until this user
//! changes it. [`check_parents`](super::trusted_path::check_parents) checks this.

use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, openat};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::Uid;

use super::trusted_path::{StoreError, permissions};
use crate::host::directory::OPEN_DIR;

/// Opens a directory that only the user of this process can enter. Creates it if it is missing and
/// its parent exists.
///
/// This does not check the parents; see [`check_parents`](super::trusted_path::check_parents).
///
/// # Errors
///
/// When the path is a symbolic link or a file, when the directory belongs to another user or has
/// permissions for group or others, or when it cannot be created or opened.
pub fn private_directory(path: &Path) -> Result<OwnedFd, StoreError> {
    private_directory_in(AT_FDCWD, path, path)
}

/// Opens a directory like [`private_directory`], and also accepts one with mode 1770 and a group of
/// `groups`. The members of such a group can make files in it, and with the sticky bit they cannot
/// remove those of its owner.
///
/// # Errors
///
/// As [`private_directory`].
pub fn private_directory_with_group(
    path: &Path,
    groups: Range<u32>,
) -> Result<OwnedFd, StoreError> {
    open_private(AT_FDCWD, path, path, groups)
}

/// Opens the private directory `name` in an open directory. `path` is used in errors only.
pub(crate) fn private_directory_in(
    parent: BorrowedFd<'_>,
    name: &Path,
    path: &Path,
) -> Result<OwnedFd, StoreError> {
    open_private(parent, name, path, 0..0)
}

fn open_private(
    parent: BorrowedFd<'_>,
    name: &Path,
    path: &Path,
    groups: Range<u32>,
) -> Result<OwnedFd, StoreError> {
    match mkdirat(parent, name, Mode::S_IRWXU) {
        // An existing directory is checked below in the same way as a new one.
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(HostError::at("make", path)(errno).into()),
    }
    let user = Uid::effective().as_raw();
    let exposed = |found| StoreError::Exposed {
        path: path.to_owned(),
        found,
        expected: format!("a directory of user {user} with mode 0700"),
    };
    let directory = match openat(parent, name, OPEN_DIR, Mode::empty()) {
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            return Err(exposed("a symbolic link or a file".to_owned()));
        }
        opened => opened.map_err(HostError::at("open", path))?,
    };
    let found = fstat(&directory).map_err(HostError::at("look at", path))?;
    let is_of_group = groups.contains(&found.st_gid) && permissions(&found) == 0o1770;
    if found.st_uid == user && (found.st_mode & 0o077 == 0 || is_of_group) {
        return Ok(directory);
    }
    Err(exposed(format!(
        "a directory of user {} with mode {:04o}",
        found.st_uid,
        permissions(&found)
    )))
}
