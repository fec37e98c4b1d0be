//! The state of a confined shim: its root, fds, environment and namespaces.
//!
//! Further tests run a shim on a host that lacks a layer, and with a filter that only logs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{RunningShim, shim, start_with, wrapped_shim};
use crate::image::image;

/// Starts a shim that inherits a secret in its environment and an open file, and waits until its
/// guest has started.
///
/// `layer` applies only this layer of the confinement. A name without a layer applies none.
fn start_with_secrets(layer: Option<&str>) -> RunningShim {
    // fd 99 is far above the fds that the shim opens itself. A POSIX shell need not accept a
    // redirection of an fd with two digits, but bash does.
    let mut shell = Command::new("bash");
    shell.args(["-c", r#"exec 99</etc/passwd; exec "$@""#, "bash"]);
    let mut command = wrapped_shim(shell);
    command.env("SECRET", "s3cret-of-the-supervisor");
    layer.map(|layer| command.env("A3S_BOX_FAKE_LAYER", layer));
    let script = ["connect", "hello", "started=7", "hang"];
    let mut running = start_with(command, &script, |config| {
        // A shared root has a mount in the box directory, in addition to everything else.
        config["root"] = json!({"kind": "shared"});
        if layer.is_some() {
            config["confinement"] = json!({"level": "best_effort"});
        }
    });
    running.wait_for("guest.started");
    running
}

/// Returns the path of a file in the shim's directory of /proc.
fn proc(running: &RunningShim, name: &str) -> PathBuf {
    format!("/proc/{}/{name}", running.child.id()).into()
}

fn kill(mut running: RunningShim) {
    running.child.kill().unwrap();
    running.child.wait().unwrap();
}

/// Adds the paths of everything below `directory` to `found`, relative to `root`.
///
/// It lists mount points, but does not enter another file system, such as /proc.
fn list_tree(root: &Path, directory: &Path, found: &mut BTreeSet<String>) {
    let device = root.metadata().unwrap().dev();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        let name = format!("/{}", entry.strip_prefix(root).unwrap().display());
        let metadata = entry.symlink_metadata().unwrap();
        found.insert(name);
        if metadata.is_dir() && metadata.dev() == device {
            list_tree(root, &entry, found);
        }
    }
}

#[test]
fn root_of_a_confined_shim_has_only_the_box_directory_and_kernel_files() {
    let running = start_with_secrets(None);
    let mut found = BTreeSet::new();
    let root = proc(&running, "root");
    list_tree(&root, &root.join(""), &mut found);
    let own = running.box_path("").canonicalize().unwrap();
    let mut expected: BTreeSet<String> =
        own.ancestors().map(|path| path.display().to_string()).filter(|path| path != "/").collect();
    expected.extend(["/proc".to_owned(), "/proc/self".to_owned()]);
    // The host of the tests may have no KVM, since the fake VM does not need it.
    if Path::new("/dev/kvm").exists() {
        expected.extend(["/dev".to_owned(), "/dev/kvm".to_owned()]);
    }
    assert_eq!(found, expected);
    // Fields 4 and 5 of a line, counted from 0, are the mount point and its options (proc(5)).
    let mounts = fs::read_to_string(proc(&running, "mountinfo")).unwrap();
    let options = |target: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(target));
        line.unwrap_or_else(|| panic!("{target} is not a mount: {mounts}"))
            .split(' ')
            .nth(5)
            .unwrap()
            .to_owned()
    };
    assert!(options("/").starts_with("ro,nosuid,noexec"), "the options of / are wrong: {mounts}");
    for place in [own.clone(), own.join("root")] {
        let options = options(place.to_str().unwrap());
        let has = |option: &str| options.split(',').any(|it| it == option);
        assert!(
            has("nosuid") && has("nodev") && has("nosymfollow"),
            "the options of {} are {options}",
            place.display()
        );
    }
    kill(running);
}

#[test]
fn confined_shim_drops_the_environment_and_files_of_its_supervisor() {
    for layer in [None, Some("process"), Some("no layer")] {
        let running = start_with_secrets(layer);
        let has_secret = fs::read(proc(&running, "environ"))
            .unwrap()
            .windows(b"s3cret-of-the-supervisor".len())
            .any(|bytes| bytes == b"s3cret-of-the-supervisor");
        let has_file = fs::read_link(proc(&running, "fd/99")).is_ok();
        let limits = fs::read_to_string(proc(&running, "limits")).unwrap();
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
        let may_dump = core.unwrap().split_whitespace().next() != Some("0");
        let status = fs::read_to_string(proc(&running, "status")).unwrap();
        let may_gain = status.contains("NoNewPrivs:\t0");
        // The test must be able to find the secret and the file, so one shim has no layer at all.
        let is_unconfined = layer == Some("no layer");
        assert_eq!([has_secret, has_file], [is_unconfined; 2], "the applied layer is {layer:?}");
        // An unconfined shim keeps the limit of the test's host, which may also be 0.
        assert!(is_unconfined || !may_dump, "the shim may dump core: {limits}");
        assert_eq!(may_gain, is_unconfined, "NoNewPrivs is wrong: {status}");
        kill(running);
    }
}

#[test]
fn confined_shim_has_its_locks_open_for_reading_only() {
    let directory = tempfile::tempdir().unwrap();
    let image = image(directory.path(), "echo 1 >file");
    for (root_kind, expected) in
        [("block", &["locks", ".ids", "golden"][..]), ("shared", &["locks", "golden"][..])]
    {
        let script = ["connect", "hello", "started=7", "hang"];
        let mut running = start_with(shim(), &script, |config| {
            config["image"] = image.clone();
            config["root"] = json!({"kind": root_kind});
        });
        running.wait_for("guest.started");
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(proc(&running, "fd")).unwrap().map(Result::unwrap) {
            // The shim may have closed the file in the meantime.
            let Ok(file) = fs::read_link(entry.path()) else { continue };
            let place = file.parent().and_then(Path::file_name).unwrap_or_default();
            if !expected.iter().any(|known| place == *known) || !is_lock(&file) {
                continue;
            }
            let number = entry.file_name();
            let info = fs::read_to_string(proc(&running, "fdinfo").join(number)).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            // `O_RDONLY` is 0, and `O_ACCMODE` are the two lowest bits.
            let mode = u32::from_str_radix(flags, 8).unwrap() & 0o3;
            assert_eq!(mode, 0, "{} is open for writing: {info}", file.display());
            found.insert(place.to_str().unwrap().to_owned());
        }
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(found, expected, "directories of the locks, {root_kind} root");
        kill(running);
    }
}

/// Returns whether the shim locks a file: it has other files of the box directory open, too.
fn is_lock(file: &Path) -> bool {
    file.ends_with("run.json") || !file.parent().is_some_and(|parent| parent.ends_with("golden"))
}

#[test]
fn confined_shim_has_namespaces_of_its_own() {
    let link =
        |directory: &Path, name: &str| fs::read_link(directory.join("ns").join(name)).unwrap();
    let host = Path::new("/proc/self");
    for (layer, name) in
        [("ipc_namespace", "ipc"), ("uts_namespace", "uts"), ("net_namespace", "net")]
    {
        for (only, is_own) in [(None, true), (Some(layer), true), (Some("no layer"), false)] {
            let running = start_with_secrets(only);
            let own = link(&proc(&running, ""), name);
            assert_eq!(own != link(host, name), is_own, "{layer} with the applied layer {only:?}");
            // The shim makes the mounts of the box in a namespace of its own, even without any
            // layer.
            assert_ne!(link(&proc(&running, ""), "mnt"), link(host, "mnt"));
            kill(running);
        }
    }
}

/// Returns the ids on the line `name` of the shim's status, which must be equal.
fn id(running: &RunningShim, name: &str) -> u32 {
    let status = fs::read_to_string(proc(running, "status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let ids: BTreeSet<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids.len(), 1, "{line}");
    ids.into_iter().next().unwrap()
}

#[test]
fn vmm_of_root_has_ids_that_no_other_box_has_and_owns_no_record() {
    let start = || {
        let mut running = start_with(shim(), &["connect", "hello", "started=7", "hang"], |_| {});
        running.wait_for("guest.started");
        running
    };
    let boxes = [start(), start()];
    let vmms = boxes.each_ref().map(|running| id(running, "Uid:"));
    assert_ne!(vmms[0], vmms[1]);
    for (running, vmm) in boxes.iter().zip(vmms) {
        assert!(vmm >= 524_288, "the user {vmm} belongs to the host");
        assert_eq!(id(running, "Gid:"), vmm);
        for map in ["uid_map", "gid_map"] {
            let map = fs::read_to_string(proc(running, map)).unwrap();
            let expected = ["0".to_owned(), vmm.to_string(), "65536".to_owned()];
            assert!(map.split_whitespace().eq(expected), "{map}");
        }
        // The VMM can make files in the directory, and remove its own only.
        let directory = running.box_path("").metadata().unwrap();
        let found = (directory.uid(), directory.gid(), directory.mode() & 0o7777);
        assert_eq!(found, (0, vmm, 0o1770));
        for entry in fs::read_dir(running.box_path("")).unwrap() {
            let path = entry.unwrap().path();
            let owner = if path.ends_with("run.json") { 0 } else { vmm };
            assert_eq!(path.symlink_metadata().unwrap().uid(), owner, "{}", path.display());
        }
    }
    boxes.into_iter().for_each(kill);
}

#[test]
fn directory_of_an_earlier_box_is_taken_back_and_used_again() {
    let directory = tempfile::Builder::new().prefix("w").tempdir().unwrap();
    let script = ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];
    let start = |level: &str| {
        let run = start_with(shim(), &script, |config| {
            config["paths"]["state_dir"] = json!(directory.path().join("s"));
            config["confinement"] = json!({"level": level});
        })
        .wait();
        assert_eq!(run.status.code(), Some(0), "{}{}", run.stdout, run.stderr);
        directory.path().join("s/golden").metadata().unwrap().mode() & 0o7777
    };
    // Without confinement the box has no ids, and its directory is root's alone.
    let modes = ["required", "required", "none", "required"].map(start);
    assert_eq!(modes, [0o1770, 0o1770, 0o700, 0o1770]);
    // A directory that others can write to is refused.
    let own = directory.path().join("s/golden");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o770)).unwrap();
    let refused = start_with(shim(), &script, |config| {
        config["paths"]["state_dir"] = json!(directory.path().join("s"));
    })
    .wait();
    assert_eq!(refused.status.code(), Some(125), "{}", refused.stdout);
}

/// Returns a command that runs the shim as root of a user namespace in which the limit of network
/// namespaces is 0, so `unshare(CLONE_NEWNET)` fails with ENOSPC.
fn shim_without_network_namespaces() -> Command {
    const LIMIT: &str = r#"echo 0 >/proc/sys/user/max_net_namespaces; exec "$@""#;
    let mut namespace = Command::new("unshare");
    namespace.args(["--user", "--map-root-user", "sh", "-euc", LIMIT, "sh"]);
    wrapped_shim(namespace)
}

/// Script of a workload that exits with 0 at once.
const SUCCESS: [&str; 7] =
    ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];

#[test]
fn missing_layer_is_an_error_if_required_and_reported_otherwise() {
    let start = |level: &str| {
        start_with(shim_without_network_namespaces(), &SUCCESS, |config| {
            config["confinement"] = json!({"level": level});
        })
        .wait()
    };
    let required = start("required");
    assert_eq!(required.ending(), (Some(125), "failed", Some("confinement")));
    let error = required.events.iter().find(|event| event["type"] == "error").unwrap();
    let cause = "not all of the confinement can be had: net_namespace (ENOSPC: ";
    assert!(error["causes"][0].as_str().unwrap().starts_with(cause), "the error is {error}");
    assert!(error["hint"].as_str().unwrap().contains("--doctor"), "the error is {error}");
    let best_effort = start("best_effort");
    assert_eq!(
        best_effort.ending(),
        (Some(0), "exited", None),
        "the events and the log are: {}{}",
        best_effort.stdout,
        best_effort.stderr
    );
    let confined =
        best_effort.events.iter().find(|event| event["type"] == "shim.confined").unwrap();
    let status = |layer: &str| {
        let layers = confined["layers"].as_array().unwrap();
        layers.iter().find(|it| it["layer"] == layer).map(|it| it["status"].clone())
    };
    assert_eq!(status("net_namespace"), Some(Value::from("missing")), "the event is {confined}");
    assert_eq!(status("seccomp"), Some(Value::from("applied")), "the event is {confined}");
    // After a failed and a successful start the box directory has its exit record and no
    // directories of the overlay.
    for run in [&required, &best_effort] {
        let own = run.directory.path().join("s/golden");
        assert!(own.join("exit.json").exists(), "the events are: {}", run.stdout);
        assert!(
            !own.join("upper").exists() && !own.join("work").exists(),
            "the events are: {}",
            run.stdout
        );
    }
}

#[test]
fn directory_that_is_no_cgroup_is_refused_before_anything_is_created() {
    let directory = tempfile::tempdir().unwrap();
    let cgroup = directory.path().join("demo");
    let run = start_with(shim(), &SUCCESS, |config| {
        config["resources"] = json!({"cgroup": cgroup});
    })
    .wait();
    assert_eq!(run.ending(), (Some(125), "failed", Some("process_setup")));
    let error = run.events.iter().find(|event| event["type"] == "error").unwrap();
    let cause = format!("`{}` is not in a file system of cgroups, version 2", cgroup.display());
    assert_eq!(error["causes"], json!([cause]), "the error is {error}");
    assert!(error["hint"].as_str().unwrap().contains("delegated"), "the error is {error}");
    assert!(!cgroup.exists() && !run.directory.path().join("s").exists());
}

/// Returns the directory on which cgroups of version 2 are mounted (proc(5), mountinfo).
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    mount.split(' ').nth(4).map(PathBuf::from)
}

#[test]
fn cgroup_with_children_is_refused_before_its_limits_are_set() {
    let root = cgroup2().unwrap_or_else(|| panic!("this test needs cgroups of version 2"));
    let cgroup = root.join(format!("a3s-box-wire-{}", std::process::id()));
    fs::create_dir(&cgroup).unwrap();
    fs::create_dir(cgroup.join("child")).unwrap();
    let limit = || fs::read_to_string(cgroup.join("memory.max")).unwrap_or_default();
    let before = limit();
    let run = start_with(shim(), &SUCCESS, |config| {
        config["resources"] = json!({"cgroup": cgroup});
    })
    .wait();
    let after = limit();
    fs::remove_dir(cgroup.join("child")).unwrap();
    fs::remove_dir(&cgroup).unwrap();
    assert_eq!(run.ending(), (Some(125), "failed", Some("process_setup")));
    let error = run.events.iter().find(|event| event["type"] == "error").unwrap();
    let cause = error["causes"][0].as_str().unwrap();
    let expected = format!("`{}`: found a cgroup with the child `child`", cgroup.display());
    assert!(cause.starts_with(&expected), "the error is {error}");
    assert_eq!(before, after);
}

#[test]
fn logging_seccomp_filter_is_reported_as_partial_and_stops_no_call() {
    let run = |seccomp: &str| {
        let mut shim = shim();
        shim.env("A3S_BOX_FAKE_PROBE", "keyctl");
        start_with(shim, &["hang"], |config| {
            config["confinement"] = json!({"level": "best_effort", "seccomp": seccomp});
        })
        .wait()
    };
    let logged = run("log");
    assert!(logged.stderr.contains("probe "), "the filter ended the shim: {}", logged.stderr);
    let confined = logged.events.iter().find(|event| event["type"] == "shim.confined").unwrap();
    let seccomp = confined["layers"].as_array().unwrap().last().unwrap();
    let expected =
        json!({"layer": "seccomp", "status": "partial", "detail": "calls are logged, not refused"});
    assert_eq!(*seccomp, expected);
    assert!(!run("enforce").stderr.contains("probe "), "the filter did not end the shim");
}

#[test]
fn state_directory_behind_a_symbolic_link_is_used_where_the_link_leads() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("real")).unwrap();
    symlink("real", directory.path().join("link")).unwrap();
    let run = start_with(shim(), &SUCCESS, |config| {
        config["paths"]["state_dir"] = json!(directory.path().join("link/../link/s"));
    })
    .wait();
    assert_eq!(
        run.ending(),
        (Some(0), "exited", None),
        "the events and the log are: {}{}",
        run.stdout,
        run.stderr
    );
    assert!(directory.path().join("real/s/golden/exit.json").exists());
}

/// Returns the soft and the hard limit of a live shim, in the words of the kernel.
fn limits(running: &RunningShim, name: &str) -> [String; 2] {
    let limits = fs::read_to_string(proc(running, "limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    let mut words = line.unwrap().split_whitespace().map(str::to_owned);
    [(); 2].map(|()| words.next().unwrap())
}

#[test]
fn memory_and_threads_of_a_confined_shim_are_bounded() {
    // The guest has 512 MiB by default.
    let bytes = ((512_u64 << 20) + (1 << 30)).to_string();
    for kind in ["block", "shared"] {
        let mut running =
            start_with(shim(), &["connect", "hello", "started=7", "hang"], |config| {
                config["root"] = json!({"kind": kind});
            });
        running.wait_for("guest.started");
        assert_eq!(limits(&running, "Max data size"), [&*bytes; 2]);
        // With a shared root the VMM is root of the host, to whom the limit does not apply.
        let threads = limits(&running, "Max processes");
        assert_eq!(threads == ["512", "512"], kind == "block", "{kind}: {threads:?}");
        kill(running);
    }
}
