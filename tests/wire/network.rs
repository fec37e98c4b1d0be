//! `network`: what carries a guest's network, its jail, its end, and what is told.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Playing, Run, shim, shim_by, start, start_by};
use crate::user::{SubIds, spawn};

/// A guest that lives for a second, if it is let.
const WELL: [&str; 8] = [
    "connect",
    "hello",
    "started=7",
    "print-network",
    "sleep-ms=1000",
    "exited=0",
    "drained",
    "exit=0",
];

const PATIENCE: Duration = Duration::from_secs(20);

/// A port that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn published(port: u16) -> Value {
    json!([{"host_address": "127.0.0.1", "host_port": port, "guest_port": 80}])
}

fn starts(network: &Value) -> Playing {
    start(&WELL, |config| config["network"] = network.clone())
}

fn runs(network: &Value) -> Run {
    starts(network).end()
}

/// Waits for what is to come.
fn eventually<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A line of `/proc/<pid>/status`; nothing of a process that is gone, or as good as gone.
fn status(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let is_alive = !field("State:")?.starts_with('Z');
    is_alive.then(|| field(name).unwrap_or_default().to_owned())
}

fn child_of(parent: i32, name: &str) -> Option<i32> {
    let all = fs::read_dir("/proc").unwrap();
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find(|pid: &i32| {
        status(*pid, "PPid:") == Some(parent.to_string())
            && status(*pid, "Name:").is_some_and(|found| found.starts_with(name))
    })
}

/// Gate and passt of a shim, jailed and at work: the box has its console by then.
fn carriers(playing: &Playing) -> [i32; 2] {
    let shim = i32::try_from(playing.child.id()).unwrap();
    eventually("a guest that speaks", || {
        fs::metadata(playing.state("console.log")).ok().filter(|file| file.len() > 0)
    });
    let gate = eventually("a gate", || child_of(shim, "a3s-box-gate"));
    let passt = eventually("passt", || child_of(gate, "passt"));
    [gate, passt]
}

fn is_gone(pid: i32) {
    eventually("its end", || status(pid, "Name:").is_none().then_some(()));
}

fn namespace(pid: impl std::fmt::Display, kind: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/{kind}")).unwrap().ino()
}

fn warnings(run: &Run) -> Vec<&str> {
    let of = run.events.iter().filter(|event| event["type"] == "warning");
    of.map(|event| event["code"].as_str().unwrap()).collect()
}

/// What the guest was told.
fn told(run: &Run) -> String {
    let console = fs::read_to_string(run.directory.path().join("s/golden/console.log"));
    console.unwrap_or_default()
}

#[test]
fn gate_and_passt_are_nobody_with_nothing_and_in_networks_of_their_own() {
    for egress in ["deny", "allow"] {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec 9</etc/passwd; exec \"$0\""]);
        let mut command = shim_by(shell);
        command.env("A3S_BOX_TEST_SECRET", "hunter2");
        let network = json!({"mode": "passt", "egress": egress, "publish": published(free_port())});
        let playing = start_by(command, &WELL, |config| config["network"] = network);
        let carriers = carriers(&playing);
        for pid in carriers {
            let field = |name: &str| status(pid, name).unwrap();
            let ids = "65534\t65534\t65534\t65534";
            assert_eq!((field("Uid:"), field("Gid:")), (ids.into(), ids.into()), "{pid}");
            assert_eq!((field("Groups:").as_str(), field("NoNewPrivs:").as_str()), ("", "1"));
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(field(set), "0000000000000000", "{set}");
            }
            assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
            for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
                let path = fs::read_link(fd.unwrap().path()).unwrap();
                let path = path.to_str().unwrap();
                let known = ["socket:", "pipe:", "anon_inode:", "/dev/null", "/dev/urandom"];
                // What is seen of a device once passt has left its root.
                let is_device = ["/null", "/urandom"].contains(&path);
                let is_known = known.iter().any(|known| path.starts_with(known)) || is_device;
                assert!(is_known, "{pid} {path}");
            }
        }
        let [gate, passt] = carriers;
        for pid in carriers {
            assert_eq!(status(pid, "Seccomp:").unwrap(), "2", "{pid}");
        }
        assert_ne!(namespace(passt, "user"), namespace("self", "user"));
        let networks = [namespace(playing.child.id(), "net"), namespace(gate, "net")];
        assert!(!networks.contains(&namespace("self", "net")), "{egress}");
        let is_hosts = namespace(passt, "net") == namespace("self", "net");
        assert_eq!(is_hosts, egress == "allow");
        assert_eq!(namespace(passt, "net") == namespace(gate, "net"), egress == "deny");
        let run = playing.end();
        assert_eq!(run.ending(), (Some(0), "exited", None), "{}", run.stderr);
        assert_eq!(warnings(&run), [""; 0]);
        carriers.into_iter().for_each(is_gone);
    }
}

/// The filter's source: its lists are what is allowed.
const FILTER: &str = include_str!("../../src/network/gate/calls.rs");

/// Calls that the gate may make and does not here, and what for.
const NOT_SEEN: [(&str, &str); 5] = [
    ("clock_gettime", "where the vDSO has no clock"),
    ("epoll_pwait", "where there is no epoll_wait: aarch64"),
    ("mmap", "glibc's malloc of a large block"),
    ("mremap", "glibc's realloc of a large block"),
    ("restart_syscall", "the kernel, after a stop and a continuation"),
];

/// What a gate with a published port does in its life, as strace writes it down: with passt's end, or with
/// that of the VM.
fn traced_gate(directory: &Path, loses_passt: bool) -> String {
    let trace = directory.join(if loses_passt { "lost" } else { "well" });
    let mut strace = Command::new("strace");
    // The tracer is not the parent: signals and status are the shim's.
    strace.args(["-D", "-f", "-q", "-e", "signal=none", "-o"]).arg(&trace);
    let port = free_port();
    let network = json!({"mode": "passt", "publish": published(port)});
    let playing = start_by(shim_by(strace), &WELL, |config| config["network"] = network);
    let [gate, passt] = carriers(&playing);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"ping").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    if loses_passt {
        kill(Pid::from_raw(passt), Signal::SIGKILL).unwrap();
    }
    assert_eq!(playing.end().ending(), (Some(0), "exited", None));
    let own = |line: &&str| line.starts_with(&format!("{gate} "));
    eventually("the end of the trace", || {
        let all = String::from_utf8_lossy(&fs::read(&trace).unwrap()).into_owned();
        let lines: Vec<&str> = all.lines().filter(own).collect();
        lines.iter().any(|line| line.contains("+++ exited")).then(|| lines.join("\n"))
    })
}

#[test]
fn every_call_that_a_gate_may_make_is_made_or_has_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let mut made = BTreeSet::new();
    for loses_passt in [false, true] {
        let trace = traced_gate(directory.path(), loses_passt);
        let (_, confined) = trace.rsplit_once(" seccomp(").unwrap();
        // `PID name(arguments…`; what was interrupted goes on in a line without a name.
        let calls =
            confined.lines().skip(1).filter_map(|line| line.split_once(' ')?.1.split_once('('));
        let names = calls.map(|(name, _)| name.trim()).filter(|name| !name.starts_with('<'));
        made.extend(names.map(str::to_owned));
    }
    let (_, lists) = FILTER.split_once("const MEMORY").unwrap();
    let names = lists.split("SYS_").skip(1).map(|rest| {
        rest.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').next().unwrap()
    });
    let allowed: BTreeSet<&str> = names.collect();
    let known: BTreeSet<&str> = NOT_SEEN.iter().map(|(name, _)| *name).collect();
    let unexplained: Vec<&&str> =
        allowed.difference(&known).filter(|name| !made.contains(**name)).collect();
    assert!(unexplained.is_empty(), "neither made nor explained: {unexplained:?}; made: {made:?}");
    let stale: Vec<&&str> = known.difference(&allowed).collect();
    assert!(stale.is_empty(), "explained, and not allowed: {stale:?}");
}

#[test]
fn a_killed_shim_leaves_neither_gate_nor_passt() {
    for level in ["none", "best_effort"] {
        let mut playing =
            start(&["connect", "hello", "started=7", "print-network", "hang"], |config| {
                config["network"] = json!({"mode": "passt"});
                config["confinement"] = json!({"level": level});
            });
        let carriers = carriers(&playing);
        playing.child.kill().unwrap();
        carriers.into_iter().for_each(is_gone);
        assert_eq!(playing.child.wait().unwrap().signal(), Some(9));
    }
}

#[test]
fn a_box_goes_on_without_passt_or_gate_and_says_so() {
    for which in [0, 1] {
        let playing = starts(&json!({"mode": "passt"}));
        let carriers = carriers(&playing);
        kill(Pid::from_raw(carriers[which]), Signal::SIGKILL).unwrap();
        carriers.into_iter().for_each(is_gone);
        let run = playing.end();
        assert_eq!(run.ending(), (Some(0), "exited", None), "{}", run.stderr);
        assert_eq!(warnings(&run), ["network_lost"], "{}", run.stdout);
        let message =
            &run.events.iter().find(|event| event["type"] == "warning").unwrap()["message"];
        let expected =
            ["the gate ended: signal: 9 (SIGKILL)", "passt ended: signal: 9 (SIGKILL)"][which];
        assert_eq!(message, &format!("the guest's network is gone: {expected}"));
        assert!(run.stderr.contains("the guest's network is gone"), "{}", run.stderr);
    }
}

/// Rust's own handler of SIGSEGV wants a call that the filter has not: the first signal ends the gate with
/// SIGSYS, or, with a filter that only logs, takes the handler away, and the second one is the end.
#[test]
fn a_call_that_the_gate_may_not_make_ends_it_or_is_logged() {
    for (seccomp, end) in [("enforce", "31 (SIGSYS)"), ("log", "11 (SIGSEGV)")] {
        let playing = start(&WELL, |config| {
            config["network"] = json!({"mode": "passt"});
            config["confinement"] = json!({"level": "best_effort", "seccomp": seccomp});
        });
        let [gate, _] = carriers(&playing);
        eventually("the end of the gate", || {
            // It may be gone.
            let _gone = kill(Pid::from_raw(gate), Signal::SIGSEGV);
            status(gate, "Name:").is_none().then_some(())
        });
        let run = playing.end();
        assert_eq!(run.ending(), (Some(0), "exited", None), "{}", run.stderr);
        let told = run.events.iter().find(|event| event["type"] == "warning").unwrap();
        let expected = format!("the guest's network is gone: the gate ended: signal: {end}");
        assert_eq!(told["message"], expected, "{seccomp}");
    }
}

#[test]
fn a_missing_passt_is_told_before_anything_is_started() {
    let empty = tempfile::tempdir().unwrap();
    let mut command = shim();
    command.env("PATH", empty.path());
    let network = json!({"mode": "passt"});
    let run = start_by(command, &WELL, |config| config["network"] = network).end();
    assert_eq!(run.ending(), (Some(125), "failed", Some("network_setup")));
    let error = run.events.iter().find(|event| event["type"] == "error").unwrap();
    assert_eq!(error["hint"], "install the package `passt`");
    let cause = error["causes"][0].as_str().unwrap();
    assert!(
        cause.contains("`passt`, which `network.mode` `passt` needs, was not found"),
        "{cause}"
    );
    assert!(cause.contains(empty.path().to_str().unwrap()), "{cause}");
}

#[test]
fn a_port_in_use_or_an_address_of_another_is_told_and_nothing_is_left() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_port = datagrams.local_addr().unwrap().port();
    let udp = json!([{"host_address": "127.0.0.1", "host_port": udp_port, "guest_port": 53, "protocol": "udp"}]);
    let elsewhere = json!([{"host_address": "198.51.100.7", "host_port": port, "guest_port": 80}]);
    for (egress, publish, named) in [
        (
            "deny",
            published(port),
            format!("cannot listen on 127.0.0.1:{port}: Address already in use"),
        ),
        ("allow", published(port), format!("127.0.0.1/{port}:80")),
        ("allow", udp, format!("127.0.0.1/{udp_port}:53")),
        ("deny", elsewhere.clone(), format!("cannot listen on 198.51.100.7:{port}: Cannot assign")),
        ("allow", elsewhere, format!("198.51.100.7/{port}:80")),
    ] {
        let run = runs(&json!({"mode": "passt", "egress": egress, "publish": publish}));
        assert_eq!(run.ending(), (Some(125), "failed", Some("network_setup")), "{}", run.stdout);
        assert!(!run.events.iter().any(|event| event["type"] == "vm.starting"));
        let error = run.events.iter().find(|event| event["type"] == "error").unwrap();
        let cause = error["causes"][0].as_str().unwrap();
        assert!(cause.contains(&named) && cause.len() < 600, "{egress} {cause}");
        assert!(error["hint"].as_str().unwrap().contains("network.publish"));
    }
}

#[test]
fn published_ports_listen_on_their_address_and_no_other() {
    for egress in ["deny", "allow"] {
        let port = free_port();
        let playing =
            starts(&json!({"mode": "passt", "egress": egress, "publish": published(port)}));
        let carriers = carriers(&playing);
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(TcpStream::connect(("127.0.0.2", port)).is_err(), "{egress}");
        assert!(UdpSocket::bind(("127.0.0.1", port)).is_ok(), "{egress}");
        assert_eq!(playing.end().ending(), (Some(0), "exited", None));
        carriers.into_iter().for_each(is_gone);
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "{egress}");
    }
}

/// Runs a box on a host with this resolv.conf.
fn with_resolver(text: &str, network: &Value) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("resolv.conf");
    fs::write(&file, text).unwrap();
    let mut unshare = Command::new("unshare");
    let script = "mount --bind \"$1\" /etc/resolv.conf; exec \"$2\"";
    unshare.args(["--mount", "sh", "-ec", script, "sh"]).arg(&file);
    let run = start_by(shim_by(unshare), &WELL, |config| config["network"] = network.clone()).end();
    assert_eq!(run.ending(), (Some(0), "exited", None), "{}{}", run.stdout, run.stderr);
    told(&run)
}

#[test]
fn name_servers_are_the_configs_else_those_of_the_host_that_are_not_on_it() {
    let both = "nameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver ::1\n";
    let allow = json!({"mode": "passt", "egress": "allow"});
    let eth0 = "interface eth0 10.0.2.15/24 via 10.0.2.2 mtu 65520";
    assert_eq!(with_resolver(both, &allow), format!("{eth0} dns 192.0.2.53\n"));
    let own = json!({"mode": "passt", "egress": "allow", "dns": ["1.1.1.1", "9.9.9.9"]});
    assert_eq!(with_resolver(both, &own), format!("{eth0} dns 1.1.1.1 9.9.9.9\n"));
    assert!(!with_resolver("nameserver 127.0.0.1\n", &allow).contains("127."));
    let deny = json!({"mode": "passt"});
    let eth0 = "interface eth0 10.0.2.15/24 via 0.0.0.0 mtu 65520";
    assert_eq!(with_resolver(both, &deny), format!("{eth0} dns none\n"));
    let dummy0 = "interface dummy0 203.0.113.1/32 via 0.0.0.0 mtu 0";
    assert_eq!(with_resolver(both, &json!({"mode": "tsi"})), format!("{dummy0} dns 192.0.2.53\n"));
    assert_eq!(with_resolver(both, &json!({})), "no interface; resolver of the image\n");
}

#[test]
fn tsi_warns_before_the_vm_starts_and_stays_in_the_hosts_network() {
    let playing = starts(&json!({"mode": "tsi"}));
    eventually("a guest that speaks", || {
        fs::metadata(playing.state("console.log")).ok().filter(|file| file.len() > 0)
    });
    assert_eq!(namespace(playing.child.id(), "net"), namespace("self", "net"));
    let run = playing.end();
    assert_eq!(warnings(&run), ["host_network"]);
    let position = |kind| run.events.iter().position(|event| event["type"] == kind).unwrap();
    assert!(position("warning") < position("vm.starting"));
    let message = run.events[position("warning")]["message"].as_str().unwrap();
    assert!(message.contains("loopback"), "{message}");
}

#[test]
fn an_ordinary_user_has_a_network_with_sub_ids_and_without() {
    for sub_ids in [SubIds::Given, SubIds::None] {
        for egress in ["deny", "allow"] {
            let directory = tempfile::Builder::new().prefix("n").tempdir().unwrap();
            let mut config = crate::harness::config(directory.path(), &WELL);
            let port = free_port();
            config["network"] =
                json!({"mode": "passt", "egress": egress, "publish": published(port)});
            crate::user::give(directory.path());
            let (child, _tables) = spawn(&config, sub_ids, &[]);
            let output = child.wait_with_output().unwrap();
            let (stdout, stderr) = (
                String::from_utf8_lossy(&output.stdout).into_owned(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            );
            assert_eq!(output.status.code(), Some(0), "{egress} {stdout}{stderr}");
            assert!(!stdout.contains("\"warning\""), "{stdout}");
        }
    }
}
