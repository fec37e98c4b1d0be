//! Guests that report wrong values, break the protocol, hang, or end without a report.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{RunningShim, run, start};

/// Sends a signal to the shim.
pub(crate) fn send(running: &RunningShim, signal: Signal) {
    kill(Pid::from_raw(running.child.id().cast_signed()), signal).unwrap();
}

#[test]
fn exit_of_the_vm_without_a_report_is_a_failure_with_any_code() {
    // libkrun exits with 0 in many failures, so only a report proves success.
    for (step, code) in
        [("exit=0", "guest_lost"), ("exit=1", "vm_failed"), ("exit=42", "vm_failed")]
    {
        let before_hello = run(&[step]);
        assert_eq!(
            before_hello.ending(),
            (Some(125), "failed", Some(code)),
            "the step is `{step}`"
        );
        let after_start = run(&["connect", "hello", "started=7", step]);
        assert_eq!(after_start.ending(), (Some(125), "failed", Some(code)), "the step is `{step}`");
    }
}

#[test]
fn reported_exit_code_takes_precedence_over_the_code_of_the_vm() {
    // Any process of the guest can set the code of the VM with an ioctl.
    let run = run(&["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=42"]);
    assert_eq!(run.ending(), (Some(0), "exited", None));
}

#[test]
fn vm_that_hangs_after_the_report_is_ended_with_the_reported_code() {
    let run = run(&["connect", "hello", "started=7", "exited=6", "drained", "wait-ack", "hang"]);
    assert_eq!(run.ending(), (Some(6), "exited", None));
    assert!(run.duration < Duration::from_secs(10), "the box took {:?}", run.duration);
}

#[test]
fn guest_that_never_drains_its_output_is_ended_with_the_reported_code() {
    let run = run(&["connect", "hello", "started=7", "exited=6", "hang"]);
    assert_eq!(run.ending(), (Some(6), "exited", None));
    // The guest has 20 s after the end of its workload.
    assert!(run.duration < Duration::from_secs(25), "the box took {:?}", run.duration);
}

#[test]
fn guest_that_does_not_become_ready_fails_with_a_boot_timeout() {
    for script in
        [&["hang"][..], &["connect", "hello", "hang"], &["connect", "hello", "started=7", "hang"]]
    {
        let run = start(script, |config| config["agent"]["boot_timeout_ms"] = json!(1000)).wait();
        assert_eq!(
            run.ending(),
            (Some(125), "failed", Some("boot_timeout")),
            "the script is {script:?}"
        );
        assert!(run.duration < Duration::from_secs(5), "the box took {:?}", run.duration);
    }
}

#[test]
fn abort_of_libkrun_is_in_the_wait_status_of_the_shim() {
    let run = run(&["connect", "hello", "abort"]);
    assert_eq!(run.status.signal(), Some(6));
    // SIGABRT ends the process at once, so the shim cannot emit its last event.
    let has_no_end = run.events.iter().all(|event| event["type"] != "box.stopped");
    assert!(has_no_end, "an aborted shim emitted `box.stopped`: {}", run.stdout);
}

#[test]
fn guest_that_breaks_the_protocol_fails_with_guest_protocol() {
    for step in ["garbage", "huge-frame", "hello=1"] {
        let run = run(&["connect", step, "hang"]);
        assert_eq!(
            run.ending(),
            (Some(125), "failed", Some("guest_protocol")),
            "the step is `{step}`"
        );
        assert!(run.duration < Duration::from_secs(10), "the box took {:?}", run.duration);
    }
}

#[test]
fn message_of_an_unknown_kind_is_ignored() {
    // A later guest program may send messages that this shim does not have.
    let run = run(&[
        "connect",
        "hello",
        "empty-message",
        "started=7",
        "exited=0",
        "drained",
        "wait-ack",
        "exit=0",
    ]);
    assert_eq!(run.ending(), (Some(0), "exited", None));
}

#[test]
fn second_report_does_not_change_the_ending() {
    let run = run(&[
        "connect",
        "hello",
        "started=7",
        "exited=5",
        "exited=0",
        "signaled=9",
        "drained",
        "wait-ack",
        "exit=0",
    ]);
    assert_eq!(run.ending(), (Some(5), "exited", None));
}

#[test]
fn exit_code_above_255_becomes_255() {
    let run = run(&[
        "connect",
        "hello",
        "started=7",
        "exited=4294967295",
        "drained",
        "wait-ack",
        "exit=0",
    ]);
    assert_eq!(run.ending(), (Some(255), "exited", None));
}

#[test]
fn events_contain_no_control_character_of_the_guest() {
    let run = run(&["connect", "hello", "not-started=3", "wait-ack", "exit=0"]);
    assert_eq!(run.ending(), (Some(125), "failed", Some("workload_setup")));
    // JSON writes the escape character, which the guest sent, as `\u001b`.
    assert!(!run.stdout.contains("\\u001b"), "an event has an escape character: {}", run.stdout);
}

#[test]
fn workload_that_cannot_start_ends_the_box_at_once() {
    let run = run(&["connect", "hello", "not-started=1", "wait-ack", "exit=127"]);
    assert_eq!(run.ending(), (Some(127), "failed", Some("workload_not_found")));
    assert!(run.duration < Duration::from_secs(5), "the box took {:?}", run.duration);
}

#[test]
fn agent_that_closes_its_first_connections_becomes_ready_later() {
    let script = [
        "connect",
        "hello",
        "started=7",
        "accept-and-close",
        "serve",
        "sleep-ms=1000",
        "exited=0",
        "drained",
        "wait-ack",
        "exit=0",
    ];
    let run = run(&script);
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let was_ready = run.events.iter().any(|event| event["type"] == "agent.ready");
    assert!(was_ready, "the agent did not become ready: {}", run.stdout);
}

#[test]
fn box_is_not_ready_before_its_workload_has_started() {
    let mut script = vec!["connect", "hello", "serve", "sleep-ms=500"];
    script.extend(["started=7", "sleep-ms=500", "exited=0", "drained", "wait-ack", "exit=0"]);
    let run = run(&script);
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let position = |kind| run.events.iter().position(|event| event["type"] == kind).unwrap();
    let is_after = position("guest.started") < position("agent.ready");
    assert!(is_after, "the agent was ready before the workload: {}", run.stdout);
}
