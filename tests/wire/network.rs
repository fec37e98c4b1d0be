//! The config's `network`: the jail of the gate and of passt, their end, and what the shim reports.

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

use crate::harness::{Run, RunningShim, shim, start, start_with, wrapped_shim};
use crate::traced_calls::assert_calls_are_made;
use crate::user::{SubIds, spawn};

/// Script of a workload that runs for a second and succeeds.
///
/// The second lets a test look at the processes of the network while the box runs.
pub(crate) const RUNS_A_SECOND: [&str; 8] = [
    "connect",
    "hello",
    "started=7",
    "print-network",
    "sleep-ms=1000",
    "exited=0",
    "drained",
    "exit=0",
];

/// Time after which [`eventually`] gives up. It only matters for a test that fails.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Returns a TCP port of the loopback address on which no process listens.
///
/// The port is free again when this returns, so another process could take it before the shim does.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Returns a `network.publish` that maps this port of the loopback address to port 80 of the guest.
pub(crate) fn published(port: u16) -> Value {
    json!([{"host_address": "127.0.0.1", "host_port": port, "guest_port": 80}])
}

fn start_box(network: &Value) -> RunningShim {
    start(&RUNS_A_SECOND, |config| config["network"] = network.clone())
}

fn run_box(network: &Value) -> Run {
    start_box(network).wait()
}

/// Calls `look` until it returns something, and returns that. `what` names it in the message.
pub(crate) fn eventually<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < TIMEOUT, "waited {TIMEOUT:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the value of a field in `/proc/<pid>/status`, or `None` if the process has ended.
///
/// A zombie counts as ended, because it only waits for its parent.
pub(crate) fn status(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let is_alive = !field("State:")?.starts_with('Z');
    is_alive.then(|| field(name).unwrap_or_default().to_owned())
}

/// Returns the pid of a living child of `parent` whose name begins with `name`.
pub(crate) fn child_of(parent: i32, name: &str) -> Option<i32> {
    let all = fs::read_dir("/proc").unwrap();
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find(|pid: &i32| {
        status(*pid, "PPid:") == Some(parent.to_string())
            && status(*pid, "Name:").is_some_and(|found| found.starts_with(name))
    })
}

/// Returns the pids of the gate and of passt, once both have confined themselves.
///
/// The guest's first output shows that, because the shim starts the VM only after passt has
/// answered.
fn gate_and_passt(running: &RunningShim) -> [i32; 2] {
    let shim = i32::try_from(running.child.id()).unwrap();
    eventually("the first output of the guest", || {
        fs::metadata(running.box_path("console.log")).ok().filter(|file| file.len() > 0)
    });
    let gate = eventually("the gate", || child_of(shim, "a3s-box-gate"));
    let passt = eventually("passt", || child_of(gate, "passt"));
    [gate, passt]
}

fn wait_for_end(pid: i32) {
    eventually("the end of a process", || status(pid, "Name:").is_none().then_some(()));
}

/// Returns the inode number of a namespace, which identifies it.
fn namespace(pid: impl std::fmt::Display, kind: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/{kind}")).unwrap().ino()
}

/// Returns the codes of all warnings.
fn warnings(run: &Run) -> Vec<&str> {
    let warnings = run.events.iter().filter(|event| event["type"] == "warning");
    warnings.map(|event| event["code"].as_str().unwrap()).collect()
}

#[test]
fn gate_and_passt_run_as_a_user_of_the_box_without_files_in_separate_network_namespaces() {
    let rules = json!([{"to": "192.0.2.0/24", "ports": [443]}]);
    for egress in [json!("deny"), json!("allow"), rules] {
        // The open file and the secret must reach neither process.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec 9</etc/passwd; exec \"$0\""]);
        let mut command = wrapped_shim(shell);
        command.env("A3S_BOX_TEST_SECRET", "hunter2");
        let network = json!({"mode": "passt", "egress": egress, "publish": published(free_port())});
        let running = start_with(command, &RUNS_A_SECOND, |config| config["network"] = network);
        let [gate, passt] = gate_and_passt(&running);
        // With `deny`, the gate relays the published port, and needs a connector for it.
        let connector = child_of(gate, "a3s-box-connect");
        assert_eq!(connector.is_some(), egress == "deny");
        let vmm = eventually("the shim has ids of its box", || {
            let user = status(running.child.id().cast_signed(), "Uid:").unwrap();
            let user: u32 = user.split_whitespace().next().unwrap().parse().unwrap();
            (user != 0).then_some(user)
        });
        assert!(vmm >= 524_288 && vmm.is_multiple_of(65_536), "{vmm}");
        let pids: Vec<i32> = [gate, passt].into_iter().chain(connector).collect();
        for &pid in &pids {
            let field = |name: &str| status(pid, name).unwrap();
            // It is the last one of the box's ids, of which the VMM has the first one.
            let ids = [65_535 + vmm; 4].map(|id| id.to_string()).join("\t");
            assert_eq!((field("Uid:"), field("Gid:")), (ids.clone(), ids), "the process is {pid}");
            assert_eq!((field("Groups:").as_str(), field("NoNewPrivs:").as_str()), ("", "1"));
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(field(set), "0000000000000000", "the set is {set}");
            }
            assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
            for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
                let path = fs::read_link(fd.unwrap().path()).unwrap();
                let path = path.to_str().unwrap();
                let known = ["socket:", "pipe:", "anon_inode:", "/dev/null", "/dev/urandom"];
                // passt has changed its root. The link then has only the path within the file
                // system of the devices.
                let is_device = ["/null", "/urandom"].contains(&path);
                let is_known = known.iter().any(|known| path.starts_with(known)) || is_device;
                assert!(is_known, "the process {pid} has `{path}` open");
            }
        }
        for &pid in &pids {
            assert_eq!(status(pid, "Seccomp:").unwrap(), "2", "the process is {pid}");
        }
        if let Some(connector) = connector {
            assert_eq!(namespace(connector, "net"), namespace(gate, "net"));
        }
        assert_ne!(namespace(passt, "user"), namespace("self", "user"));
        let networks = [namespace(running.child.id(), "net"), namespace(gate, "net")];
        assert!(!networks.contains(&namespace("self", "net")), "`egress` is `{egress}`");
        // passt needs the network namespace of the host to reach other machines. With `deny` it
        // shares the empty one of the gate, in which the gate connects to published ports.
        let is_in_host_network = namespace(passt, "net") == namespace("self", "net");
        assert_eq!(is_in_host_network, egress != "deny");
        assert_eq!(namespace(passt, "net") == namespace(gate, "net"), egress == "deny");
        let run = running.wait();
        assert_eq!(run.ending(), (Some(0), "exited", None), "the log is: {}", run.stderr);
        assert_eq!(warnings(&run), [""; 0]);
        pids.into_iter().for_each(wait_for_end);
    }
}

/// Sources of the seccomp filters of the gate and of the connector. Their lists name the calls that
/// these processes may make.
const FILTERS: [&str; 2] = [
    include_str!("../../src/network/gate/calls.rs"),
    include_str!("../../src/network/connector/calls.rs"),
];

/// Calls that the filters allow and these tests do not see, with the case in which they are made.
const UNSEEN_CALLS: [&[(&str, &str)]; 2] = [
    &[
        ("clock_gettime", "needed on a host whose vDSO has no clock"),
        ("epoll_pwait", "needed on aarch64, which has no epoll_wait(2)"),
        ("mmap", "made by malloc(3) of glibc for a large block"),
        ("mremap", "made by realloc(3) of glibc for a large block"),
        ("restart_syscall", "made by the kernel after SIGSTOP and SIGCONT"),
    ],
    &[],
];

/// Runs a box with a published port, and returns the system calls of its gate and of its connector,
/// as strace writes them.
///
/// With `kill_passt` the gate ends because passt was killed, and otherwise because the VM has
/// ended.
fn trace_gate(directory: &Path, kill_passt: bool) -> [String; 2] {
    let trace = directory.join(if kill_passt { "passt-killed" } else { "vm-ended" });
    let mut strace = Command::new("strace");
    // With -D the tracer is a grandchild, so the child of the test is the shim itself.
    strace.args(["-D", "-f", "-q", "-e", "signal=none", "-o"]).arg(&trace);
    let port = free_port();
    let network = json!({"mode": "passt", "publish": published(port)});
    let running =
        start_with(wrapped_shim(strace), &RUNS_A_SECOND, |config| config["network"] = network);
    let [gate, passt] = gate_and_passt(&running);
    let connector = child_of(gate, "a3s-box-connect").unwrap();
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"ping").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    if kill_passt {
        kill(Pid::from_raw(passt), Signal::SIGKILL).unwrap();
    }
    assert_eq!(running.wait().ending(), (Some(0), "exited", None));
    [gate, connector].map(|pid| {
        let is_of_process = |line: &&str| line.starts_with(&format!("{pid} "));
        eventually("the end of the trace", || {
            let all = String::from_utf8_lossy(&fs::read(&trace).unwrap()).into_owned();
            let lines: Vec<&str> = all.lines().filter(is_of_process).collect();
            let has_ended =
                |line: &&str| line.contains("+++ exited") || line.contains("+++ killed");
            lines.iter().any(has_ended).then(|| lines.join("\n"))
        })
    })
}

/// Returns the names of the calls that a process makes under its filter.
fn calls_under_filter(trace: &str) -> BTreeSet<String> {
    // Only the calls after the last seccomp(2) are subject to the filter.
    let (_, confined) = trace.rsplit_once(" seccomp(").unwrap();
    // A line is `PID name(arguments…`. An interrupted line continues on a later line with `<...` in
    // place of the name.
    let calls = confined.lines().skip(1).filter_map(|line| line.split_once(' ')?.1.split_once('('));
    let names = calls.map(|(name, _)| name.trim()).filter(|name| !name.starts_with('<'));
    names.map(str::to_owned).collect()
}

#[test]
fn gate_and_connector_make_each_allowed_system_call_or_the_call_has_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let mut made = [BTreeSet::new(), BTreeSet::new()];
    for kill_passt in [false, true] {
        let traces = trace_gate(directory.path(), kill_passt);
        for (made, trace) in made.iter_mut().zip(&traces) {
            made.extend(calls_under_filter(trace));
        }
    }
    for ((filter, unseen), made) in FILTERS.iter().zip(UNSEEN_CALLS).zip(&made) {
        // The imports above the first list name the same calls, so they are cut off.
        let (_, lists) = filter.split_once("\nconst ").unwrap();
        assert_calls_are_made(lists, unseen, made);
    }
}

#[test]
fn gate_and_passt_end_when_the_shim_is_killed() {
    for level in ["none", "best_effort"] {
        let mut running =
            start(&["connect", "hello", "started=7", "print-network", "hang"], |config| {
                config["network"] = json!({"mode": "passt"});
                config["confinement"] = json!({"level": level});
            });
        let pids = gate_and_passt(&running);
        running.child.kill().unwrap();
        pids.into_iter().for_each(wait_for_end);
        assert_eq!(running.child.wait().unwrap().signal(), Some(9));
    }
}

#[test]
fn box_continues_and_warns_when_gate_or_passt_is_killed() {
    // The gate is first, then passt. Each ends with the other.
    for which in [0, 1] {
        let running = start_box(&json!({"mode": "passt"}));
        let pids = gate_and_passt(&running);
        kill(Pid::from_raw(pids[which]), Signal::SIGKILL).unwrap();
        pids.into_iter().for_each(wait_for_end);
        let run = running.wait();
        assert_eq!(run.ending(), (Some(0), "exited", None), "the log is: {}", run.stderr);
        assert_eq!(warnings(&run), ["network_lost"], "the events are: {}", run.stdout);
        let message =
            &run.events.iter().find(|event| event["type"] == "warning").unwrap()["message"];
        let expected =
            ["the gate ended: signal: 9 (SIGKILL)", "passt ended: signal: 9 (SIGKILL)"][which];
        assert_eq!(message, &format!("the guest's network is gone: {expected}"));
        assert!(run.stderr.contains("the guest's network is gone"), "the log is: {}", run.stderr);
    }
}

/// A SIGSEGV from outside makes Rust's own handler call `rt_sigaction(2)`, which the filter does
/// not allow. With `enforce` the gate ends with SIGSYS. With `log` the call removes the handler, so
/// the next SIGSEGV ends the gate.
#[test]
fn forbidden_system_call_of_the_gate_is_fatal_unless_it_is_only_logged() {
    for (seccomp, end) in [("enforce", "31 (SIGSYS)"), ("log", "11 (SIGSEGV)")] {
        let running = start(&RUNS_A_SECOND, |config| {
            config["network"] = json!({"mode": "passt"});
            config["confinement"] = json!({"level": "best_effort", "seccomp": seccomp});
        });
        let [gate, _] = gate_and_passt(&running);
        eventually("the end of the gate", || {
            // The gate may have ended since the last look.
            let _ignored = kill(Pid::from_raw(gate), Signal::SIGSEGV);
            status(gate, "Name:").is_none().then_some(())
        });
        let run = running.wait();
        assert_eq!(run.ending(), (Some(0), "exited", None), "the log is: {}", run.stderr);
        let warning = run.events.iter().find(|event| event["type"] == "warning").unwrap();
        let expected = format!("the guest's network is gone: the gate ended: signal: {end}");
        assert_eq!(warning["message"], expected, "`seccomp` is `{seccomp}`");
    }
}

#[test]
fn refused_destination_is_an_event_and_any_other_line_of_the_gate_is_not() {
    let rules = json!([{"to": "192.0.2.0/24"}]);
    let running = start_box(&json!({"mode": "passt", "egress": rules}));
    let [gate, _] = gate_and_passt(&running);
    // The pipe from the gate to the shim. It takes all of this at once.
    let mut pipe = fs::OpenOptions::new().write(true).open(format!("/proc/{gate}/fd/1")).unwrap();
    let notice = "tcp 198.51.100.7 443 3\n";
    let garbage = "x".repeat(4096);
    let dns = "dns 10.0.2.3 53 1 evil.example\n";
    let lines = format!("{notice}icmp 198.51.100.7 - 1\n{dns}{garbage}\n{notice}");
    pipe.write_all(lines.as_bytes()).unwrap();
    let run = running.wait();
    assert_eq!(run.ending(), (Some(0), "exited", None), "the log is: {}", run.stderr);
    let refused = run.events.iter().filter(|event| event["type"] == "network.refused");
    let fields = ["protocol", "address", "port", "name", "count"];
    let found: Vec<_> = refused.map(|event| fields.map(|name| event[name].clone())).collect();
    let tcp = [json!("tcp"), json!("198.51.100.7"), json!(443), Value::Null, json!(3)];
    let icmp = [json!("icmp"), json!("198.51.100.7"), Value::Null, Value::Null, json!(1)];
    let dns = [json!("dns"), json!("10.0.2.3"), json!(53), json!("evil.example"), json!(1)];
    assert_eq!(found, [tcp, icmp, dns], "the events are: {}", run.stdout);
    assert!(run.stderr.contains("the gate is not listened to any more"), "{}", run.stderr);
    assert_eq!(warnings(&run), [""; 0]);
}

#[test]
fn largest_list_of_rules_reaches_the_gate() {
    let ports: Vec<String> = (0..64).map(|i| format!("{}-{}", 10_000 + i, 20_000 + i)).collect();
    let rule = |i: u32| json!({"to": std::net::Ipv4Addr::from(i << 8), "ports": ports});
    // Ten thousand names that are nearly as long as a name can be.
    let long = ["a".repeat(63).as_str(); 3].join(".");
    let name = |i: u32| json!({"to": format!("*.n{i}.{long}"), "ports": [443]});
    let rules: Vec<Value> = (1..=1000).map(rule).chain((0..10_000).map(name)).collect();
    let run = run_box(&json!({"mode": "passt", "egress": rules, "dns": ["192.0.2.53"]}));
    assert_eq!(run.ending(), (Some(0), "exited", None), "the log is: {}", run.stderr);
}

#[test]
fn missing_passt_is_an_error_with_a_hint() {
    let empty = tempfile::tempdir().unwrap();
    let mut command = shim();
    command.env("PATH", empty.path());
    let network = json!({"mode": "passt"});
    let run = start_with(command, &RUNS_A_SECOND, |config| config["network"] = network).wait();
    assert_eq!(run.ending(), (Some(125), "failed", Some("network_setup")));
    let error = run.events.iter().find(|event| event["type"] == "error").unwrap();
    assert_eq!(error["hint"], "install the package `passt`");
    let cause = error["causes"][0].as_str().unwrap();
    assert!(
        cause.contains("`passt`, which `network.mode` `passt` needs, was not found"),
        "the cause is `{cause}`"
    );
    assert!(cause.contains(empty.path().to_str().unwrap()), "the cause is `{cause}`");
}

#[test]
fn unavailable_port_or_address_is_an_error_before_the_vm_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_port = datagrams.local_addr().unwrap().port();
    let udp = json!([{"host_address": "127.0.0.1", "host_port": udp_port, "guest_port": 53, "protocol": "udp"}]);
    // No interface of the host has this address, which is reserved for documentation (RFC 5737).
    let foreign_address =
        json!([{"host_address": "198.51.100.7", "host_port": port, "guest_port": 80}]);
    for (egress, publish, named) in [
        (
            "deny",
            published(port),
            format!("cannot listen on 127.0.0.1:{port}: Address already in use"),
        ),
        ("allow", published(port), format!("127.0.0.1/{port}:80")),
        ("allow", udp, format!("127.0.0.1/{udp_port}:53")),
        (
            "deny",
            foreign_address.clone(),
            format!("cannot listen on 198.51.100.7:{port}: Cannot assign"),
        ),
        ("allow", foreign_address, format!("198.51.100.7/{port}:80")),
    ] {
        let run = run_box(&json!({"mode": "passt", "egress": egress, "publish": publish}));
        assert_eq!(
            run.ending(),
            (Some(125), "failed", Some("network_setup")),
            "the events are: {}",
            run.stdout
        );
        assert!(!run.events.iter().any(|event| event["type"] == "vm.starting"));
        let error = run.events.iter().find(|event| event["type"] == "error").unwrap();
        let cause = error["causes"][0].as_str().unwrap();
        assert!(
            cause.contains(&named) && cause.len() < 600,
            "`egress` is `{egress}`, and the cause is `{cause}`"
        );
        assert!(error["hint"].as_str().unwrap().contains("network.publish"));
    }
}

#[test]
fn published_port_listens_on_its_address_only() {
    for egress in ["deny", "allow"] {
        let port = free_port();
        let running =
            start_box(&json!({"mode": "passt", "egress": egress, "publish": published(port)}));
        let pids = gate_and_passt(&running);
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(TcpStream::connect(("127.0.0.2", port)).is_err(), "`egress` is `{egress}`");
        assert!(UdpSocket::bind(("127.0.0.1", port)).is_ok(), "`egress` is `{egress}`");
        assert_eq!(running.wait().ending(), (Some(0), "exited", None));
        pids.into_iter().for_each(wait_for_end);
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "`egress` is `{egress}`");
    }
}

#[test]
fn names_without_a_name_server_are_an_error_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("resolv.conf");
    fs::write(&file, "# none\n").unwrap();
    let mut unshare = Command::new("unshare");
    let script = "mount --bind \"$1\" /etc/resolv.conf; [ ! -e /run/systemd ] || mount -t tmpfs none /run/systemd; \
                  exec \"$2\"";
    unshare.args(["--mount", "sh", "-ec", script, "sh"]).arg(&file);
    let network = json!({"mode": "passt", "egress": [{"to": "a.example"}]});
    let run = start_with(wrapped_shim(unshare), &RUNS_A_SECOND, |config| {
        config["network"] = network;
    })
    .wait();
    assert_eq!(run.ending(), (Some(125), "failed", Some("network_setup")), "{}", run.stdout);
    let error = run.events.iter().find(|event| event["type"] == "error").unwrap();
    assert!(error["hint"].as_str().unwrap().contains("`network.dns`"), "{error}");
    assert!(error["causes"][0].as_str().unwrap().contains("has a name server"), "{error}");
}

#[test]
fn network_tsi_warns_before_the_vm_starts_and_uses_the_network_of_the_host() {
    let running = start_box(&json!({"mode": "tsi"}));
    eventually("the first output of the guest", || {
        fs::metadata(running.box_path("console.log")).ok().filter(|file| file.len() > 0)
    });
    assert_eq!(namespace(running.child.id(), "net"), namespace("self", "net"));
    let run = running.wait();
    assert_eq!(warnings(&run), ["host_network"]);
    let position = |kind| run.events.iter().position(|event| event["type"] == kind).unwrap();
    assert!(position("warning") < position("vm.starting"));
    let message = run.events[position("warning")]["message"].as_str().unwrap();
    assert!(message.contains("loopback"), "the message is `{message}`");
}

#[test]
fn ordinary_user_has_a_network_with_and_without_sub_ids() {
    for sub_ids in [SubIds::Given, SubIds::None] {
        for egress in ["deny", "allow"] {
            let directory = tempfile::Builder::new().prefix("n").tempdir().unwrap();
            let mut config = crate::harness::config(directory.path(), &RUNS_A_SECOND);
            let port = free_port();
            config["network"] =
                json!({"mode": "passt", "egress": egress, "publish": published(port)});
            crate::user::give_to_user(directory.path());
            let (child, _tables) = spawn(&config, sub_ids, &[]);
            let output = child.wait_with_output().unwrap();
            let (stdout, stderr) = (
                String::from_utf8_lossy(&output.stdout).into_owned(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            );
            assert_eq!(output.status.code(), Some(0), "`egress` is `{egress}`: {stdout}{stderr}");
            assert!(!stdout.contains("\"warning\""), "standard output is: {stdout}");
        }
    }
}
