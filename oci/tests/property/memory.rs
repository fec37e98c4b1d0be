//! Mounts that end with the test: a file system in memory, in a mount namespace of its own.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{XattrFlags, setxattr};

/// Gives the thread, and those it starts, a mount namespace from which nothing spreads.
pub(crate) fn private_mounts() {
    unshare(CloneFlags::CLONE_NEWNS)
        .unwrap_or_else(|errno| panic!("this test needs root: {errno}"));
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .unwrap();
}

/// Mounts a file system in memory, if the kernel has one that can hold a tree.
pub(crate) fn mount_memory(directory: &Path) {
    mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    if setxattr(directory, "user.test", b"", XattrFlags::empty()).is_err() {
        // Before Linux 6.6 a tmpfs takes no such attributes, and the disk must do.
        umount2(directory, MntFlags::empty()).unwrap();
    }
}
