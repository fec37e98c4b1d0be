//! Extended attributes: which of them mean something in a box, and reading them.

use std::os::fd::AsFd;

use rustix::fs::{fgetxattr, flistxattr};
use rustix::io::{Errno, Result};

/// Room for a list or a value: enough for nearly all files, and then the most that there can be
/// (`XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of the kernel's `limits.h`).
const SIZES_BYTES: [usize; 2] = [256, 65536];

/// Says whether an attribute means something in a box.
///
/// Not `trusted.*`, which would let an image steer overlayfs, nor its unprivileged twin
/// `user.overlay.*`; not the labels of the builder's security module.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        || name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
}

/// Lists the names of an open file's attributes; none where the file system has no attributes.
pub(crate) fn names_of(file: &impl AsFd) -> Result<Vec<Vec<u8>>> {
    let list = match read(|buffer| flistxattr(file, buffer)) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        list => list?,
    };
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// Lists the names of those that mean something in a box.
pub(crate) fn kept_names_of(file: &impl AsFd) -> Result<Vec<Vec<u8>>> {
    names_of(file).map(|names| names.into_iter().filter(|name| is_kept(name)).collect())
}

/// Reads the value of an open file's attribute.
pub(crate) fn value_of(file: &impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    read(|buffer| fgetxattr(file, name, buffer))
}

/// Reads into a small buffer, and into a large one if that does not do.
fn read(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut last = Err(Errno::RANGE);
    for size in SIZES_BYTES {
        let mut buffer = vec![0_u8; size];
        last = read(&mut buffer).map(|length| {
            buffer.truncate(length);
            buffer
        });
        if !matches!(last, Err(Errno::RANGE)) {
            break;
        }
    }
    last
}
