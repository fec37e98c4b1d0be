//! The disk that a box with a block root writes to: its limit, the space that it returns, and what
//! outlives a killed box.

use std::os::unix::fs::MetadataExt;

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
