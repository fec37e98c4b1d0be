//! The confinement of unpackers, and their deaths.
//!
//! The fake VM acts in the place of an unpacker that a layer has taken over
//! (`krun/src/fake/acts.rs`), after it has confined itself. Each shim makes one act, because an act
//! that seccomp stops ends the process.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::harness::{config, parse, shim};
use crate::image::image;

/// The task of an unpacker: to make a tree, or a layer file. A start with this kind of root has it.
const TASKS: [(&str, &str); 2] = [("tree", "shared"), ("file", "block")];

/// The layer of the confinement that stops an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoppedBy {
    /// The root of an unpacker of a tree, in which the path does not exist.
    Root,
    /// Landlock, in a place that the root has.
    Landlock,
    /// seccomp, which ends the process.
    Seccomp,
}

use StoppedBy::{Landlock, Root, Seccomp};

/// Whether an act succeeds without confinement. Some would harm the test, and have arguments that
/// make them fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alone {
    Succeeds,
    Fails,
    /// It is not tried.
    Untried,
}

use Alone::{Fails, Succeeds, Untried};

/// The acts, each with its argument and what stops it in an unpacker of a tree. seccomp stops all of
/// them in one of a layer file. `@` stands for a directory that has `file` and `directory/`.
const ACTS: [(&str, &str, StoppedBy, Alone); 60] = [
    ("read", "@/file", Root, Succeeds),
    ("read", "/etc/passwd", Root, Succeeds),
    ("write", "@/file", Root, Succeeds),
    ("create", "@/new", Root, Succeeds),
    ("truncate", "@/file", Root, Succeeds),
    ("list", "@/directory", Root, Succeeds),
    ("path-fd", "@/file", Root, Succeeds),
    ("remove", "@/file", Root, Succeeds),
    ("remove-directory", "@/directory", Root, Succeeds),
    ("make-directory", "@/new", Root, Succeeds),
    ("chmod", "@/file", Root, Succeeds),
    ("chown", "@/file", Root, Succeeds),
    ("times", "@/file", Root, Succeeds),
    ("attribute", "@/file", Root, Succeeds),
    ("rename", "@/file:@/new", Seccomp, Succeeds),
    ("link", "@/file:@/new", Root, Succeeds),
    ("dotdot", "@/file", Root, Succeeds),
    ("fds-dotdot", "@/file", Root, Untried),
    ("proc-root", "@/file", Root, Untried),
    ("own-root", "@/file", Root, Succeeds),
    ("proc-memory", "", Root, Untried),
    ("block-device", "@/new", Seccomp, Succeeds),
    ("character-device", "@/new", Seccomp, Succeeds),
    ("socket-file", "@/new", Landlock, Succeeds),
    ("list", "/", Landlock, Succeeds),
    ("list", "/proc", Landlock, Succeeds),
    ("udp-socket", "", Seccomp, Succeeds),
    ("unix-socket", "", Seccomp, Succeeds),
    ("netlink-socket", "", Seccomp, Succeeds),
    ("signal", "", Seccomp, Succeeds),
    ("signal-thread", "", Seccomp, Succeeds),
    ("signal-queue", "", Seccomp, Succeeds),
    ("ptrace", "", Seccomp, Untried),
    ("memory", "", Seccomp, Succeeds),
    ("limits", "", Seccomp, Succeeds),
    ("priority", "", Seccomp, Succeeds),
    ("pidfd", "", Seccomp, Succeeds),
    ("execve", "", Seccomp, Untried),
    ("fork", "", Seccomp, Untried),
    ("new-namespace", "", Seccomp, Succeeds),
    ("mount", "", Seccomp, Fails),
    ("umount", "", Seccomp, Untried),
    ("fsopen", "", Seccomp, Fails),
    ("open-tree", "", Seccomp, Fails),
    ("chroot", "", Seccomp, Succeeds),
    ("setns", "", Seccomp, Fails),
    ("handle", "", Seccomp, Fails),
    ("setuid", "", Seccomp, Succeeds),
    ("io-uring", "", Seccomp, Fails),
    ("bpf", "", Seccomp, Fails),
    ("userfaultfd", "", Seccomp, Untried),
    ("keyctl", "", Seccomp, Untried),
    ("perf", "", Seccomp, Fails),
    ("ioctl", "", Seccomp, Fails),
    ("owner-of-fd", "", Seccomp, Succeeds),
    ("unlock", "", Seccomp, Succeeds),
    ("executable-memory", "", Seccomp, Succeeds),
    ("module", "", Seccomp, Fails),
    ("clock", "", Seccomp, Fails),
    ("follow-link", "@/new:/etc/passwd", Root, Succeeds),
];

/// An image, and the directory of its boxes.
struct Testbed {
    directory: tempfile::TempDir,
    image: Value,
}

impl Testbed {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = image(directory.path(), "echo lower >of-the-image");
        Self { directory, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `--prepare` with a cache. The unpacker acts when it is confined (`late`), or before.
    fn prepare(&self, cache: &str, root_kind: &str, act: &str) -> Output {
        let mut config = config(self.directory.path(), &["hang"]);
        config["image"] = self.image.clone();
        config["root"] = json!({"kind": root_kind});
        config["paths"]["cache_dir"] = json!(self.path(cache));
        let path = self.path("config.json");
        fs::write(&path, config.to_string()).unwrap();
        let mut command = shim();
        command.arg("--prepare").arg("--config").arg(path).env("A3S_BOX_FAKE_UNPACKER", act);
        command.output().unwrap()
    }

    /// Makes new files for an act, and returns the act with their paths.
    fn with_victims(&self, argument: &str) -> String {
        let victims = self.path("victims");
        let _none = fs::remove_dir_all(&victims);
        fs::create_dir_all(victims.join("directory")).unwrap();
        fs::write(victims.join("file"), "as it was").unwrap();
        argument.replace('@', victims.to_str().unwrap())
    }

    /// Returns whether the files for an act are as they were.
    fn victims_are_as_they_were(&self) -> bool {
        let victims = self.path("victims");
        let names = fs::read_dir(&victims).unwrap().count();
        let mode = fs::metadata(victims.join("file")).map(|found| found.permissions().mode());
        let text = fs::read_to_string(victims.join("file")).unwrap_or_default();
        names == 2 && text == "as it was" && mode.is_ok_and(|mode| mode & 0o4000 == 0)
    }
}

/// Returns what the log says about an act. An act that ends its process has no line.
fn outcome(output: &Output, act: &str) -> Option<String> {
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = format!("act {act}: ");
    let (_, rest) = log.split_once(&text)?;
    Some(rest.split(['\n', '"']).next().unwrap().trim().to_owned())
}

/// Returns the error event of a run.
fn error(output: &Output) -> Value {
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    events.into_iter().find(|event| event["type"] == "error").unwrap_or_default()
}

#[test]
fn unpacker_that_a_layer_has_taken_over_reaches_nothing_of_the_host() {
    let bed = Testbed::new();
    for (i, (act, argument, stopped_by, _)) in ACTS.into_iter().enumerate() {
        for (task, kind) in TASKS {
            let stopped_by = if task == "file" { Seccomp } else { stopped_by };
            // In the root of an unpacker, this is the only place for a new file.
            let argument = match act {
                "block-device" | "character-device" | "socket-file" => "/layer/new",
                "follow-link" => "/layer/new:/etc/passwd",
                _ => argument,
            };
            let argument = bed.with_victims(argument);
            let act_now = format!("late {task} {act} {argument}");
            let output = bed.prepare(&format!("c{i}-{task}"), kind, &act_now);
            let found = outcome(&output, act);
            println!("{act} of a {task}: stopped by {stopped_by:?}");
            match stopped_by {
                // ENOENT: the root has no such path.
                Root => assert_eq!(found.as_deref(), Some("errno:2"), "{act_now}: {output:?}"),
                // EACCES.
                Landlock => {
                    assert_eq!(found.as_deref(), Some("errno:13"), "{act_now}: {output:?}");
                }
                Seccomp => {
                    assert_eq!(found, None, "{act_now}");
                    let error = error(&output);
                    assert_eq!(error["code"], "layer_invalid", "{act_now}: {output:?}");
                    let cause = error["causes"][0].as_str().unwrap();
                    assert!(cause.contains("system call"), "{act_now}: {error}");
                }
            }
            assert!(bed.victims_are_as_they_were(), "{act_now}");
        }
    }
}

/// Without this, an act that is wrong in itself would count as stopped.
#[test]
fn acts_succeed_without_confinement() {
    let bed = Testbed::new();
    for (i, (act, argument, _, alone)) in ACTS.into_iter().enumerate() {
        if alone == Untried {
            continue;
        }
        let argument = bed.with_victims(argument);
        let act_now = format!("early tree {act} {argument}");
        let output = bed.prepare(&format!("c{i}"), "shared", &act_now);
        let found = outcome(&output, act).unwrap_or_else(|| panic!("{act_now}: {output:?}"));
        assert_eq!(found == "reached", alone == Succeeds, "{act_now}: {found}");
    }
}

#[test]
fn unpacker_that_a_layer_has_taken_over_reaches_nothing_of_other_images_and_boxes() {
    let mut bed = Testbed::new();
    let kept = bed.image.clone();
    for (_, kind) in TASKS {
        let output = bed.prepare("c", kind, "");
        assert!(output.status.success(), "{output:?}");
    }
    // Another image, so that there is work for an unpacker.
    let other = bed.path("other");
    fs::create_dir(&other).unwrap();
    bed.image = image(&other, "echo other >of-another-image");
    let cache = bed.path("c/layers-v5");
    let mut targets: Vec<PathBuf> = vec![bed.path("s"), bed.path("s/golden")];
    for directory in ["ready", "stacks", "locks"] {
        targets.push(cache.join(directory));
        let below = fs::read_dir(cache.join(directory)).unwrap();
        targets.extend(below.map(|entry| entry.unwrap().path()));
    }
    let content = ["tree/of-the-image", "layer", "root.erofs", "boot", "synced"];
    let below: Vec<PathBuf> =
        targets.iter().flat_map(|target| content.map(|name| target.join(name))).collect();
    targets.extend(below.into_iter().filter(|path| path.exists()));
    targets.push(Path::new(kept["layout"].as_str().unwrap()).join("index.json"));
    let shown = |path: &PathBuf| path.strip_prefix(bed.directory.path()).unwrap().to_owned();
    assert!(targets.len() > 12, "{targets:?}");
    for target in &targets {
        for act in ["path-fd", "chmod", "remove", "make-directory"] {
            // A directory of this name, or one in a directory.
            let argument = match act {
                "make-directory" => target.join("new").display().to_string(),
                _ => target.display().to_string(),
            };
            let output = bed.prepare("c", "shared", &format!("late tree {act} {argument}"));
            let found = outcome(&output, act);
            assert_eq!(found.as_deref(), Some("errno:2"), "{act} {:?}: {output:?}", shown(target));
            assert!(output.status.success(), "{output:?}");
            // The next start must have work again.
            let made =
                fs::read_dir(cache.join("ready")).unwrap().map(|entry| entry.unwrap().path());
            for path in made.filter(|path| !targets.contains(path)) {
                fs::remove_dir_all(path).unwrap();
            }
        }
    }
    bed.image = kept;
    for (_, kind) in TASKS {
        let output = bed.prepare("c", kind, "");
        let events = parse(std::str::from_utf8(&output.stdout).unwrap());
        let ready = events.iter().find(|event| event["type"] == "rootfs.ready").unwrap();
        assert_eq!(ready["cache_hits"], ready["layers"], "{ready}");
    }
}

#[test]
fn unpacker_that_dies_is_an_error_and_the_next_start_works() {
    let bed = Testbed::new();
    for (task, kind) in TASKS {
        let output = bed.prepare(task, kind, &format!("late {task} abort"));
        let error = error(&output);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert_eq!(error["code"], "rootfs_failed", "{error}");
        let cause = "the unpacker has ended without a result (signal: 6 (SIGABRT))";
        assert_eq!(error["causes"], json!([cause]), "{error}");
        let staging = fs::read_dir(bed.path(task).join("layers-v5/staging")).unwrap();
        assert_eq!(staging.count(), 0);
        let output = bed.prepare(task, kind, "");
        assert!(output.status.success(), "{output:?}");
    }
}
