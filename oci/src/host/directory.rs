//! Opens and lists directories of trees whose names come from an image.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// Flags to open a directory for reading.
pub(crate) const OPEN_DIR: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Longest path of one system call. The kernel accepts 4095 bytes (`PATH_MAX` without its NUL).
const STEP_BYTES: usize = 4095;

/// Opens a directory by a path of the host.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OPEN_DIR, Mode::empty())?)
}

/// Opens a directory by its path below a root. The path can be of any length and must have no
/// symbolic links. An empty path is the root.
///
/// A path that is longer than `PATH_MAX` is opened in several steps.
pub(crate) fn open_below(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let how = || {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        OpenHow::new().flags(OPEN_DIR).resolve(resolve | ResolveFlag::RESOLVE_NO_XDEV)
    };
    let mut directory = openat2(root, ".", how())?;
    let mut rest = path.as_os_str().as_bytes();
    while !rest.is_empty() {
        let (step, after) = match rest.get(..STEP_BYTES) {
            None => (rest, &b""[..]),
            // A name has at most 255 bytes (`NAME_MAX`), so that each step has a slash.
            Some(longest) => {
                let slash = longest.iter().rposition(|byte| *byte == b'/');
                let slash = slash.ok_or(Errno::ENAMETOOLONG)?;
                (&rest[..slash], &rest[slash + 1..])
            }
        };
        directory = openat2(&directory, step, how())?;
        rest = after;
    }
    Ok(directory)
}

/// Lists the names in a directory, without `.` and `..`.
pub(crate) fn names_in(directory: &OwnedFd) -> nix::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::openat(directory, ".", OPEN_DIR, Mode::empty())?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}
