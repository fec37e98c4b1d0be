//! What a VMM that a guest has taken over can reach: code in its place, after the shim has confined itself
//! (`krun/src/fake/probe.rs`), makes one attempt a process.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Run, shim, start_by};
use crate::image::image;
use crate::user::{self, SubIds};

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// It did what it must not.
    Reached,
    /// It was refused, with this errno.
    Refused(i32),
    /// It ended the process, as seccomp does.
    Killed,
}

use Outcome::{Killed, Reached, Refused};

/// Who runs the shim.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    Root,
    User(SubIds),
}

/// What there is to be reached, and a box with two shares.
struct Ground {
    who: Who,
    directory: tempfile::TempDir,
    image: Value,
    network: Value,
    abstract_name: String,
    tcp: TcpListener,
    _abstract: UnixListener,
}

impl Ground {
    fn new(who: Who) -> Self {
        let directory = tempfile::Builder::new().prefix("w").tempdir().unwrap();
        let name = directory.path().file_name().unwrap().to_str().unwrap().to_owned();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let (read, write) = (directory.path().join("read"), directory.path().join("write"));
        for share in [&read, &write] {
            fs::create_dir(share).unwrap();
        }
        fs::write(read.join("file"), "as it was").unwrap();
        symlink("/etc/passwd", write.join("to-passwd")).unwrap();
        let image = image(directory.path(), "echo 1 >file");
        // The one of /dev/zero.
        let made = Command::new("mknod").arg(write.join("zero")).args(["c", "1", "5"]).status();
        assert!(made.unwrap().success());
        if who != Who::Root {
            user::give(directory.path());
        }
        Self {
            who,
            directory,
            image,
            network: json!({"mode": "none"}),
            abstract_name: name,
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            _abstract: UnixListener::bind_addr(&address).unwrap(),
        }
    }

    /// Makes an attempt in a box with this confinement; with a layer, that one only.
    fn attempt(&self, name: &str, level: &str, layer: Option<&str>) -> Outcome {
        let run = self.run(name, level, layer);
        match said(&run) {
            Some("reached") => Reached,
            Some(said) => Refused(said.strip_prefix("errno:").unwrap().parse().unwrap()),
            None if run.status.signal() == Some(Signal::SIGSYS as i32) => Killed,
            // A shell stands between an ordinary user's shim and this process.
            None => panic!("{name}: {:?}\n{}{}", run.status, run.stdout, run.stderr),
        }
    }

    fn run(&self, name: &str, level: &str, layer: Option<&str>) -> Run {
        let mut shim = shim();
        shim.env("A3S_BOX_FAKE_PROBE", name);
        shim.env("A3S_BOX_FAKE_PROBE_ABSTRACT", &self.abstract_name);
        shim.env("A3S_BOX_FAKE_PROBE_TCP", self.tcp.local_addr().unwrap().to_string());
        layer.map(|layer| shim.env("A3S_BOX_FAKE_LAYER", layer));
        let change = |config: &mut Value| {
            let share = |name: &str, read_only: bool| {
                json!({"type": "virtiofs", "source": self.directory.path().join(name),
                       "target": format!("/{name}"), "read_only": read_only})
            };
            config["confinement"] = json!({"level": level});
            config["mounts"] = json!([share("read", true), share("write", false)]);
            let directory = |name: &str| self.directory.path().join(name);
            config["paths"]["state_dir"] = json!(directory("s"));
            config["paths"]["cache_dir"] = json!(directory("c"));
            // Directories that a shim has open for some time.
            config["image"] = self.image.clone();
            config["network"] = self.network.clone();
            config["console"] = json!({"path": directory("console")});
            config["events"] = json!({"file": directory("events")});
        };
        match self.who {
            Who::Root => start_by(shim, &["hang"], change).end(),
            Who::User(sub_ids) => {
                let (command, _tables) = user::command(&shim, sub_ids);
                start_by(command, &["hang"], change).end()
            }
        }
    }

    fn all_attempts(&self) -> Vec<String> {
        let run = self.run("?", "none", None);
        let known = said(&run).unwrap().strip_prefix("known:").unwrap().to_owned();
        known.split(',').map(str::to_owned).collect()
    }
}

/// What the attempt tells of itself.
fn said(run: &Run) -> Option<&str> {
    run.stderr.lines().find_map(|line| line.strip_prefix("probe "))
}

/// Numbers of Linux (`asm-generic/errno.h`).
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EXDEV: i32 = 18;
const EROFS: i32 = 30;
const ELOOP: i32 = 40;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

/// The layer that stands in the way first, as far as the result says it.
fn layer(name: &str, outcome: &Outcome) -> &'static str {
    match outcome {
        Killed => "seccomp",
        Refused(ENOENT | EROFS | ELOOP) => "root",
        Refused(ENETUNREACH | ECONNREFUSED) => "net_namespace",
        Refused(EPERM) if name == "mknod-device" => "capabilities",
        Refused(EACCES | EXDEV | EPERM) => "landlock",
        _ => "?",
    }
}

#[expect(clippy::print_stdout, reason = "the layers are for whoever reads the test's output")]
fn no_attempt_succeeds(who: Who) {
    let ground = Ground::new(who);
    let names = ground.all_attempts();
    assert!(names.len() >= 40, "{}", names.len());
    let mut layers = BTreeMap::<&str, Vec<String>>::new();
    for name in &names {
        let outcome = ground.attempt(name, "required", None);
        layers.entry(layer(name, &outcome)).or_default().push(format!("{name} {outcome:?}"));
    }
    println!("{} attempts; by the layer that stopped them: {layers:#?}", names.len());
    assert!(!layers.contains_key("?"), "{:?}", layers["?"]);
    assert_eq!(fs::read_to_string(ground.directory.path().join("read/file")).unwrap(), "as it was");
}

#[test]
fn no_attempt_to_break_out_succeeds() {
    no_attempt_succeeds(Who::Root);
}

#[test]
fn no_attempt_of_an_ordinary_user_with_sub_ids_succeeds() {
    no_attempt_succeeds(Who::User(SubIds::Given));
}

#[test]
fn no_attempt_of_an_ordinary_user_without_sub_ids_succeeds() {
    no_attempt_succeeds(Who::User(SubIds::None));
}

/// What a layer stops with no help of the others. Without it these attempts succeed, or fail for another
/// reason.
const ALONE: [(&str, &[Outcome], &[&str]); 5] = [
    (
        "root",
        &[Refused(ENOENT), Refused(EROFS), Refused(ELOOP), Refused(EACCES)],
        &[
            "open-read",
            "open-path",
            "open-dotdot",
            "open-cwd",
            "open-proc-root",
            "open-proc-cwd",
            "open-proc-1-root",
            "open-proc-1-environ",
            "open-mem-of-1",
            "open-dev-zero",
            "open-dev-null",
            "open-drop-caches",
            "open-core-pattern",
            "open-sys",
            "open-fds",
            "write-root",
            "symlink-follow",
            "link-host-file",
            "share-dotdot",
            "share-symlink",
            "share-write",
            "share-change",
            "share-device",
        ],
    ),
    (
        "net_namespace",
        &[Refused(ENETUNREACH), Refused(ECONNREFUSED)],
        &["tcp-loopback", "abstract-socket"],
    ),
    ("capabilities", &[Refused(EPERM)], &["mknod-device", "chroot", "unshare", "open-by-handle"]),
    (
        "landlock",
        &[Refused(EACCES), Refused(EXDEV), Refused(EPERM)],
        &[
            "open-read",
            "open-path",
            "open-dotdot",
            "open-cwd",
            "open-proc-root",
            "open-proc-1-root",
            "open-proc-cwd",
            "open-exe",
            "open-dev-zero",
            "open-drop-caches",
            "open-sys",
            "open-fds",
            "symlink-follow",
            "link-host-file",
            "rename-out",
            "share-dotdot",
            "share-symlink",
            "share-write",
            "share-change",
            "tcp-loopback",
            "abstract-socket",
            "kill-1",
            "kill-parent",
        ],
    ),
    (
        "seccomp",
        &[Killed],
        &[
            "truncate",
            "chmod",
            "chroot",
            "mount",
            "umount",
            "pivot-root",
            "open-tree",
            "fsopen",
            "unshare",
            "setns",
            "execve",
            "fork",
            "vfork",
            "ptrace",
            "process-vm-readv",
            "pidfd-open",
            "kill-1",
            "kill-parent",
            "tgkill-parent",
            "keyctl",
            "bpf",
            "io-uring",
            "userfaultfd",
            "perf-event",
            "open-by-handle",
            "memory-executable",
            "tcp-loopback",
            "netlink",
            "reboot",
        ],
    ),
];

#[test]
fn each_layer_stops_attempts_by_itself() {
    let ground = Ground::new(Who::Root);
    let mut wrong = Vec::new();
    for (layer, expected, names) in ALONE {
        for name in names {
            let outcome = ground.attempt(name, "best_effort", Some(layer));
            if !expected.contains(&outcome) {
                wrong.push(format!("{layer} does not stop {name}: {outcome:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Attempts that succeed where nothing stops them, and change nothing that matters.
const HARMLESS: [&str; 24] = [
    "open-read",
    "open-path",
    "open-dotdot",
    "open-cwd",
    "open-proc-root",
    "open-proc-cwd",
    "open-exe",
    "open-dev-zero",
    "open-dev-null",
    "open-drop-caches",
    "open-core-pattern",
    "open-sys",
    "open-fds",
    "symlink-follow",
    "kill-1",
    "kill-parent",
    "memory-executable",
    "tcp-loopback",
    "netlink",
    "abstract-socket",
    "share-dotdot",
    "share-symlink",
    "share-change",
    "share-device",
];

#[test]
fn without_confinement_the_same_attempts_succeed() {
    let ground = Ground::new(Who::Root);
    let outcomes = HARMLESS.map(|name| (name, ground.attempt(name, "none", None)));
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| *outcome != Reached).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn of_all_networks_only_tsi_gives_the_vmm_sockets_of_the_host() {
    let mut ground = Ground::new(Who::Root);
    ground.network = json!({"mode": "tsi"});
    assert_eq!(ground.attempt("tcp-loopback", "required", None), Reached);
    assert_eq!(ground.attempt("netlink", "required", None), Killed);
    for egress in ["deny", "allow"] {
        ground.network = json!({"mode": "passt", "egress": egress});
        assert_eq!(ground.attempt("tcp-loopback", "required", None), Killed, "{egress}");
    }
}

#[test]
fn what_was_achieved_is_told_before_the_vm_starts() {
    let script = ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];
    let run = crate::harness::run(&script);
    let position = |kind| run.events.iter().position(|event| event["type"] == kind).unwrap();
    assert!(position("shim.confined") < position("vm.starting"), "{}", run.stdout);
    let confined = &run.events[position("shim.confined")];
    let layers: Vec<String> = confined["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| {
            format!("{} {}", layer["layer"].as_str().unwrap(), layer["status"].as_str().unwrap())
        })
        .collect();
    let expected = [
        "mount_namespace applied",
        "ipc_namespace applied",
        "uts_namespace applied",
        "net_namespace applied",
        "root applied",
        "process applied",
        "capabilities applied",
        "landlock applied",
        "seccomp applied",
    ];
    // A kernel before 6.12 has less of Landlock, and says so.
    let as_expected = layers
        .iter()
        .zip(expected)
        .all(|(found, expected)| found == expected || found == "landlock partial");
    assert!(as_expected && layers.len() == expected.len(), "{layers:?}");
}

#[test]
fn every_thread_of_a_shim_is_confined() {
    let script = [
        "connect",
        "hello",
        "serve",
        "started=7",
        "sleep-ms=1500",
        "exited=0",
        "drained",
        "exit=0",
    ];
    let playing = start_by(shim(), &script, |config| {
        // Has a thread read the figures.
        config["events"] = json!({"metrics_interval_ms": 100});
    });
    std::thread::sleep(std::time::Duration::from_millis(800));
    let threads = fs::read_dir(format!("/proc/{}/task", playing.child.id())).unwrap();
    let mut seen = Vec::new();
    for thread in threads.map(Result::unwrap) {
        let status = fs::read_to_string(thread.path().join("status")).unwrap();
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
        };
        // Seven capabilities, no privileges to gain, and two filters.
        let (capabilities, bounding) = (field("CapPrm:"), field("CapBnd:"));
        let found = (capabilities.as_str(), bounding.as_str());
        assert_eq!(found, ("00000000800000db", "00000000800000db"), "{status}");
        assert_eq!(
            (field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()),
            ("1", "2"),
            "{status}"
        );
        seen.push(field("Name:"));
    }
    assert!(seen.len() >= 3 && seen.iter().any(|name| name == "control"), "{seen:?}");
    assert_eq!(playing.end().status.code(), Some(0));
}
