//! A temporary directory for tests that mount.

use std::fs;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

/// A temporary directory, in a private mount namespace of the test thread.
///
/// The mounts of a test are visible to no other process, and end with the thread at the latest.
pub(crate) struct ScratchDir(TempDir);

impl ScratchDir {
    /// Creates the directory, and moves this thread into a new mount namespace. This needs root.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        // A new namespace still shares its mounts with the old one where these are shared
        // (`mount_namespaces(7)`).
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for ScratchDir {
    /// Detaches the mounts in the directory, because a mount point cannot be removed.
    fn drop(&mut self) {
        for entry in fs::read_dir(self.0.path()).into_iter().flatten().flatten() {
            // The result is ignored: most entries are no mount points (`EINVAL`).
            let _unmounted = umount2(&entry.path(), MntFlags::MNT_DETACH);
        }
    }
}
