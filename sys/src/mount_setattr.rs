//! `mount_setattr(2)`, which neither `nix` nor `rustix` wraps.
//!
//! The call changes the attributes of a whole tree of mounts at once. The tree may be detached: it
//! need not be attached to the mount namespace yet.

use std::ffi::c_uint;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::mount::MountAttrFlags;

/// `struct mount_attr` of Linux 5.12 (`linux/mount.h`), whose size is `MOUNT_ATTR_SIZE_VER0`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `MOUNT_ATTR_IDMAP` (`linux/mount.h`).
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Sets `flags` on the mount that the fd `mount` refers to, and on all mounts below it if
/// `recursive`.
///
/// # Errors
///
/// Those of `mount_setattr(2)`: `EPERM` without `CAP_SYS_ADMIN` in the user namespace that owns the
/// mount, `EINVAL` if `mount` is not the root of a mount, `ENOSYS` before Linux 5.12.
pub fn set(mount: impl AsFd, flags: MountAttrFlags, recursive: bool) -> io::Result<()> {
    change(mount, &MountAttr { attr_set: flags.bits().into(), ..MountAttr::default() }, recursive)
}

/// Maps the owners of the files of a detached mount, and of all mounts below it, by the id maps of
/// the user namespace `namespace` (`MOUNT_ATTR_IDMAP`): an id inside of the namespace is the owner
/// in the file system, and the id outside is the owner that processes see.
///
/// # Errors
///
/// Those of `mount_setattr(2)`: `EINVAL` if the file system cannot map owners, if the mount is
/// attached, or if it is mapped already.
pub fn map_owners(mount: impl AsFd, namespace: impl AsFd) -> io::Result<()> {
    // The kernel checks the sign of the fd itself.
    let userns_fd = u64::try_from(namespace.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
    let attr_set = MOUNT_ATTR_IDMAP;
    change(mount, &MountAttr { attr_set, userns_fd, ..MountAttr::default() }, true)
}

fn change(mount: impl AsFd, attributes: &MountAttr, recursive: bool) -> io::Result<()> {
    let below = if recursive { libc::AT_RECURSIVE } else { 0 };
    let at: c_uint = libc::AT_EMPTY_PATH.unsigned_abs() | below.unsigned_abs();
    let fd = mount.as_fd().as_raw_fd();
    // SAFETY: the path is an empty string that ends in NUL. The kernel only reads the structure, and
    // no more than the size that is passed. Both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            at,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
