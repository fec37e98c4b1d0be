//! The disk that a box with a block root writes to: its limit, the space that it returns, and what
//! outlives a killed box and a power failure of the host.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use a3s_box_vm_tests::{Shim, config, eventually};

/// Starts a box that runs `script` on a kept disk of 128 MiB. `directory` has the box directory.
fn start(directory: tempfile::TempDir, script: &str) -> Shim {
    let mut config: Value = config(directory.path(), &json!({"args": ["/bin/sh", "-c", script]}));
    config["root"] = json!({"kind": "block"});
    config["resources"] = json!({"disk_mib": 128, "disk_keep": true, "timeout_ms": 100_000});
    Shim::spawn(directory, &config)
}

/// Waits until the workload has printed `line`.
fn wait_for_line(shim: &Shim, line: &str) {
    eventually(line, || String::from_utf8_lossy(&shim.console()).lines().any(|it| it == line));
}

/// Runs a command of the host, and panics if it fails.
fn run(program: &str, args: &[&Path]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// Makes an ext4 file system in `image`, which is the host's disk below the state directory.
fn make_host_disk(image: &Path) {
    File::create(image).unwrap().set_len(512 << 20).unwrap();
    run("mkfs.ext4", &[Path::new("-q"), "-Elazy_itable_init=0".as_ref(), image]);
}

/// Mounts a disk of [`make_host_disk`]. The host's kernel writes to it only what a process syncs: it
/// commits its journal by itself after `commit` seconds, which is longer than the test takes.
fn mount_host_disk(image: &Path, state_dir: &Path) {
    run("mount", &[Path::new("-oloop,commit=900"), image, state_dir]);
    fs::set_permissions(state_dir, Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_kept_disk_returns_space_and_keeps_what_a_killed_box_has_synced() {
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let mut shim = start(
        directory,
        "dd if=/dev/urandom of=/big bs=1048576 count=32 2>/dev/null; sync; echo written; sleep 5
         rm /big; sync; echo removed; echo kept >/file; sync; echo synced; sleep 100",
    );
    // `st_blocks` has units of 512 bytes (stat(3type)).
    let used_mib =
        |shim: &Shim| (shim.state().join("kept-disk.img").metadata().unwrap().blocks() * 512) >> 20;
    wait_for_line(&shim, "written");
    let with_file = used_mib(&shim);
    wait_for_line(&shim, "synced");
    let without_file = used_mib(&shim);
    assert!(with_file >= 32, "{with_file} MiB with a file of 32 MiB\n{shim}");
    assert!(without_file < 20, "{without_file} MiB once the file is removed\n{shim}");
    shim.child.kill().unwrap();
    shim.child.wait().unwrap();

    // The next box of this id continues, and has the limit of the config.
    let mut shim = start(
        shim.into_directory(),
        "cat /file; dd if=/dev/zero of=/full bs=1048576 count=200 2>&1 | grep -o 'No space left on device'",
    );
    shim.ends_with(0, "exited", None);
    assert_eq!(
        String::from_utf8_lossy(&shim.console()),
        "kept\nNo space left on device\n",
        "{shim}"
    );
}

#[test]
fn a_power_failure_of_the_host_loses_nothing_that_a_box_has_synced() {
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let [image, copy, state_dir] = ["image", "copy", "s"].map(|name| directory.path().join(name));
    make_host_disk(&image);
    fs::create_dir(&state_dir).unwrap();
    mount_host_disk(&image, &state_dir);
    let mut shim = start(
        directory,
        "dd if=/dev/urandom of=/fsynced bs=65536 count=48 conv=fsync 2>/dev/null; md5sum /fsynced
         mkdir /d; dd if=/dev/urandom of=/d/synced bs=65536 count=48 2>/dev/null; mv /d /e; sync
         md5sum /e/synced; echo synced; sleep 100",
    );
    wait_for_line(&shim, "synced");
    // The image of the host's disk lacks the dirty pages that the host's kernel has not written.
    // Its copy is the disk after a power failure at this moment.
    run("cp", &[Path::new("--sparse=always"), &image, &copy]);
    let before = String::from_utf8(shim.console()).unwrap();
    shim.child.kill().unwrap();
    shim.child.wait().unwrap();
    run("umount", &[&state_dir]);

    mount_host_disk(&copy, &state_dir);
    let mut shim = start(shim.into_directory(), "md5sum /fsynced /e/synced; echo synced");
    shim.ends_with(0, "exited", None);
    let after = String::from_utf8(shim.console()).unwrap();
    run("umount", &[&state_dir]);
    assert_eq!(after, before, "{shim}");
}
