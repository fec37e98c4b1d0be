//! The system calls that a confined shim makes, beside those that its filter allows: none is allowed that
//! nothing needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use a3s_box_vm_tests::{Shim, eventually};

/// The filter's source: its lists are what is allowed.
const FILTER: &str = include_str!("../../src/confine/seccomp.rs");

/// Calls that every box makes all the time: traced as well, a box would take minutes.
const NOT_TRACED: [&str; 10] = [
    "epoll_ctl",
    "epoll_wait",
    "futex",
    "ioctl",
    "madvise",
    "read",
    "recvfrom",
    "sched_yield",
    "sendto",
    "write",
];

/// Calls that are allowed and not seen here, and who makes them. Files are libkrun's, 1.19.7
/// (`krun-devices`), if nothing else is said.
const NOT_SEEN: [(&str, &str); 25] = [
    ("clock_gettime", "where the vDSO has no clock"),
    ("clone3", "the first filter answers it, before a tracer sees it"),
    ("epoll_pwait", "where there is no epoll_wait: aarch64"),
    ("fchmod", "passthrough.rs: an open file's mode, which Linux sends by name"),
    ("fstat", "glibc from 2.39 on, instead of newfstatat"),
    ("getcwd", "a panic's backtrace"),
    ("getgid", "passthrough.rs, where the shim has no CAP_SETGID"),
    ("getpeername", "tsi_stream.rs, for a box with the network `tsi`"),
    ("getppid", "a signal that says that the parent has ended"),
    ("getuid", "passthrough.rs, where the shim has no CAP_SETUID"),
    ("memfd_create", "the journal, for a record that is longer than a datagram"),
    ("mremap", "glibc's realloc of a large block"),
    ("ppoll", "where there is no poll: aarch64"),
    ("pread64", "file_traits.rs: one buffer, at a place"),
    ("prlimit64", "glibc, for the stack of the main thread"),
    ("readlink", "a panic's backtrace"),
    ("readv", "file_traits.rs: several buffers, in turn"),
    ("restart_syscall", "the kernel, after a stop and a continuation"),
    ("sendmsg", "the journal, with a file for a long record"),
    ("setsockopt", "vsock/unix.rs, and network devices"),
    ("socketpair", "tokio, where another crate of the same build asks for its feature `signal`"),
    ("unlink", "vmm_config/vsock.rs, for a socket that it has made"),
    ("wait4", "the gate's end, for a box with the network `passt`; and the fake VM"),
    ("waitid", "the fake VM only"),
    ("writev", "hyper, when it has several buffers"),
];

/// Starts the shim, and has its other calls written down.
fn traced(trace: &Path) -> Command {
    let mut strace = Command::new("strace");
    // The tracer is not the parent: signals and status are the shim's.
    strace.args(["-D", "-f", "-q", "--seccomp-bpf", "-e", "signal=none", "-e"]);
    strace.arg(format!("trace=!{}", NOT_TRACED.join(","))).arg("-o").arg(trace);
    strace
}

/// Names after `SYS_` in the lists of the filter.
fn allowed() -> BTreeSet<String> {
    let (_, lists) = FILTER.split_once("const MEMORY").unwrap();
    let names = lists.split("SYS_").skip(1).map(|rest| {
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        rest[..end.unwrap()].to_owned()
    });
    names.collect()
}

/// Calls in a trace, after the last filter was taken on, and how often each was made.
fn seen(trace: &str) -> BTreeMap<String, usize> {
    let is_filter = |line: &&str| line.contains(" seccomp(") || line.contains("PR_SET_SECCOMP");
    let (before, _) = trace.lines().enumerate().filter(|(_, line)| is_filter(line)).last().unwrap();
    let mut seen = BTreeMap::new();
    for line in trace.lines().skip(before + 1) {
        // `PID name(arguments…`; what was interrupted goes on in a line without a name.
        let call = line.split_once(' ').map_or("", |(_, call)| call.trim_start());
        if let Some((name, _)) = call.split_once('(')
            && !call.starts_with(['<', '+', '-'])
        {
            *seen.entry(name.to_owned()).or_default() += 1;
        }
    }
    seen
}

/// Boxes that together do all that boxes can do.
fn trace_boxes(directory: &Path) -> BTreeMap<String, usize> {
    // So that no unpacking is traced.
    Shim::start(&json!({"args": ["true"]})).ends_with(0, "exited", None);
    let own = directory.join("own");
    std::fs::create_dir(&own).unwrap();
    let busy = [
        "use-files=/own/all",
        "use-files=/all",
        "print-mib=3",
        "notify=READY=1",
        "another-control",
        "sleep-ms=100000",
    ];
    let trace = directory.join("busy");
    let mut shim = Shim::start_workload_by(traced(&trace), &busy, |config| {
        let share = json!({"type": "virtiofs", "source": own, "target": "/own"});
        config["mounts"].as_array_mut().unwrap().push(share);
        config["agent"]["readiness"] = json!("notify");
        config["console"] = json!({"max_mib": 1});
        config["events"] = json!({"metrics_interval_ms": 2000, "file": directory.join("events"), "file_max_kib": 64});
    });
    shim.wait_for("workload.notified");
    std::thread::sleep(Duration::from_secs(1));
    shim.send(Signal::SIGTERM);
    shim.ends_with(143, "stopped", None);
    let mut traces = vec![(trace, shim.child.id())];
    let lying = directory.join("lying");
    let steps = ["lie-ms=3000", "serve-standard", "sleep-ms=2000"];
    let mut shim = Shim::start_workload_by(traced(&lying), &steps, |config| {
        config["agent"]["provider"] = json!("image");
        config["agent"]["readiness"] = json!("started");
        config["agent"]["health"] =
            json!({"interval_ms": 100, "timeout_ms": 500, "start_period_ms": 0});
    });
    shim.ends_with(0, "exited", None);
    traces.push((lying, shim.child.id()));
    let mut all = BTreeMap::new();
    for (trace, pid) in traces {
        let text = || String::from_utf8_lossy(&std::fs::read(&trace).unwrap()).into_owned();
        let is_end =
            |line: &str| line.starts_with(&format!("{pid} ")) && line.contains("+++ exited");
        eventually("the tracer has written the end", || text().lines().any(is_end));
        for (name, count) in seen(&text()) {
            *all.entry(name).or_default() += count;
        }
    }
    all
}

#[test]
fn every_call_that_is_allowed_is_made_or_has_a_reason() {
    let directory = tempfile::Builder::new().prefix("t").tempdir().unwrap();
    let seen = trace_boxes(directory.path());
    let names: Vec<String> = seen.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("{} calls are made: {}", seen.len(), names.join(", "));
    let allowed = allowed();
    let known: BTreeSet<&str> = NOT_SEEN.iter().map(|(name, _)| *name).collect();
    let without_reason: Vec<&String> = allowed
        .iter()
        .filter(|name| {
            !seen.contains_key(*name)
                && !known.contains(name.as_str())
                && !NOT_TRACED.contains(&name.as_str())
        })
        .collect();
    assert!(
        without_reason.is_empty(),
        "allowed, and neither made nor explained: {without_reason:?}"
    );
    let stale: Vec<&&str> = known.iter().filter(|name| !allowed.contains(**name)).collect();
    assert!(stale.is_empty(), "explained, and not allowed: {stale:?}");
}
