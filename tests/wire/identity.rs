//! The directories of images and shares on the host.
//!
//! Other users must not reach the set-user-id files of an image. A share must stay the directory
//! that the shim validated, even if another directory gets its path.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::disk::{mounted_root, spawn, wait_until};
use crate::harness::{config, parse, shim};
use crate::image::image;

/// Runs a program as an ordinary user.
///
/// A shell executes the program, because setpriv(1) itself still has root's capabilities when it
/// executes its command.
fn run_as_user(program: &str, arguments: &[&str]) -> Output {
    let user = ["--reuid=65533", "--regid=65533", "--clear-groups", "--"];
    let shell = ["sh", "-c", r#"exec "$0" "$@""#, program];
    Command::new("setpriv").args(user).args(shell).args(arguments).output().unwrap()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Returns the code and the causes of the error.
fn error_of(output: &Output) -> (String, String) {
    assert_eq!(output.status.code(), Some(125), "the shim ended with {output:?}");
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    let error = events.iter().find(|event| event["type"] == "error").unwrap();
    (error["code"].as_str().unwrap().to_owned(), error["causes"].to_string())
}

/// Runs the shim with `--prepare`.
fn prepare(config: &Value) -> Output {
    spawn(config, &["--prepare"]).wait_with_output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn other_users_cannot_reach_setuid_files_of_an_image_or_a_box() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path(), &["hang"]);
    config["image"] = image(
        directory.path(),
        "echo lower >of-the-image && mkdir -m 777 open && cp /bin/cat open/suid && chmod 4755 open/suid",
    );
    // The shim's directories must protect the files, so the directory of the test must not.
    chmod(directory.path(), 0o755);
    let readable = directory.path().join("readable");
    fs::write(&readable, "content").unwrap();
    chmod(&readable, 0o644);
    // The user can read a file that nothing protects.
    assert!(run_as_user("cat", &[text(&readable)]).status.success());

    // The files of a block root are never files of the host.
    config["root"] = json!({"kind": "shared"});
    let mut child = spawn(&config, &[]);
    let root = mounted_root(&child, directory.path());
    fs::copy("/bin/cat", root.join("open/new")).unwrap();
    chmod(&root.join("open/new"), 0o4755);
    let ready = fs::read_dir(directory.path().join("c/layers-v5/ready")).unwrap();
    let mut files: Vec<PathBuf> =
        ready.map(|entry| entry.unwrap().path().join("tree/open/suid")).collect();
    files.push(directory.path().join("s/golden/upper/open/new"));
    files.extend(["open/suid", "open/new"].map(|name| root.join(name)));
    assert_eq!(files.len(), 4);
    for file in &files {
        let found = fs::metadata(file).unwrap();
        assert_eq!(
            (found.uid(), found.mode() & 0o7777),
            (0, 0o4755),
            "owner or mode of {} is wrong",
            file.display()
        );
        // The user can neither read the file nor execute it, which would give it root's rights.
        for (program, arguments) in [("cat", vec![text(file)]), (text(file), vec!["/dev/null"])] {
            let output = run_as_user(program, &arguments);
            let stderr = String::from_utf8_lossy(&output.stderr);
            let denied = !output.status.success() && stderr.contains("Permission denied");
            let status = output.status;
            assert!(denied, "{} can be reached: {status} {stderr}", file.display());
        }
    }
    // A search also shows a file that this test does not list.
    let found = run_as_user("find", &[text(directory.path()), "-perm", "-4000"]);
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn state_or_cache_directory_that_others_can_reach_or_replace_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path(), &["never", "played"]);
    config["image"] = image(directory.path(), "echo 1 >file");
    assert_eq!(prepare(&config).status.code(), Some(0));
    for (store, code) in
        [("c", "rootfs_failed"), ("c/layers-v5", "rootfs_failed"), ("s", "state_dir")]
    {
        let store = directory.path().join(store);
        chmod(&store, 0o755);
        let (found, causes) = error_of(&prepare(&config));
        assert_eq!(found, code, "the causes are {causes}");
        let expected = format!(
            "`{}`: found a directory of user 0 with mode 0755, expected a directory of user 0 with mode 0700",
            store.display()
        );
        assert!(causes.contains(&expected), "the causes are {causes}");
        chmod(&store, 0o700);
    }
    // Whoever can write to the parent can rename the directory, unless the parent is sticky.
    let parent = directory.path().join("parent");
    fs::create_dir(&parent).unwrap();
    for name in ["state_dir", "cache_dir"] {
        let mut config = config.clone();
        config["paths"][name] = json!(parent.join(name));
        chmod(&parent, 0o777);
        let (code, causes) = error_of(&prepare(&config));
        assert_eq!(code, "config_invalid", "the causes are {causes}");
        assert!(
            causes.contains("a parent directory of user 0 with mode 0777"),
            "the causes are {causes}"
        );
        assert!(!parent.join(name).exists());
        chmod(&parent, 0o1777);
        assert_eq!(prepare(&config).status.code(), Some(0));
    }
}

/// Shell script that mounts the directory $1 on $2 and executes the other arguments.
const BIND_MOUNT: &str = r#"
mount --make-rprivate /
mount --bind "$1" "$2"
shift 2
exec "$@"
"#;

#[test]
fn share_of_a_shim_directory_is_refused_even_under_the_path_of_a_bind_mount() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    for name in ["stores/s/golden", "stores/c/layers", "name"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let check = |bound: &str, source: &str| {
        let mut config = config(&root.join("stores"), &["never", "played"]);
        let mount = json!({"type": "virtiofs", "source": root.join(source), "target": "/a"});
        config["mounts"] = json!([mount]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-euc", BIND_MOUNT, "sh"]);
        command.args([root.join(bound), root.join("name")]);
        command.arg(shim().get_program()).arg("--check");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    for (bound, source, relation) in [
        ("stores", "name", "holds the state directory"),
        ("stores/s", "name", "is the state directory"),
        ("stores/s", "name/golden", "is in the state directory"),
        ("stores/c", "name/layers", "is in the layer cache"),
        ("stores", "name/c/layers", "is in the layer cache"),
    ] {
        let (code, causes) = error_of(&check(bound, source));
        assert_eq!(code, "config_invalid", "the causes are {causes}");
        let expected = format!("found `{}`, which {relation}", root.join(source).display());
        assert!(causes.contains(&expected), "{bound} on name, shared as {source}: {causes}");
    }
    assert_eq!(check("stores/c/layers", "stores").status.code(), Some(125));
    assert_eq!(check("name", "name").status.code(), Some(0));
}

#[test]
fn share_that_is_replaced_after_validation_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    let mut config = config(&root, &["never", "played"]);
    fs::create_dir(root.join("shared")).unwrap();
    fs::create_dir(root.join("secrets")).unwrap();
    config["mounts"] = json!([{"type": "virtiofs", "source": root.join("shared"), "target": "/a"}]);
    // The shim reads the guest program after the validation. Because this one is a FIFO, the shim
    // waits there until the test has replaced the share.
    let guest = root.join("guest");
    assert!(Command::new("mkfifo").arg(&guest).status().unwrap().success());
    config["paths"]["guest"] = json!(guest);
    let child = spawn(&config, &[]);
    let mut program = OpenOptions::new().write(true).open(&guest).unwrap();
    fs::rename(root.join("shared"), root.join("moved")).unwrap();
    symlink(root.join("secrets"), root.join("shared")).unwrap();
    program.write_all(b"program").unwrap();
    drop(program);
    let (code, causes) = error_of(&child.wait_with_output().unwrap());
    assert_eq!(code, "config_invalid", "the causes are {causes}");
    let expected =
        format!("`{}` was replaced while the box was prepared", text(&root.join("shared")));
    assert!(causes.contains(&expected), "the causes are {causes}");
}

#[test]
fn share_keeps_its_directory_open_while_the_vm_runs() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    let mut config = config(&root, &["hang"]);
    fs::create_dir(root.join("shared")).unwrap();
    symlink(root.join("shared"), root.join("link")).unwrap();
    config["mounts"] = json!([{"type": "virtiofs", "source": root.join("link"), "target": "/a"}]);
    let mut child = spawn(&config, &[]);
    let fds = format!("/proc/{}/fd", child.id());
    // The directory is the root of a detached mount, so the link of the fd has no usable path.
    let inode = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let shared = inode(&root.join("shared"));
    let is_held = || {
        let fds = fs::read_dir(&fds).unwrap();
        fds.map(|fd| inode(&fd.unwrap().path())).any(|held| held == shared)
    };
    wait_until("the shim holds the directory", is_held);
    let events = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(events.into_iter().any(|event| event.contains("vm.starting")), "the VM did not start");
    fs::rename(root.join("shared"), root.join("moved")).unwrap();
    symlink("/", root.join("shared")).unwrap();
    assert!(is_held(), "the shim lost the directory when its path changed");
    child.kill().unwrap();
    child.wait().unwrap();
}
