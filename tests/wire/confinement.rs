//! Attempts of a VMM that a guest has taken over to reach the host.
//!
//! The fake VM makes the attempts (`krun/src/fake/probe.rs`). It runs in the VMM's place, after the
//! shim has confined itself. Each shim makes one attempt, because an attempt that seccomp stops
//! ends the process.

mod lists;

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

use self::lists::{
    EACCES, EBADF, ECONNREFUSED, EINVAL, ELOOP, ENETUNREACH, ENOENT, ENOSYS, EPERM, EROFS, EXDEV,
    HARMLESS, STOPPED_BY_ONE_LAYER,
};
use crate::harness::{Run, shim, start_with};
use crate::image::image;
use crate::user::{self, SubIds};

/// The result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The attempt succeeded. No attempt of a confined process may succeed.
    Reached,
    /// A system call failed with this errno.
    Refused(i32),
    /// SIGSYS ended the process, which is how seccomp refuses a system call.
    Killed,
}

use Outcome::{Killed, Reached, Refused};

/// The user that runs the shim.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ShimUser {
    Root,
    Ordinary(SubIds),
}

/// The targets of the attempts on the host, and the parts of a box with two shares.
///
/// The sockets only have to exist while the attempts run: one listens on the loopback address, one
/// on an abstract address, which belongs to a network namespace and not to a directory, and one in a
/// share that is read-only.
struct Testbed {
    user: ShimUser,
    directory: tempfile::TempDir,
    image: Value,
    /// Kind of the root.
    root_kind: &'static str,
    network: Value,
    has_shares: bool,
    abstract_name: String,
    tcp: TcpListener,
    _abstract: UnixListener,
    _socket: UnixListener,
}

impl Testbed {
    fn new(user: ShimUser) -> Self {
        let directory = tempfile::Builder::new().prefix("w").tempdir().unwrap();
        // The random name makes the abstract address unique, so tests can run at the same time.
        let name = directory.path().file_name().unwrap().to_str().unwrap().to_owned();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let (read, write) = (directory.path().join("read"), directory.path().join("write"));
        for share in [&read, &write] {
            fs::create_dir(share).unwrap();
        }
        fs::write(read.join("file"), "as it was").unwrap();
        symlink("/etc/passwd", write.join("to-passwd")).unwrap();
        let socket = UnixListener::bind(read.join("socket")).unwrap();
        let image = image(directory.path(), "echo 1 >file");
        // Major 1, minor 5 is /dev/zero. A device in a share must not open a device of the host.
        let made = Command::new("mknod").arg(write.join("zero")).args(["c", "1", "5"]).status();
        assert!(made.unwrap().success());
        if user != ShimUser::Root {
            user::give_to_user(directory.path());
        }
        Self {
            user,
            directory,
            image,
            root_kind: "block",
            network: json!({"mode": "none"}),
            has_shares: true,
            abstract_name: name,
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            _abstract: UnixListener::bind_addr(&address).unwrap(),
            _socket: socket,
        }
    }

    /// Returns the attempts that succeed. With an ordinary user, or with a shared root, the VMM is the
    /// owner of the files: the user that started the shim, or the host's root. In every box with
    /// shares it reads capabilities (docs/threat-model.md).
    fn known(&self) -> Vec<&'static str> {
        let of_shares = ["capabilities-of-parent"];
        let of_owner = match (self.user, self.root_kind) {
            (ShimUser::Ordinary(_), _) => vec!["chmod-console", "chmod-events", "record-reopen"],
            (ShimUser::Root, "shared") => {
                vec!["chmod-stdin", "chmod-console", "chmod-events", "record-reopen"]
            }
            (ShimUser::Root, _) => Vec::new(),
        };
        [&of_owner[..], &of_shares].concat()
    }

    /// Makes an attempt in a box with this confinement level. `layer` applies only this layer.
    fn attempt(&self, name: &str, level: &str, layer: Option<&str>) -> Outcome {
        let run = self.run(name, level, layer);
        match probe_line(&run) {
            Some("reached") => Reached,
            Some(line) => Refused(line.strip_prefix("errno:").unwrap().parse().unwrap()),
            None if run.status.signal() == Some(Signal::SIGSYS as i32) => Killed,
            None => panic!(
                "the attempt {name} has no result, and the shim ended with {:?}\n{}{}",
                run.status, run.stdout, run.stderr
            ),
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
            if self.has_shares {
                config["mounts"] = json!([share("read", true), share("write", false)]);
            }
            let directory = |name: &str| self.directory.path().join(name);
            config["paths"]["state_dir"] = json!(directory("s"));
            config["paths"]["cache_dir"] = json!(directory("c"));
            // The shim opens the directories of all these files. If it kept one open, its fd would
            // be a way out of the root.
            config["image"] = self.image.clone();
            config["root"] = json!({"kind": self.root_kind});
            config["network"] = self.network.clone();
            config["console"] = json!({"path": directory("console")});
            config["events"] = json!({"file": directory("events")});
        };
        match self.user {
            ShimUser::Root => start_with(shim, &["hang"], change).wait(),
            ShimUser::Ordinary(sub_ids) => {
                let (command, _tables) = user::command(&shim, sub_ids);
                start_with(command, &["hang"], change).wait()
            }
        }
    }

    /// Returns the names of all attempts, which the probe lists when it gets an unknown name.
    fn all_attempts(&self) -> Vec<String> {
        let run = self.run("?", "none", None);
        let known = probe_line(&run).unwrap().strip_prefix("known:").unwrap().to_owned();
        known.split(',').map(str::to_owned).collect()
    }
}

/// Returns the line that the probe wrote, without its prefix. A probe that seccomp killed wrote
/// none.
fn probe_line(run: &Run) -> Option<&str> {
    run.stderr.lines().find_map(|line| line.strip_prefix("probe "))
}

/// Number of attempts of the probe, as ARCHITECTURE.md and docs/confinement.md state it.
const ATTEMPTS: usize = 138;

/// Returns the layer that stopped an attempt, as far as its outcome shows it.
///
/// An outcome that no layer has is `?`: the attempt succeeded, or failed for an unexpected reason.
fn stopping_layer(name: &str, outcome: &Outcome) -> &'static str {
    match outcome {
        Killed | Refused(ENOSYS) => "seccomp",
        Refused(ENOENT | EROFS | ELOOP) => "root",
        Refused(ENETUNREACH | ECONNREFUSED) => "net_namespace",
        Refused(EPERM) if ["mknod-device", "limit-raise"].contains(&name) => "capabilities",
        Refused(EACCES) if name == "record-reopen" => "user_namespace",
        // The shim opens its locks for reading only.
        Refused(EBADF) if name == "lock-write" => "open_mode",
        Refused(EINVAL) if name == "lock-truncate" => "open_mode",
        Refused(EACCES) if name == "pinned-writable" => "open_mode",
        Refused(EACCES | EXDEV | EPERM) => "landlock",
        _ => "?",
    }
}

#[expect(clippy::print_stdout, reason = "the output shows which layer stopped which attempt")]
fn assert_no_attempt_succeeds(user: ShimUser, root_kind: &'static str) {
    let testbed = Testbed { root_kind, ..Testbed::new(user) };
    let names = testbed.all_attempts();
    // A probe that lists only a part of its attempts would make this test weaker unnoticed.
    assert_eq!(names.len(), ATTEMPTS, "the number that the documents name");
    let mut layers = BTreeMap::<&str, Vec<String>>::new();
    for name in &names {
        let outcome = testbed.attempt(name, "required", None);
        layers
            .entry(stopping_layer(name, &outcome))
            .or_default()
            .push(format!("{name} {outcome:?}"));
    }
    println!("{} attempts, by the layer that stopped them: {layers:#?}", names.len());
    let expected: Vec<String> =
        testbed.known().iter().map(|name| format!("{name} {Reached:?}")).collect();
    let reached = layers.remove("?").unwrap_or_default();
    assert_eq!(reached, expected, "no layer stopped these attempts");
    assert_eq!(
        fs::read_to_string(testbed.directory.path().join("read/file")).unwrap(),
        "as it was"
    );
}

#[test]
fn no_attempt_to_reach_the_host_succeeds_as_root() {
    assert_no_attempt_succeeds(ShimUser::Root, "block");
}

#[test]
fn no_attempt_to_reach_the_host_succeeds_as_root_with_a_shared_root() {
    assert_no_attempt_succeeds(ShimUser::Root, "shared");
}

#[test]
fn no_attempt_to_reach_the_host_succeeds_as_a_user_with_sub_ids() {
    assert_no_attempt_succeeds(ShimUser::Ordinary(SubIds::Given), "block");
}

#[test]
fn no_attempt_to_reach_the_host_succeeds_as_a_user_without_sub_ids() {
    assert_no_attempt_succeeds(ShimUser::Ordinary(SubIds::None), "block");
}

#[test]
fn each_layer_stops_its_attempts_without_the_other_layers() {
    let testbed = Testbed::new(ShimUser::Root);
    let mut not_stopped = Vec::new();
    for (layer, expected, names) in STOPPED_BY_ONE_LAYER {
        for name in names {
            let outcome = testbed.attempt(name, "best_effort", Some(layer));
            if !expected.contains(&outcome) {
                not_stopped.push(format!("{layer} does not stop {name}: {outcome:?}"));
            }
        }
    }
    assert!(not_stopped.is_empty(), "these layers do not stop these attempts: {not_stopped:#?}");
}

#[test]
fn harmless_attempts_succeed_without_confinement() {
    let testbed = Testbed::new(ShimUser::Root);
    let outcomes = HARMLESS.map(|name| (name, testbed.attempt(name, "none", None)));
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| *outcome != Reached).collect();
    assert!(failed.is_empty(), "these attempts failed without confinement: {failed:?}");
}

#[test]
fn locks_cannot_be_written_or_made_exclusive_without_any_layer() {
    let testbed = Testbed::new(ShimUser::Root);
    for (name, errno) in [("lock-write", EBADF), ("lock-truncate", EINVAL), ("lock-convert", EBADF)]
    {
        assert_eq!(testbed.attempt(name, "none", None), Refused(errno), "{name}");
    }
}

/// Calls that libkrun's virtio-fs server makes for a guest.
const CHANGES: [&str; 8] = [
    "change-mode",
    "change-owner",
    "change-times",
    "change-user",
    "make-directory",
    "make-fifo",
    "make-link",
    "make-symlink",
];

#[test]
fn only_directories_of_the_host_let_the_vmm_change_attributes_and_links() {
    let mut testbed = Testbed::new(ShimUser::Root);
    for (root_kind, has_shares, expected) in
        [("block", true, Reached), ("shared", false, Reached), ("block", false, Killed)]
    {
        (testbed.root_kind, testbed.has_shares) = (root_kind, has_shares);
        for name in CHANGES {
            let outcome = testbed.attempt(name, "required", None);
            assert_eq!(outcome, expected, "{name}, {root_kind} root, shares: {has_shares}");
        }
    }
}

#[test]
fn only_the_network_tsi_lets_the_vmm_make_ip_sockets() {
    let mut testbed = Testbed::new(ShimUser::Root);
    testbed.network = json!({"mode": "tsi"});
    assert_eq!(testbed.attempt("tcp-loopback", "required", None), Reached);
    for name in ["netlink", "socket-mptcp", "socket-option", "socket-peer"] {
        assert_eq!(testbed.attempt(name, "required", None), Killed, "{name}");
    }
    for egress in ["deny", "allow"] {
        testbed.network = json!({"mode": "passt", "egress": egress});
        assert_eq!(
            testbed.attempt("tcp-loopback", "required", None),
            Killed,
            "`egress` is `{egress}`"
        );
    }
}

#[test]
fn reports_the_applied_layers_before_the_vm_starts() {
    let script = ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];
    let run = crate::harness::run(&script);
    let position = |kind| run.events.iter().position(|event| event["type"] == kind).unwrap();
    let is_before = position("shim.confined") < position("vm.starting");
    assert!(is_before, "the VM started before the report: {}", run.stdout);
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
        "user_namespace applied",
        "process applied",
        "capabilities applied",
        "landlock applied",
        "seccomp applied",
    ];
    // Before Linux 6.12 the kernel has only a part of Landlock, and the shim reports `partial`.
    let as_expected = layers
        .iter()
        .zip(expected)
        .all(|(found, expected)| found == expected || found == "landlock partial");
    let is_complete = layers.len() == expected.len();
    assert!(as_expected && is_complete, "these layers are not as expected: {layers:?}");
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
    let running = start_with(shim(), &script, |config| {
        // The shim then has one more thread, which reads the metrics.
        config["events"] = json!({"metrics_interval_ms": 100});
    });
    std::thread::sleep(std::time::Duration::from_millis(800));
    let threads = fs::read_dir(format!("/proc/{}/task", running.child.id())).unwrap();
    let mut thread_names = Vec::new();
    for thread in threads.map(Result::unwrap) {
        let status = fs::read_to_string(thread.path().join("status")).unwrap();
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value
                .unwrap_or_else(|| panic!("there is no {name} in the status: {status}"))
                .trim()
                .to_owned()
        };
        // A box without shares needs no capability. `Seccomp: 2` means that a filter is installed.
        let (capabilities, bounding) = (field("CapPrm:"), field("CapBnd:"));
        let found = (capabilities.as_str(), bounding.as_str());
        assert_eq!(found, ("0000000000000000", "0000000000000000"), "the status is: {status}");
        assert_eq!(
            (field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()),
            ("1", "2"),
            "the status is: {status}"
        );
        thread_names.push(field("Name:"));
    }
    // With fewer threads the test would not show that threads are confined.
    let has_control = thread_names.iter().any(|name| name == "control");
    assert!(thread_names.len() >= 3 && has_control, "the shim has the threads {thread_names:?}");
    assert_eq!(running.wait().status.code(), Some(0));
}
