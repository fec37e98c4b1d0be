//! The environment of a test: a directory, private mounts, and the programs that it runs.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::tree;

/// Programs that the tests run, each with its Debian package.
const PROGRAMS: [(&str, &str); 4] = [
    ("umoci", "umoci"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("setpriv", "util-linux"),
];

/// A directory on a tmpfs in a mount namespace of this process.
pub(crate) struct Bench {
    directory: TempDir,
}

impl Bench {
    /// Creates the directory, and checks that all programs are installed.
    ///
    /// # Panics
    ///
    /// If a program is missing, or if the process lacks the privilege to mount.
    pub(crate) fn new() -> Self {
        for (program, package) in PROGRAMS {
            require(program, package);
        }
        let directory = tempfile::tempdir().unwrap();
        // In a private mount namespace, the mounts of the test end with its process.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        // A tmpfs is fast, and it supports the upper directory of an overlay mount. The file system
        // of the temporary directory may not support it.
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .unwrap();
        tree::record_start();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Bench {
    /// Detaches the tmpfs, because a directory with a mount on it cannot be removed.
    fn drop(&mut self) {
        umount2(self.directory.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// Checks that a program can be run.
///
/// # Panics
///
/// If the program cannot be started. The message names its Debian package.
fn require(program: &str, package: &str) {
    let is_installed = Command::new(program).arg("--version").output().is_ok();
    assert!(is_installed, "this test needs `{program}`: install the Debian package `{package}`");
}

/// Runs a program, and returns its standard output. An error is the last line of its standard
/// error.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr).lines().last().unwrap_or_default().trim().to_owned()),
    }
}

/// Returns the text of an error and of its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}
