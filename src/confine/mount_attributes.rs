//! `mount_setattr(2)`, which no crate that we use wraps: the only system call that the shim makes by
//! itself. It changes a whole tree of mounts at once, also one that hangs nowhere yet.

#![expect(unsafe_code, reason = "a system call without a safe wrapper")]

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

/// Sets `flags` for the mount that `mount` is open on, and for those below it if `recursive`.
pub(super) fn set(mount: impl AsFd, flags: MountAttrFlags, recursive: bool) -> io::Result<()> {
    let attributes = MountAttr { attr_set: flags.bits().into(), ..MountAttr::default() };
    let below = if recursive { libc::AT_RECURSIVE } else { 0 };
    let at: c_uint = libc::AT_EMPTY_PATH.unsigned_abs() | below.unsigned_abs();
    let fd = mount.as_fd().as_raw_fd();
    // SAFETY: the path is an empty string that ends in NUL, and the kernel only reads the structure, of
    // which it is told the size; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            at,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
