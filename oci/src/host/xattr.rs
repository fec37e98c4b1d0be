//! Reads extended attributes, and selects those that a box can see.

use std::os::fd::AsFd;

use rustix::fs::{fgetxattr, flistxattr};
use rustix::io::{Errno, Result};

/// Sizes of the buffer for a list or a value. The first is enough for nearly all files. The second
/// is the maximum (`XATTR_LIST_MAX` and `XATTR_SIZE_MAX` in the kernel's `limits.h`).
const SIZES_BYTES: [usize; 2] = [256, 65536];

/// Returns whether an attribute of an image is kept in a box.
///
/// `trusted.*` and `user.overlay.*` are dropped, because an image could control overlayfs by them.
/// `security.*` other than capabilities is dropped, because it holds labels of the security module
/// on the host that built the image.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        || name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
}

/// Lists the names of an open file's attributes. The list is empty if the file system does not
/// support them.
pub(crate) fn names_of(file: &impl AsFd) -> Result<Vec<Vec<u8>>> {
    let list = match read(|buffer| flistxattr(file, buffer)) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        list => list?,
    };
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// Lists the names of an open file's attributes that are kept in a box.
pub(crate) fn kept_names_of(file: &impl AsFd) -> Result<Vec<Vec<u8>>> {
    names_of(file).map(|names| names.into_iter().filter(|name| is_kept(name)).collect())
}

/// Reads the value of an open file's attribute.
pub(crate) fn value_of(file: &impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    read(|buffer| fgetxattr(file, name, buffer))
}

/// Reads into a small buffer, and into a large one if the kernel returns `ERANGE`.
fn read(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut last = Err(Errno::RANGE);
    // A call with an empty buffer would return the size, but cost a second call for each file. The
    // size could also change between the two calls.
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
