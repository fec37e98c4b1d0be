//! The bench of these tests: a directory, private mounts, and programs that say what went wrong.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::tree;

/// Programs that the tests run, with the Debian package of each.
const PROGRAMS: [(&str, &str); 4] = [
    ("umoci", "umoci"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("setpriv", "util-linux"),
];

/// An empty directory, on a file system in memory that only this process sees.
pub(crate) struct Bench {
    directory: TempDir,
}

impl Bench {
    /// Makes the directory, and checks that all programs are there.
    pub(crate) fn new() -> Self {
        for (program, package) in PROGRAMS {
            need(program, package);
        }
        let directory = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        // Fast, and it can hold the upper directories of overlays wherever the temporary directory is.
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .unwrap();
        tree::start();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Bench {
    /// The directory can be removed only when nothing is mounted on it.
    fn drop(&mut self) {
        umount2(self.directory.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// Fails unless a program can be run.
pub(crate) fn need(program: &str, package: &str) {
    let there = Command::new(program).arg("--version").output().is_ok();
    assert!(there, "this test needs `{program}`: install the Debian package `{package}`");
}

/// Runs a program, and returns what it prints; an error is the last line of its complaint.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr).lines().last().unwrap_or_default().trim().to_owned()),
    }
}

/// Joins an error and its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}
