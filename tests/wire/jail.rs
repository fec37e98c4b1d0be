//! What is left to a confined shim: its root, its fds, its environment, its namespaces; and a host that
//! cannot give it all.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Playing, shim, shim_by, start_by};

/// A shim with a secret in its environment and a file left open, whose VM runs.
fn running(layer: Option<&str>) -> Playing {
    let mut shell = Command::new("bash");
    // The number is one that no shim comes to by itself.
    shell.args(["-c", r#"exec 99</etc/passwd; exec "$@""#, "bash"]);
    let mut command = shim_by(shell);
    command.env("SECRET", "s3cret-of-the-supervisor");
    layer.map(|layer| command.env("A3S_BOX_FAKE_LAYER", layer));
    let script = ["connect", "hello", "started=7", "hang"];
    let mut playing = start_by(command, &script, |config| {
        if layer.is_some() {
            config["confinement"] = json!({"level": "best_effort"});
        }
    });
    let mut events = BufReader::new(playing.child.stdout.take().unwrap()).lines();
    assert!(events.any(|event| event.unwrap().contains("guest.started")));
    playing
}

fn proc(playing: &Playing, name: &str) -> PathBuf {
    format!("/proc/{}/{name}", playing.child.id()).into()
}

fn kill(mut playing: Playing) {
    playing.child.kill().unwrap();
    playing.child.wait().unwrap();
}

/// All that is in a directory but not below another mount.
fn tree(root: &Path, directory: &Path, found: &mut BTreeSet<String>) {
    let device = root.metadata().unwrap().dev();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        let name = format!("/{}", entry.strip_prefix(root).unwrap().display());
        let metadata = entry.symlink_metadata().unwrap();
        found.insert(name);
        if metadata.is_dir() && metadata.dev() == device {
            tree(root, &entry, found);
        }
    }
}

#[test]
fn root_of_a_confined_shim_holds_its_box_and_nothing_else() {
    let playing = running(None);
    let mut found = BTreeSet::new();
    let root = proc(&playing, "root");
    tree(&root, &root.join(""), &mut found);
    let own = playing.state("").canonicalize().unwrap();
    let mut expected: BTreeSet<String> =
        own.ancestors().map(|path| path.display().to_string()).filter(|path| path != "/").collect();
    expected.extend(["/proc".to_owned(), "/proc/self".to_owned()]);
    if Path::new("/dev/kvm").exists() {
        expected.extend(["/dev".to_owned(), "/dev/kvm".to_owned()]);
    }
    assert_eq!(found, expected);
    // What is a mount of its own, and how.
    let mounts = fs::read_to_string(proc(&playing, "mountinfo")).unwrap();
    let options = |target: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(target));
        line.unwrap_or_else(|| panic!("{target}: {mounts}")).split(' ').nth(5).unwrap().to_owned()
    };
    assert!(options("/").starts_with("ro,nosuid,nodev,noexec"), "{mounts}");
    for place in [own.clone(), own.join("root")] {
        let options = options(place.to_str().unwrap());
        let has = |option: &str| options.split(',').any(|it| it == option);
        assert!(has("nosuid") && has("nodev") && has("nosymfollow"), "{options}");
    }
    kill(playing);
}

#[test]
fn nothing_of_the_supervisor_is_left_to_a_guest() {
    for layer in [None, Some("process"), Some("no layer")] {
        let playing = running(layer);
        let has_secret = fs::read(proc(&playing, "environ"))
            .unwrap()
            .windows(b"s3cret-of-the-supervisor".len())
            .any(|bytes| bytes == b"s3cret-of-the-supervisor");
        let has_file = fs::read_link(proc(&playing, "fd/99")).is_ok();
        let limits = fs::read_to_string(proc(&playing, "limits")).unwrap();
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
        let may_dump = core.unwrap().split_whitespace().next() != Some("0");
        let status = fs::read_to_string(proc(&playing, "status")).unwrap();
        let may_gain = status.contains("NoNewPrivs:\t0");
        let expected = layer == Some("no layer");
        assert_eq!([has_secret, has_file], [expected; 2], "{layer:?}");
        // The machine that the test runs on may have its own limit.
        assert!(expected || !may_dump, "{limits}");
        assert_eq!(may_gain, expected, "{status}");
        kill(playing);
    }
}

#[test]
fn namespaces_of_a_confined_shim_are_its_own() {
    let link =
        |directory: &Path, name: &str| fs::read_link(directory.join("ns").join(name)).unwrap();
    let host = Path::new("/proc/self");
    for (layer, name) in
        [("ipc_namespace", "ipc"), ("uts_namespace", "uts"), ("net_namespace", "net")]
    {
        for (only, is_own) in [(None, true), (Some(layer), true), (Some("no layer"), false)] {
            let playing = running(only);
            let own = link(&proc(&playing, ""), name);
            assert_eq!(own != link(host, name), is_own, "{layer} {only:?}");
            assert_ne!(link(&proc(&playing, ""), "mnt"), link(host, "mnt"));
            kill(playing);
        }
    }
}

/// The shim as root of a user namespace that may have no network of its own.
fn without_networks() -> Command {
    const LIMIT: &str = r#"echo 0 >/proc/sys/user/max_net_namespaces; exec "$@""#;
    let mut namespace = Command::new("unshare");
    namespace.args(["--user", "--map-root-user", "sh", "-euc", LIMIT, "sh"]);
    shim_by(namespace)
}

const SCRIPT: [&str; 7] =
    ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];

#[test]
fn host_that_lacks_a_layer_is_refused_or_told() {
    let start = |level: &str| {
        start_by(without_networks(), &SCRIPT, |config| {
            config["confinement"] = json!({"level": level});
        })
        .end()
    };
    let required = start("required");
    assert_eq!(required.ending(), (Some(125), "failed", Some("confinement")));
    let error = required.events.iter().find(|event| event["type"] == "error").unwrap();
    let cause = "not all of the confinement can be had: net_namespace (ENOSPC: ";
    assert!(error["causes"][0].as_str().unwrap().starts_with(cause), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("--doctor"), "{error}");
    let best = start("best_effort");
    assert_eq!(best.ending(), (Some(0), "exited", None), "{}{}", best.stdout, best.stderr);
    let confined = best.events.iter().find(|event| event["type"] == "shim.confined").unwrap();
    let status = |layer: &str| {
        let layers = confined["layers"].as_array().unwrap();
        layers.iter().find(|it| it["layer"] == layer).map(|it| it["status"].clone())
    };
    assert_eq!(status("net_namespace"), Some(Value::from("missing")), "{confined}");
    assert_eq!(status("seccomp"), Some(Value::from("applied")), "{confined}");
    // Refused or not, the box's directory is in order.
    for run in [&required, &best] {
        let own = run.directory.path().join("s/golden");
        assert!(own.join("exit.json").exists(), "{}", run.stdout);
        assert!(!own.join("upper").exists() && !own.join("work").exists(), "{}", run.stdout);
    }
}

#[test]
fn cgroup_that_is_none_is_refused_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let cgroup = directory.path().join("demo");
    let run = start_by(shim(), &SCRIPT, |config| {
        config["resources"] = json!({"cgroup": cgroup});
    })
    .end();
    assert_eq!(run.ending(), (Some(125), "failed", Some("process_setup")));
    let error = run.events.iter().find(|event| event["type"] == "error").unwrap();
    let cause = format!("`{}` is not in a file system of cgroups, version 2", cgroup.display());
    assert_eq!(error["causes"], json!([cause]), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("delegated"), "{error}");
    assert!(!cgroup.exists() && !run.directory.path().join("s").exists());
}

#[test]
fn filter_that_only_logs_is_told_and_refuses_nothing() {
    let run = |seccomp: &str| {
        let mut shim = shim();
        shim.env("A3S_BOX_FAKE_PROBE", "keyctl");
        start_by(shim, &["hang"], |config| {
            config["confinement"] = json!({"level": "best_effort", "seccomp": seccomp});
        })
        .end()
    };
    let logged = run("log");
    assert!(logged.stderr.contains("probe "), "the attempt came back: {}", logged.stderr);
    let confined = logged.events.iter().find(|event| event["type"] == "shim.confined").unwrap();
    let seccomp = confined["layers"].as_array().unwrap().last().unwrap();
    let expected =
        json!({"layer": "seccomp", "status": "partial", "detail": "calls are logged, not refused"});
    assert_eq!(*seccomp, expected);
    assert!(!run("enforce").stderr.contains("probe "), "the attempt ended the shim");
}

#[test]
fn state_directory_behind_a_link_is_where_its_path_says() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("real")).unwrap();
    symlink("real", directory.path().join("link")).unwrap();
    let run = start_by(shim(), &SCRIPT, |config| {
        config["paths"]["state_dir"] = json!(directory.path().join("link/../link/s"));
    })
    .end();
    assert_eq!(run.ending(), (Some(0), "exited", None), "{}{}", run.stdout, run.stderr);
    assert!(directory.path().join("real/s/golden/exit.json").exists());
}
