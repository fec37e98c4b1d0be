//! The kind of a root: its choice, the disks of a block root, and the rights of its shim.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::disk::spawn;
use crate::harness::{config, parse, shim, start};
use crate::image::image;
use crate::image_disk;

/// Runs `--prepare` with a guest kernel that lacks `lacks`.
fn prepare(config: &Value, lacks: &str) -> (Output, Vec<Value>) {
    let mut command = shim();
    let mut child =
        command.env("A3S_BOX_FAKE_KERNEL_LACKS", lacks).arg("--prepare").spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    (output, events)
}

fn event<'a>(events: &'a [Value], kind: &str) -> &'a Value {
    events.iter().find(|event| event["type"] == kind).unwrap_or_else(|| panic!("{events:#?}"))
}

/// Returns `count` shares of directories below `directory`.
fn shares(directory: &Path, count: usize) -> Value {
    let share = |i| {
        let source = directory.join(format!("share{i}"));
        fs::create_dir_all(&source).unwrap();
        json!({"type": "virtiofs", "source": source, "target": format!("/mnt/{i}")})
    };
    (0..count).map(share).collect()
}

#[test]
fn kind_is_block_unless_config_guest_kernel_or_shares_require_the_other_one() {
    let directory = tempfile::tempdir().unwrap();
    let image = image(directory.path(), "echo 1 >own");
    let lacks = "EROFS with extended attributes";
    for (root, disk, count, lacks, expected) in [
        (json!({}), "state_dir", 4, "", ["block", "default", "erofs", "image"]),
        (json!({"kind": "block"}), "state_dir", 0, "", ["block", "config", "erofs", "image"]),
        (json!({}), "memory", 5, "", ["block", "default", "erofs", "guest_memory"]),
        (json!({}), "state_dir", 5, "", ["shared", "mounts", "overlay", "state_dir"]),
        (json!({}), "memory", 6, "", ["shared", "mounts", "overlay", "memory"]),
        (json!({}), "state_dir", 0, lacks, ["shared", "guest_kernel", "overlay", "state_dir"]),
        (
            json!({"kind": "shared"}),
            "state_dir",
            6,
            "",
            ["shared", "config", "overlay", "state_dir"],
        ),
    ] {
        let mut config = config(directory.path(), &["never", "played"]);
        config["image"] = image.clone();
        config["root"] = root;
        config["resources"] = json!({"disk": disk});
        config["mounts"] = shares(directory.path(), count);
        let (output, events) = prepare(&config, lacks);
        assert_eq!(output.status.code(), Some(0), "{config}: {events:#?}");
        let ready = event(&events, "rootfs.ready");
        let found = ["kind", "kind_reason", "root", "upper"].map(|field| ready[field].clone());
        assert_eq!(found, expected.map(Value::from), "{config}");
        assert!(!directory.path().join("s/golden").exists());
    }
}

#[test]
fn block_root_that_is_not_possible_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path(), &["never", "played"]);
    config["root"] = json!({"kind": "block"});
    let (output, events) = prepare(&config, "EROFS,overlayfs");
    assert_eq!(output.status.code(), Some(125));
    let error = event(&events, "error");
    assert_eq!(error["code"], "host_unsupported");
    let causes = error["causes"].to_string();
    let expected =
        "the config requires a block root, for which this installation lacks: EROFS, overlayfs";
    assert!(causes.contains(expected), "{causes}");

    config["mounts"] = shares(directory.path(), 5);
    let (output, events) = prepare(&config, "");
    assert_eq!(output.status.code(), Some(125));
    let error = event(&events, "error").to_string();
    assert!(error.contains("found 5 of type virtiofs, expected at most 4"), "{error}");
}

/// Returns a field of `/proc/<pid>/status`.
fn status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap_or_else(|| panic!("there is no {name} in {status}")).trim().to_owned()
}

/// The fake VM opens each file of the disks, so a box that starts shows that the confinement allows
/// it.
#[test]
fn shim_of_a_block_root_keeps_capabilities_and_directories_only_for_shares() {
    for (count, capabilities) in [(0, "0000000000000000"), (1, "00000000800000db")] {
        let script = ["connect", "hello", "started=7", "hang"];
        let mut running = start(&script, |config| {
            let directory = config["paths"]["state_dir"].as_str().unwrap().to_owned();
            let directory = Path::new(&directory).parent().unwrap().to_owned();
            config["image"] = image(&directory, "echo 1 >own");
            config["mounts"] = shares(&directory, count);
        });
        let pid = running.child.id();
        running.wait_for("guest.started");
        for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapInh:", "CapAmb:"] {
            let expected = if set == "CapInh:" || set == "CapAmb:" {
                "0000000000000000"
            } else {
                capabilities
            };
            assert_eq!(status(pid, set), expected, "{set} with {count} shares");
        }
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let fds = fds.map(|fd| fd.unwrap().path());
        let directories = fds.filter(|fd| fs::metadata(fd).is_ok_and(|found| found.is_dir()));
        // Files of the box directory are made and removed by fds of it, which lead to no directory
        // above.
        let own = running.box_path("").canonicalize().unwrap();
        let names = directories.map(|fd| fs::read_link(fd).unwrap());
        let names: Vec<_> = names.filter(|name| *name != own).collect();
        assert_eq!(names.len(), count, "open directories with {count} shares: {names:?}");
        running.child.kill().unwrap();
        running.child.wait().unwrap();
    }
}

#[test]
fn disk_of_the_image_is_an_erofs_of_its_files() {
    let mut running = start(&["connect", "hello", "started=7", "hang"], |config| {
        let directory = config["paths"]["state_dir"].as_str().unwrap().to_owned();
        let script =
            "mkdir d && echo of-the-image >d/file && chown 42:43 d/file && chmod 4711 d/file";
        config["image"] = image(Path::new(&directory).parent().unwrap(), script);
    });
    running.wait_for("guest.started");
    let (directory, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = directory.path().join("disk");
    image_disk::copy(running.child.id(), &disk);
    let mut mount = Command::new("mount");
    let status =
        mount.args(["-t", "erofs", "-o", "ro,loop"]).args([&*disk, target.path()]).status();
    let status = status.unwrap();
    assert!(status.success(), "the disk is not an EROFS");
    let file = target.path().join("d/file");
    let found = fs::read_to_string(&file);
    let metadata = fs::metadata(&file);
    let status = Command::new("umount").arg(target.path()).status().unwrap();
    assert!(status.success());
    assert_eq!(found.unwrap(), "of-the-image\n");
    let metadata = metadata.unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (42, 43, 0o4711));
    running.child.kill().unwrap();
    running.child.wait().unwrap();
}

#[test]
fn box_that_ends_removes_the_disk_of_its_writes() {
    let directory = tempfile::tempdir().unwrap();
    let script = ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];
    let config = config(directory.path(), &script);
    let output = spawn(&config, &[]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    let mut left: Vec<_> = fs::read_dir(directory.path().join("s/golden"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort_unstable();
    assert_eq!(left, ["console.log", "exit.json", "run.json"]);
}

#[test]
fn kept_disk_is_used_again_and_survives_prepare_and_starts_without_it() {
    let directory = tempfile::tempdir().unwrap();
    let script = ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];
    let mut config = config(directory.path(), &script);
    config["resources"] = json!({"disk_mib": 16, "disk_keep": true});
    let kept = directory.path().join("s/golden/kept-disk.img");
    let (output, _) = prepare(&config, "");
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    assert!(!kept.exists(), "--prepare keeps no disk");
    let run = |config: &Value, expected: &str| {
        let output = spawn(config, &[]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
        let events = parse(std::str::from_utf8(&output.stdout).unwrap());
        assert_eq!(event(&events, "rootfs.ready")["upper"], expected);
    };
    run(&config, "kept_image");
    // The last bytes of an empty ext4 are free.
    let mark = |bytes: &[u8]| {
        let disk = fs::OpenOptions::new().write(true).open(&kept).unwrap();
        disk.write_all_at(bytes, (16 << 20) - 4).unwrap();
    };
    mark(b"kept");
    run(&config, "kept_image");
    let mut other = config.clone();
    other["resources"] = json!({"disk_mib": 16});
    run(&other, "image");
    let (output, _) = prepare(&config, "");
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    assert!(fs::read(&kept).unwrap().ends_with(b"kept"));

    config["resources"]["disk_mib"] = json!(32);
    let output = spawn(&config, &[]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    let causes = event(&events, "error")["causes"].to_string();
    assert!(causes.contains("16 MiB") && causes.contains("32 MiB"), "{causes}");
}
