//! Open directories: their names, and the limit on the depth of a tree.

use std::os::fd::AsFd;

use a3s_box_proto::files::FailureKind;
use rustix::fs::{Dir, Mode, OFlags, openat};

use super::failure::FileError;

/// Maximum number of levels of a tree. Each level has an open directory.
pub(super) const MAX_DEPTH: usize = 256;

/// Returns the next name of a directory other than `.` and `..`.
pub(super) fn next_name(directory: &mut Dir) -> rustix::io::Result<Option<Vec<u8>>> {
    while let Some(entry) = directory.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            return Ok(Some(name.to_vec()));
        }
    }
    Ok(None)
}

/// Opens a directory to read its names. A symbolic link is refused.
pub(super) fn open_directory(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Dir::new(openat(parent, name, flags, Mode::empty())?)
}

pub(super) fn too_deep(path: &[u8]) -> FileError {
    let message = format!("`{}` is more than {MAX_DEPTH} levels deep", path.escape_ascii());
    FileError::new(FailureKind::TooDeep, path, &message)
}
