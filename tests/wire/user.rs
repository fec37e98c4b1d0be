//! A shim that an ordinary user runs, with and without subordinate ids.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::disk::mounted_root;
use crate::harness::{config, parse, shim};
use crate::image::image;

/// Id of the ordinary user, which no user of the host has.
const USER: u32 = 65533;

/// First subordinate user and group id of [`USER`].
const SUB_IDS: u32 = 700_000;

/// Shell script that executes the shim as [`USER`], with other tables of users and sub-ids.
///
/// It mounts the tables over those of the host, in a mount namespace of its own. $1 is the
/// directory of the tables, and the other arguments are the command line of the shim.
const EXECUTE_AS_USER: &str = r#"
mount --make-rprivate /
for table in passwd subuid subgid; do mount --bind "$1/$table" "/etc/$table"; done
shift
exec setpriv --reuid=65533 --regid=65533 --clear-groups -- "$@"
"#;

/// Whether the tables give sub-ids to the user.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum SubIds {
    Given,
    None,
}

/// Makes [`USER`] the owner of `directory` and everything in it.
pub(crate) fn give_to_user(directory: &Path) {
    let status = Command::new("chown").args(["-R", "65533:65533"]).arg(directory).status().unwrap();
    assert!(status.success());
}

/// Returns a command that runs the command line of `shim` as [`USER`], and the directory of the
/// tables, which must exist while the command runs.
pub(crate) fn command(shim: &Command, sub_ids: SubIds) -> (Command, TempDir) {
    assert!(
        Command::new("newuidmap").output().is_ok(),
        "this test needs newuidmap: install the package `uidmap`"
    );
    let tables = tempfile::tempdir().unwrap();
    let table = |name: &str, text: String| fs::write(tables.path().join(name), text).unwrap();
    let users = fs::read_to_string("/etc/passwd").unwrap();
    table("passwd", format!("{users}ordinary:x:{USER}:{USER}::/nonexistent:/bin/false\n"));
    for name in ["subuid", "subgid"] {
        // Both tables accept a name and a number, so each form is in one of them.
        let owner = if name == "subuid" { "ordinary" } else { "65533" };
        let given = sub_ids == SubIds::Given;
        table(name, if given { format!("{owner}:{SUB_IDS}:65536\n") } else { String::new() });
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", EXECUTE_AS_USER, "sh"]).arg(tables.path());
    command.arg(shim.get_program()).args(shim.get_args());
    command.envs(shim.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    (command, tables)
}

/// Starts the shim as [`USER`]. The returned directory must exist while the shim runs.
pub(crate) fn spawn(config: &Value, sub_ids: SubIds, arguments: &[&str]) -> (Child, TempDir) {
    let mut shim = shim();
    shim.args(arguments);
    let (mut command, tables) = command(&shim, sub_ids);
    let mut child = command.spawn().unwrap();
    // A shim that refuses to start may exit before it has read the whole config.
    let _ignored = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    (child, tables)
}

/// Runs the shim with `--prepare` as [`USER`].
fn prepare(config: &Value, sub_ids: SubIds) -> Output {
    let (child, _tables) = spawn(config, sub_ids, &["--prepare"]);
    child.wait_with_output().unwrap()
}

/// Returns the config of a box with a shared root.
fn shared(directory: &Path, script: &[&str]) -> Value {
    let mut config = config(directory, script);
    config["root"] = json!({"kind": "shared"});
    config
}

#[test]
fn user_without_sub_ids_can_use_any_image_with_a_block_root() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path(), &["connect", "hello", "started=7", "hang"]);
    let script = "echo 1 >own && echo 1 >far && chown 70000:43 far && chmod 4755 far";
    config["image"] = image(directory.path(), script);
    give_to_user(directory.path());
    for hits in [0, 1] {
        let output = prepare(&config, SubIds::None);
        assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
        let events = events(&output);
        let ready = events.iter().find(|event| event["type"] == "rootfs.ready").unwrap();
        assert_eq!((&ready["root"], &ready["cache_hits"]), (&json!("erofs"), &json!(hits)));
        assert!(!directory.path().join("s/golden").exists());
    }
}

fn events(output: &Output) -> Vec<Value> {
    parse(std::str::from_utf8(&output.stdout).unwrap())
}

/// Returns the metadata of the first file with this name in the layers of the cache.
fn cached(directory: &Path, name: &str) -> Option<fs::Metadata> {
    let formats = fs::read_dir(directory.join("c")).unwrap().map(|entry| entry.unwrap().path());
    let ready = formats.flat_map(|format| fs::read_dir(format.join("ready")).unwrap());
    ready
        .filter_map(|entry| entry.unwrap().path().join("tree").join(name).symlink_metadata().ok())
        .next()
}

#[test]
fn user_with_sub_ids_can_use_an_image_with_several_owners() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = shared(directory.path(), &["hang"]);
    let script = "echo lower >of-the-image && echo 1 >own && echo 1 >other && chown 42:43 other && mkfifo pipe && chown 1:1 pipe \
         && mkdir hidden && echo 1 >hidden/old && echo 1 >gone && chmod 4755 other";
    config["image"] = image(directory.path(), script);
    // A second layer hides files of the first one by a whiteout and by an opaque directory.
    let script = "mkdir -p layer/hidden && touch layer/.wh.gone layer/hidden/.wh..wh..opq layer/hidden/new \
         && tar -C layer -cf layer.tar . && umoci raw add-layer --image image:t layer.tar";
    let status = Command::new("sh").args(["-euc", script]).current_dir(directory.path()).status();
    assert!(status.unwrap().success());
    give_to_user(directory.path());
    for hits in [0, 2] {
        let output = prepare(&config, SubIds::Given);
        assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
        let events = events(&output);
        let ready = events.iter().find(|event| event["type"] == "rootfs.ready").unwrap();
        assert_eq!((&ready["root"], &ready["cache_hits"]), (&json!("overlay"), &json!(hits)));
        assert!(!directory.path().join("s/golden").exists());
    }
    // Without sub-ids the owners of the cached layers cannot be mapped.
    let output = prepare(&config, SubIds::None);
    assert_eq!(output.status.code(), Some(125), "the shim ended with {output:?}");
    let (mut child, _tables) = spawn(&config, SubIds::Given, &[]);
    let root = mounted_root(&child, directory.path());
    assert!(root.join("hidden/new").exists() && !root.join("hidden/old").exists());
    assert!(!root.join("gone").exists());
    assert_eq!(fs::metadata(root.join("other")).unwrap().uid(), SUB_IDS + 41);
    child.kill().unwrap();
    child.wait().unwrap();
    let owner = |name| {
        let found = cached(directory.path(), name).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    assert_eq!(owner("own"), (USER, USER, 0o644));
    // The first sub-id is user 1 of the box, so user 42 is the sub-id at offset 41.
    assert_eq!(owner("other"), (SUB_IDS + 41, SUB_IDS + 42, 0o4755));
    assert_eq!(owner("pipe"), (SUB_IDS, SUB_IDS, 0o644));
}

#[test]
fn user_without_sub_ids_can_share_only_an_image_with_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = shared(directory.path(), &["never", "played"]);
    config["image"] = image(directory.path(), "mkdir d && echo 1 >d/own");
    give_to_user(directory.path());
    let output = prepare(&config, SubIds::None);
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    assert_eq!(cached(directory.path(), "d/own").unwrap().uid(), USER);

    let directory = tempfile::tempdir().unwrap();
    config["image"] = image(directory.path(), "mkdir d && echo 1 >d/other && chown 42:43 d/other");
    give_to_user(directory.path());
    let output = prepare(&config, SubIds::None);
    assert_eq!(output.status.code(), Some(125), "the shim ended with {output:?}");
    let events = events(&output);
    let error = events.iter().find(|event| event["type"] == "error").unwrap();
    assert_eq!(
        error["code"], "rootfs_failed",
        "the host lacks the sub-ids, and the image is valid"
    );
    let digest = events.iter().find(|event| event["type"] == "rootfs.progress").unwrap();
    let causes = error["causes"].to_string();
    assert!(causes.contains(digest["layer"].as_str().unwrap()), "the causes are {causes}");
    assert!(causes.contains("`d/other`"), "the causes are {causes}");
    let expected = "owner 42:43 is not mapped in the user namespace of this process: its user ids are 0, \
                    its group ids 0";
    assert!(causes.contains(expected), "the causes are {causes}");
    let hint = error["hint"].as_str().unwrap();
    for name in ["/etc/subuid", "/etc/subgid", "`uidmap`"] {
        assert!(hint.contains(name), "the hint is `{hint}`");
    }
}

#[test]
fn error_about_an_owner_without_a_sub_id_names_the_mapped_ranges() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = shared(directory.path(), &["never", "played"]);
    config["image"] = image(directory.path(), "echo 1 >far && chown 70000:1 far");
    give_to_user(directory.path());
    let output = prepare(&config, SubIds::Given);
    assert_eq!(output.status.code(), Some(125), "the shim ended with {output:?}");
    let events = events(&output);
    let error = events.iter().find(|event| event["type"] == "error").unwrap();
    let causes = error["causes"].to_string();
    let expected = "owner 70000:1 is not mapped in the user namespace of this process: its user ids are \
                    0-65536, its group ids 0-65536";
    assert!(causes.contains(expected), "the causes are {causes}");
}

#[test]
fn user_can_share_a_root_with_a_disk_in_memory_but_no_image_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = shared(directory.path(), &["never", "played"]);
    config["image"] = image(directory.path(), "echo 1 >own");
    give_to_user(directory.path());
    config["resources"] = json!({"disk": "memory", "disk_mib": 16});
    let output = prepare(&config, SubIds::None);
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    // An image file needs a loop device, and an ordinary user has no access to `/dev/loop-control`.
    config["resources"] = json!({"disk_mib": 16});
    let output = prepare(&config, SubIds::None);
    assert_eq!(output.status.code(), Some(125), "the shim ended with {output:?}");
    let events = events(&output);
    let error = events.iter().find(|event| event["type"] == "error").unwrap();
    let text = error["causes"].to_string();
    assert!(text.contains("needs root") && text.contains("`memory`"), "the causes are {text}");
}
