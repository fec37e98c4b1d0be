//! What a box can write to its root, and that nothing of it is left.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{config, parse, shim};
use crate::image::image;

/// Longer than making a file system and mounting it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts a shim with a config.
pub(crate) fn spawn(config: &Value, arguments: &[&str]) -> Child {
    let mut child = shim().args(arguments).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    child
}

/// A config of a box with an image, whose guest hangs.
fn hanging(directory: &Path, disk: &str) -> Value {
    let mut config = config(directory, &["hang"]);
    config["image"] = image(directory, "echo lower >of-the-image");
    config["resources"] = json!({"disk": disk, "disk_mib": 16});
    config
}

/// Waits for what must come true.
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Path of the mounted root, as the shim sees it once it has a root of its own; the image has a file
/// `of-the-image`.
pub(crate) fn mounted_root(child: &Child, directory: &Path) -> PathBuf {
    let of_shim = PathBuf::from(format!("/proc/{}/root", child.id()));
    let root = of_shim.join(directory.strip_prefix("/").unwrap()).join("s/golden/root");
    let is_own = || !of_shim.join("etc").exists();
    wait_until("the root is mounted", || is_own() && root.join("of-the-image").exists());
    root
}

/// Writes until the disk is full, and returns how much there was room for.
fn fill(path: &Path) -> (u64, io::Error) {
    let mut file = File::create_new(path).unwrap();
    let chunk = vec![1; 1 << 20];
    let error = (0..64).find_map(|_| file.write_all(&chunk).err());
    let error = error.unwrap_or_else(|| panic!("64 MiB fit into 16"));
    (file.metadata().unwrap().len(), error)
}

fn loop_devices() -> String {
    let output = Command::new("losetup").arg("-a").output();
    let output = output.unwrap_or_else(|error| {
        panic!("this test needs losetup ({error}): install the package `mount`")
    });
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_box_cannot_write_more_than_its_disk_and_a_killed_one_leaves_nothing() {
    for disk in ["state_dir", "memory"] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = hanging(directory.path(), disk);
        let mut child = spawn(&config, &[]);
        let root = mounted_root(&child, directory.path());
        let (written, error) = fill(&root.join("big"));
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{disk}");
        assert!((8 << 20..=16 << 20).contains(&written), "{disk}: {written}");
        assert_eq!(fs::read_to_string(root.join("of-the-image")).unwrap(), "lower\n");
        let name = directory.path().to_str().unwrap();
        assert_eq!(loop_devices().contains(name), disk == "state_dir", "{}", loop_devices());
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until("the loop device is free", || !loop_devices().contains(name));
        // The guest may have been forked a moment before, with a copy of the lock.
        let lock = File::open(directory.path().join("s/golden/run.json")).unwrap();
        wait_until("the lock is free", || lock.try_lock().is_ok());
        drop(lock);
        assert!(!fs::read_to_string("/proc/mounts").unwrap().contains(name));
        let image = directory.path().join("s/golden/disk.img");
        assert_eq!(image.exists(), disk == "state_dir");
        // The next box of that name begins with nothing of it.
        config["resources"] = json!({});
        let output = spawn(&config, &["--prepare"]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(!directory.path().join("s/golden").exists());
    }
}

#[test]
fn a_box_that_ends_leaves_no_disk() {
    for disk in ["state_dir", "memory"] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = hanging(directory.path(), disk);
        let script = ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];
        config["process"]["args"] = json!(script);
        let output = spawn(&config, &[]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let name = directory.path().to_str().unwrap();
        wait_until("the loop device is free", || !loop_devices().contains(name));
        let mut left: Vec<_> = fs::read_dir(directory.path().join("s/golden"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort_unstable();
        assert_eq!(left, ["console.log", "disk", "exit.json", "root", "run.json"], "{disk}");
        assert_eq!(fs::read_dir(directory.path().join("s/golden/disk")).unwrap().count(), 0);
    }
}

#[test]
fn the_event_says_where_the_disk_is_and_an_image_file_is_sparse() {
    for (disk, upper) in [("state_dir", "image"), ("memory", "memory")] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = hanging(directory.path(), disk);
        config["resources"]["disk_mib"] = json!(65536);
        let output = spawn(&config, &["--prepare"]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let events = parse(std::str::from_utf8(&output.stdout).unwrap());
        let ready = events.iter().find(|event| event["type"] == "rootfs.ready").unwrap();
        let found = [&ready["root"], &ready["upper"], &ready["disk_mib"]];
        assert_eq!(found, [&json!("overlay"), &json!(upper), &json!(65536)]);
        assert!(!directory.path().join("s/golden").exists());
    }
    let directory = tempfile::tempdir().unwrap();
    let mut child = spawn(&hanging(directory.path(), "state_dir"), &[]);
    mounted_root(&child, directory.path());
    let image = fs::metadata(directory.path().join("s/golden/disk.img")).unwrap();
    // Blocks of 512 bytes.
    assert!(image.len() == 16 << 20 && image.blocks() * 512 < 4 << 20, "{}", image.blocks());
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Starts the shim with a state directory on an overlay, as in a container, where no upper directory can be;
/// $1 is the test's directory, the rest the shim's command line.
const ON_OVERLAY: &str = r#"
mount --make-rprivate /
mkdir "$1/lower" "$1/upper" "$1/work" "$1/s"
chmod 700 "$1/upper"
mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" overlay "$1/s"
shift
exec "$@"
"#;

#[test]
fn a_box_whose_state_directory_takes_no_overlay_gets_a_copy() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = hanging(directory.path(), "state_dir");
    config["resources"] = json!({});
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", ON_OVERLAY, "sh"]).arg(directory.path());
    command.arg(shim().get_program()).arg("--prepare");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    let ready = events.iter().find(|event| event["type"] == "rootfs.ready").unwrap();
    assert_eq!((&ready["root"], &ready["upper"]), (&json!("copy"), &json!("state_dir")));
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let directory = tempfile::tempdir().unwrap();
    let config = hanging(directory.path(), "state_dir");
    let mut child = shim().env("PATH", "/nowhere").arg("--prepare").spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    let error = events.iter().find(|event| event["type"] == "error").unwrap();
    assert_eq!(error["code"], "rootfs_failed");
    let expected = "`mkfs.ext4`, which `resources.disk_mib` needs, was not found: install the package `e2fsprogs`";
    assert_eq!(error["causes"].as_array().unwrap().last().unwrap(), expected);
}
