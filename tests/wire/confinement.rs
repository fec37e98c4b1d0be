//! What a VMM that a guest has taken over can reach: code in its place, after the shim has confined itself
//! (`krun/src/fake/probe.rs`), makes one attempt a process.

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{shim, start_by};

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

fn attempt(name: &str, level: &str) -> (Outcome, String) {
    attempt_with(name, &json!({"confinement": {"level": level}}))
}

/// The same, with these parts of the config.
fn attempt_with(name: &str, parts: &Value) -> (Outcome, String) {
    let socket = format!("a3s-box-probe-{}", std::process::id());
    let mut command = shim();
    command.env("A3S_BOX_FAKE_PROBE", name).env("A3S_BOX_FAKE_PROBE_SOCKET", socket);
    let run = start_by(command, &["hang"], |config| {
        for (part, value) in parts.as_object().unwrap() {
            config[part] = value.clone();
        }
    })
    .end();
    let outcome = match run.stderr.lines().find_map(|line| line.strip_prefix("probe ")) {
        Some("reached") => Outcome::Reached,
        Some(said) if said.starts_with("errno:") => Outcome::Refused(said[6..].parse().unwrap()),
        Some(said) => return (Outcome::Reached, said.to_owned()),
        None if run.status.signal() == Some(Signal::SIGSYS as i32) => Outcome::Killed,
        None => panic!("{name}: {:?}\n{}{}", run.status, run.stdout, run.stderr),
    };
    (outcome, String::new())
}

fn all_attempts() -> Vec<String> {
    let (_, known) = attempt("?", "none");
    let known = known.strip_prefix("known:").unwrap().to_owned();
    known.split(',').map(str::to_owned).collect()
}

/// Numbers of Linux (`asm-generic/errno.h`).
const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EXDEV: i32 = 18;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

/// The layer that stands in the way, as far as the result says it.
fn layer(name: &str, outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Killed => "seccomp",
        Outcome::Refused(EACCES | EXDEV) => "landlock",
        Outcome::Refused(ENETUNREACH | ECONNREFUSED) => "net_namespace",
        Outcome::Refused(EPERM) if name == "mknod-device" => "capabilities",
        Outcome::Refused(EPERM) => "landlock",
        _ => "?",
    }
}

#[test]
fn no_attempt_to_break_out_succeeds() {
    let name = format!("a3s-box-probe-{}", std::process::id());
    let _listener =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    let names = all_attempts();
    assert!(names.len() >= 40, "{}", names.len());
    let mut layers = BTreeMap::<&str, Vec<String>>::new();
    let mut reached = Vec::new();
    for name in &names {
        let (outcome, _) = attempt(name, "best_effort");
        if outcome == Outcome::Reached {
            reached.push(name.clone());
        }
        layers.entry(layer(name, &outcome)).or_default().push(format!("{name} {outcome:?}"));
    }
    println!("{} attempts; by the layer that stopped them: {layers:#?}", names.len());
    assert_eq!(reached, [""; 0]);
    assert!(!layers.contains_key("?"), "{:?}", layers["?"]);
}

/// Attempts that succeed where nothing stops them, and change nothing.
const HARMLESS: [&str; 17] = [
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
    "open-sys",
    "symlink-follow",
    "kill-1",
    "kill-parent",
    "memory-executable",
    "netlink",
    "abstract-socket",
];

#[test]
fn without_confinement_the_same_attempts_succeed() {
    let name = format!("a3s-box-probe-{}", std::process::id());
    let _listener =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    for name in HARMLESS {
        assert_eq!(attempt(name, "none").0, Outcome::Reached, "{name}");
    }
}

#[test]
fn of_all_networks_only_tsi_gives_the_vmm_sockets_of_the_host() {
    let attempt = |name, network: Value| attempt_with(name, &json!({"network": network})).0;
    let refused = Outcome::Refused(ECONNREFUSED);
    assert_eq!(attempt("tcp-loopback", json!({"mode": "tsi"})), refused);
    assert_eq!(attempt("netlink", json!({"mode": "tsi"})), Outcome::Killed);
    for egress in ["deny", "allow"] {
        let network = json!({"mode": "passt", "egress": egress});
        assert_eq!(attempt("tcp-loopback", network), Outcome::Killed, "{egress}");
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
    let threads = std::fs::read_dir(format!("/proc/{}/task", playing.child.id())).unwrap();
    let mut seen = Vec::new();
    for thread in threads.map(Result::unwrap) {
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap();
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
