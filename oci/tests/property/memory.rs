//! Mounts a tmpfs in a mount namespace of the test, so that no mount is left after the test.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{XattrFlags, setxattr};

/// Moves the calling thread, and the threads that it starts later, to a new mount namespace. Its
/// mounts do not propagate to the host.
///
/// # Panics
///
/// If the process is not root.
pub(crate) fn private_mounts() {
    unshare(CloneFlags::CLONE_NEWNS)
        .unwrap_or_else(|errno| panic!("this test needs root: {errno}"));
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .unwrap();
}

/// Mounts a tmpfs on `directory`, because it makes the test faster. If the kernel does not support
/// `user.*` attributes on a tmpfs, the directory stays on the disk.
pub(crate) fn mount_memory(directory: &Path) {
    mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    if setxattr(directory, "user.test", b"", XattrFlags::empty()).is_err() {
        // A tmpfs supports `user.*` attributes since Linux 6.6.
        umount2(directory, MntFlags::empty()).unwrap();
    }
}
