//! Compares the system calls that a confined shim makes with those that its filter allows.
//!
//! The shim must make each allowed call, or a list in this file must give the reason for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use a3s_box_vm_tests::{Shim, eventually};

/// Source code of the filter: the calls with conditions, and the lists of the others.
const FILTER: [&str; 2] = [
    include_str!("../../src/confine/seccomp.rs"),
    include_str!("../../src/confine/seccomp/calls.rs"),
];

/// Calls that every box makes all the time. With them in the trace, a box would take minutes.
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

/// Allowed calls that the traced boxes do not make, and the code that makes them elsewhere. File
/// names without a crate are those of `krun-devices` in libkrun 1.19.7.
const NOT_SEEN: [(&str, &str); 26] = [
    ("clock_gettime", "hosts whose vDSO has no clock"),
    ("clone3", "glibc; the first filter makes it fail before strace sees it"),
    ("epoll_pwait", "aarch64, which has no epoll_wait"),
    ("fchmod", "passthrough.rs: the mode of an open file, which Linux guests set by name"),
    ("fstat", "glibc from 2.39 on, instead of newfstatat"),
    ("getcwd", "the backtrace of a panic"),
    ("getgid", "passthrough.rs, if the shim has no CAP_SETGID"),
    ("getpeername", "tsi_stream.rs, for a box with the network `tsi`"),
    ("getppid", "the shim, when it gets the signal for the death of its parent"),
    ("getuid", "passthrough.rs, if the shim has no CAP_SETUID"),
    ("memfd_create", "the journal, for a record that is longer than a datagram"),
    ("mremap", "realloc of a large block in glibc"),
    ("ppoll", "aarch64, which has no poll"),
    ("pread64", "file_traits.rs: one buffer at an offset"),
    ("prlimit64", "glibc, for the stack of the main thread"),
    ("readlink", "the backtrace of a panic"),
    ("readv", "file_traits.rs: several buffers at the file position"),
    ("restart_syscall", "the kernel, after SIGSTOP and SIGCONT"),
    (
        "sched_getaffinity",
        "glibc; for a thread, the first filter makes it fail before strace sees it",
    ),
    ("sendmsg", "the journal, which gets a long record as a file"),
    ("setsockopt", "tsi_stream.rs and net/unixstream.rs, for a box with a network"),
    ("socketpair", "tokio, if another crate of the build enables its feature `signal`"),
    ("unlink", "vmm_config/vsock.rs, for a socket that it has made"),
    ("wait4", "the end of the gate, for a box with the network `passt`; and the fake VM"),
    ("waitid", "the fake VM only"),
    ("writev", "hyper, if it has several buffers"),
];

/// Returns a command that starts the shim under strace, which writes all calls except
/// [`NOT_TRACED`] to `trace`.
fn traced(trace: &Path) -> Command {
    let mut strace = Command::new("strace");
    // With -D, strace is a detached grandchild and the child becomes the shim. The test can then
    // send signals to the shim and read its exit status.
    strace.args(["-D", "-f", "-q", "--seccomp-bpf", "-e", "signal=none", "-e"]);
    strace.arg(format!("trace=!{}", NOT_TRACED.join(","))).arg("-o").arg(trace);
    strace
}

/// Returns the names after `SYS_` in the filter.
fn allowed() -> BTreeSet<String> {
    let names = FILTER.into_iter().flat_map(|source| source.split("SYS_").skip(1)).map(|rest| {
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        rest[..end.unwrap()].to_owned()
    });
    names.collect()
}

/// Counts the calls in a trace by name, beginning after the installation of the last filter.
fn seen(trace: &str) -> BTreeMap<String, usize> {
    let is_filter = |line: &&str| line.contains(" seccomp(") || line.contains("PR_SET_SECCOMP");
    let (before, _) = trace.lines().enumerate().filter(|(_, line)| is_filter(line)).last().unwrap();
    let mut seen = BTreeMap::new();
    for line in trace.lines().skip(before + 1) {
        // A line is `PID name(arguments…`. The end of an interrupted call has a line of its own,
        // `PID <... name resumed>`, which is not counted again.
        let call = line.split_once(' ').map_or("", |(_, call)| call.trim_start());
        if let Some((name, _)) = call.split_once('(')
            && !call.starts_with(['<', '+', '-'])
        {
            *seen.entry(name.to_owned()).or_default() += 1;
        }
    }
    seen
}

/// Runs two traced boxes that use as many features as possible. Returns the number of each call.
fn trace_boxes(directory: &Path) -> BTreeMap<String, usize> {
    // This box fills the cache, so that the traced ones unpack no layer.
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
    let health = directory.join("health");
    let steps = ["lie-ms=3000", "serve-standard", "sleep-ms=2000"];
    let mut shim = Shim::start_workload_by(traced(&health), &steps, |config| {
        config["agent"]["provider"] = json!("image");
        config["agent"]["readiness"] = json!("started");
        config["agent"]["health"] =
            json!({"interval_ms": 100, "timeout_ms": 500, "start_period_ms": 0});
    });
    shim.ends_with(0, "exited", None);
    traces.push((health, shim.child.id()));
    let mut all = BTreeMap::new();
    for (trace, pid) in traces {
        let text = || String::from_utf8_lossy(&std::fs::read(&trace).unwrap()).into_owned();
        let is_end =
            |line: &str| line.starts_with(&format!("{pid} ")) && line.contains("+++ exited");
        // strace may end after the shim, so the trace may still be incomplete.
        eventually("the trace has the end of the shim", || text().lines().any(is_end));
        for (name, count) in seen(&text()) {
            *all.entry(name).or_default() += count;
        }
    }
    all
}

#[test]
fn every_allowed_call_is_made_or_has_a_reason() {
    let directory = tempfile::Builder::new().prefix("t").tempdir().unwrap();
    let seen = trace_boxes(directory.path());
    let names: Vec<String> = seen.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("the shim makes {} calls: {}", seen.len(), names.join(", "));
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
        "allowed calls that are not made and have no reason: {without_reason:?}"
    );
    let stale: Vec<&&str> = known.iter().filter(|name| !allowed.contains(**name)).collect();
    assert!(stale.is_empty(), "calls that have a reason and are not allowed: {stale:?}");
}
