//! Endings by the stop signal, by SIGKILL after the grace period, and by SIGKILL of the shim.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use a3s_box_vm_tests::{Shim, config, eventually};

fn pid(shim: &Shim) -> Pid {
    Pid::from_raw(shim.child.id().cast_signed())
}

#[test]
fn sigterm_to_the_shim_sends_the_stop_signal_to_the_workload() {
    let script = "trap 'echo got it; exit 3' INT; echo ready; while :; do sleep 0.1; done";
    let mut shim = Shim::start_with(&json!({"args": ["/bin/sh", "-c", script]}), |config| {
        config["stop"] = json!({"signal": "SIGINT", "grace_ms": 30_000});
    });
    eventually("the shell has set its trap", || shim.console() == b"ready\n");
    kill(pid(&shim), Signal::SIGTERM).unwrap();
    shim.ends_with(3, "stopped", None);
    assert_eq!(shim.console(), b"ready\ngot it\n");
}

#[test]
fn real_time_signal_reaches_the_workload() {
    // 37 is `SIGRTMIN+3`, with which systemd is asked to halt.
    let script = "trap 'echo got it; exit 3' 37; echo ready; while :; do sleep 0.1; done";
    let mut shim = Shim::start_with(&json!({"args": ["/bin/sh", "-c", script]}), |config| {
        config["stop"] = json!({"signal": "SIGRTMIN+3", "grace_ms": 30_000});
    });
    eventually("the shell has set its trap", || shim.console() == b"ready\n");
    kill(pid(&shim), Signal::SIGTERM).unwrap();
    shim.ends_with(3, "stopped", None);
    assert_eq!(shim.console(), b"ready\ngot it\n");
}

#[test]
fn a_workload_that_ignores_the_signal_is_killed_after_the_grace_period() {
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let mut shim = Shim::start_with(&json!({"args": ["/bin/sh", "-c", script]}), |config| {
        config["stop"] = json!({"grace_ms": 1000});
    });
    eventually("the shell has set its trap", || shim.console() == b"ready\n");
    kill(pid(&shim), Signal::SIGTERM).unwrap();
    let requested_ms = shim.wait_for("stop.requested")["elapsed_ms"].as_u64().unwrap();
    let killed_ms = shim.wait_for("stop.killed")["elapsed_ms"].as_u64().unwrap();
    assert!(killed_ms - requested_ms >= 1000, "{shim}");
    shim.ends_with(137, "stopped", None);
}

#[test]
fn sigkill_of_the_shim_leaves_nothing_and_the_same_id_starts_at_once() {
    let mut shim = Shim::start(&json!({"args": ["sleep", "1000"]}));
    shim.wait_for("agent.ready");
    let mounts = || std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts().contains("/s/test/root"), "the root is mounted in the test's namespace");
    shim.child.kill().unwrap();
    shim.child.wait().unwrap();
    let pid = shim.child.id();
    eventually("no thread of the shim is left", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });

    let directory = shim.into_directory();
    let again = config(directory.path(), &json!({"args": ["/bin/sh", "-c", "exit 4"]}));
    Shim::spawn(directory, &again).ends_with(4, "exited", None);
}

#[test]
fn two_live_boxes_cannot_have_the_same_id() {
    let mut first = Shim::start(&json!({"args": ["sleep", "1000"]}));
    first.wait_for("agent.ready");
    let config =
        config(first.state().parent().unwrap().parent().unwrap(), &json!({"args": ["true"]}));
    let directory = tempfile::tempdir().unwrap();
    Shim::spawn(directory, &config).ends_with(125, "failed", Some("id_in_use"));
    kill(pid(&first), Signal::SIGTERM).unwrap();
    first.ends_with(143, "stopped", None);
}
