//! The disk of a shared root: its size limit, its place, and its removal.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{config, parse, shim};
use crate::image::image;

/// Time after which [`wait_until`] gives up. A busy host needs less to make and mount a file
/// system.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Starts a shim with these arguments and this config.
pub(crate) fn spawn(config: &Value, arguments: &[&str]) -> Child {
    let mut child = shim().args(arguments).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    child
}

/// Returns the config of a box with an image and a disk of 16 MiB, whose guest hangs.
fn hanging_box(directory: &Path, disk: &str) -> Value {
    let mut config = config(directory, &["hang"]);
    config["image"] = image(directory, "echo lower >of-the-image");
    config["root"] = json!({"kind": "shared"});
    config["resources"] = json!({"disk": disk, "disk_mib": 16});
    config
}

/// Waits until `condition` is true. `what` is a sentence that names it in the message.
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "not true within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the shim has mounted the box's root and entered its own, and returns the path of the
/// box's root from here.
///
/// The image must have a file `of-the-image`.
pub(crate) fn mounted_root(child: &Child, directory: &Path) -> PathBuf {
    let of_shim = PathBuf::from(format!("/proc/{}/root", child.id()));
    let root = of_shim.join(directory.strip_prefix("/").unwrap()).join("s/golden/root");
    // The root of a confined shim has no /etc.
    let is_confined = || !of_shim.join("etc").exists();
    wait_until("the root is mounted", || is_confined() && root.join("of-the-image").exists());
    root
}

/// Writes until the disk is full. Returns the number of bytes that fit, and the error.
fn fill(path: &Path) -> (u64, io::Error) {
    let mut file = File::create_new(path).unwrap();
    let chunk = vec![1; 1 << 20];
    let error = (0..64).find_map(|_| file.write_all(&chunk).err());
    let error = error.unwrap_or_else(|| panic!("64 MiB fit on a disk of 16 MiB"));
    (file.metadata().unwrap().len(), error)
}

/// Returns the loop devices of the host, with the paths of their files.
fn loop_devices() -> String {
    let output = Command::new("losetup").arg("-a").output();
    let output = output.unwrap_or_else(|error| {
        panic!("this test needs losetup ({error}): install the package `mount`")
    });
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn shared_root_on_a_file_system_with_less_free_space_than_the_reserve_is_refused() {
    for (disk, is_refused) in [("state_dir", true), ("memory", false)] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = hanging_box(directory.path(), disk);
        config["resources"] = json!({"disk": disk, "disk_reserve_mib": u32::MAX});
        let output = spawn(&config, &["--prepare"]).wait_with_output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let status = if is_refused { 125 } else { 0 };
        assert_eq!(output.status.code(), Some(status), "{disk}: {stdout}");
        assert_eq!(stdout.contains("lower `resources.disk_reserve_mib`"), is_refused, "{stdout}");
    }
}

#[test]
fn disk_is_limited_and_a_killed_shim_leaves_no_mount_or_loop_device() {
    for disk in ["state_dir", "memory"] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = hanging_box(directory.path(), disk);
        let mut child = spawn(&config, &[]);
        let root = mounted_root(&child, directory.path());
        let (written, error) = fill(&root.join("big"));
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "the disk is `{disk}`");
        // The file system needs some space for itself, but less than half.
        assert!((8 << 20..=16 << 20).contains(&written), "{written} bytes fit on the disk {disk}");
        assert_eq!(fs::read_to_string(root.join("of-the-image")).unwrap(), "lower\n");
        // The VMM of a shared root is root of the host. It must not reach the file that the host has
        // mounted.
        assert!(!directory.path().join("s/golden/disk.img").exists());
        let name = directory.path().to_str().unwrap();
        assert_eq!(
            loop_devices().contains(name),
            disk == "state_dir",
            "the loop devices are: {}",
            loop_devices()
        );
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until("the loop device is free", || !loop_devices().contains(name));
        // The shim may have forked the fake guest a moment before its death. The child has a copy
        // of the lock's fd until it executes its program.
        let lock = File::open(directory.path().join("s/golden/run.json")).unwrap();
        wait_until("the lock is free", || lock.try_lock().is_ok());
        drop(lock);
        assert!(!fs::read_to_string("/proc/mounts").unwrap().contains(name));
        // The next run with the same id removes what the killed shim left.
        config["resources"] = json!({});
        let output = spawn(&config, &["--prepare"]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
        assert!(!directory.path().join("s/golden").exists());
    }
}

#[test]
fn box_that_ends_removes_its_disk() {
    for disk in ["state_dir", "memory"] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = hanging_box(directory.path(), disk);
        let script = ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];
        config["process"]["args"] = json!(script);
        let output = spawn(&config, &[]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
        let name = directory.path().to_str().unwrap();
        wait_until("the loop device is free", || !loop_devices().contains(name));
        let mut left: Vec<_> = fs::read_dir(directory.path().join("s/golden"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort_unstable();
        assert_eq!(
            left,
            ["console.log", "disk", "exit.json", "root", "run.json"],
            "the disk is `{disk}`"
        );
        assert_eq!(fs::read_dir(directory.path().join("s/golden/disk")).unwrap().count(), 0);
    }
}

#[test]
fn rootfs_ready_reports_the_place_of_the_disk() {
    for (disk, upper) in [("state_dir", "image"), ("memory", "memory")] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = hanging_box(directory.path(), disk);
        config["resources"]["disk_mib"] = json!(65536);
        let output = spawn(&config, &["--prepare"]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
        let events = parse(std::str::from_utf8(&output.stdout).unwrap());
        let ready = events.iter().find(|event| event["type"] == "rootfs.ready").unwrap();
        let found = [&ready["root"], &ready["upper"], &ready["disk_mib"]];
        assert_eq!(found, [&json!("overlay"), &json!(upper), &json!(65536)]);
        assert!(!directory.path().join("s/golden").exists());
    }
}

/// Shell script that mounts an overlay on the state directory and executes the shim.
///
/// The state directory of a shim in a container is on an overlay too. overlayfs does not accept an
/// upper directory there. $1 is the directory of the test, and the other arguments are the command
/// line of the shim.
const RUN_ON_OVERLAY: &str = r#"
mount --make-rprivate /
mkdir "$1/lower" "$1/upper" "$1/work" "$1/s"
chmod 700 "$1/upper"
mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" overlay "$1/s"
shift
exec "$@"
"#;

#[test]
fn box_gets_a_copy_of_its_image_if_the_state_directory_supports_no_overlay() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = hanging_box(directory.path(), "state_dir");
    config["resources"] = json!({});
    config["root"] = json!({"kind": "shared"});
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", RUN_ON_OVERLAY, "sh"]).arg(directory.path());
    command.arg(shim().get_program()).arg("--prepare");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    let ready = events.iter().find(|event| event["type"] == "rootfs.ready").unwrap();
    assert_eq!((&ready["root"], &ready["upper"]), (&json!("copy"), &json!("state_dir")));
}

#[test]
fn error_about_a_missing_helper_program_names_its_package() {
    let directory = tempfile::tempdir().unwrap();
    let config = hanging_box(directory.path(), "state_dir");
    let mut child = shim().env("PATH", "/nowhere").arg("--prepare").spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    let error = events.iter().find(|event| event["type"] == "error").unwrap();
    assert_eq!(error["code"], "rootfs_failed");
    let expected = "`mkfs.ext4`, which `resources.disk_mib` needs, was not found: install the package `e2fsprogs`";
    assert_eq!(error["causes"].as_array().unwrap().last().unwrap(), expected);
}
