//! A guest that lies, hangs or vanishes.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{RunningShim, run, start};

pub(crate) fn send(running: &RunningShim, signal: Signal) {
    kill(Pid::from_raw(running.child.id().cast_signed()), signal).unwrap();
}

#[test]
fn an_exit_without_a_report_is_never_a_success_whatever_the_code() {
    for (step, code) in
        [("exit=0", "guest_lost"), ("exit=1", "vm_failed"), ("exit=42", "vm_failed")]
    {
        let before_hello = run(&[step]);
        assert_eq!(before_hello.ending(), (Some(125), "failed", Some(code)), "{step}");
        let after_start = run(&["connect", "hello", "started=7", step]);
        assert_eq!(after_start.ending(), (Some(125), "failed", Some(code)), "{step}");
    }
}

#[test]
fn a_code_that_a_process_of_the_guest_set_does_not_beat_the_report() {
    let run = run(&["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=42"]);
    assert_eq!(run.ending(), (Some(0), "exited", None));
}

#[test]
fn a_vm_that_hangs_after_the_report_is_ended_with_the_reported_code() {
    let run = run(&["connect", "hello", "started=7", "exited=6", "drained", "wait-ack", "hang"]);
    assert_eq!(run.ending(), (Some(6), "exited", None));
    assert!(run.duration < Duration::from_secs(10), "{:?}", run.duration);
}

#[test]
fn a_guest_that_never_drains_is_ended_with_the_reported_code() {
    let run = run(&["connect", "hello", "started=7", "exited=6", "hang"]);
    assert_eq!(run.ending(), (Some(6), "exited", None));
    assert!(run.duration < Duration::from_secs(25), "{:?}", run.duration);
}

#[test]
fn a_guest_that_is_never_ready_is_a_boot_timeout() {
    for script in
        [&["hang"][..], &["connect", "hello", "hang"], &["connect", "hello", "started=7", "hang"]]
    {
        let run = start(script, |config| config["agent"]["boot_timeout_ms"] = json!(1000)).wait();
        assert_eq!(run.ending(), (Some(125), "failed", Some("boot_timeout")), "{script:?}");
        assert!(run.duration < Duration::from_secs(5), "{:?}", run.duration);
    }
}

#[test]
fn an_abort_of_libkrun_is_seen_in_the_wait_status() {
    let run = run(&["connect", "hello", "abort"]);
    assert_eq!(run.status.signal(), Some(6));
    assert!(run.events.iter().all(|event| event["type"] != "box.stopped"), "{}", run.stdout);
}

#[test]
fn a_guest_that_breaks_the_protocol_is_named() {
    for step in ["garbage", "huge-frame", "hello=1"] {
        let run = run(&["connect", step, "hang"]);
        assert_eq!(run.ending(), (Some(125), "failed", Some("guest_protocol")), "{step}");
        assert!(run.duration < Duration::from_secs(10), "{:?}", run.duration);
    }
}

#[test]
fn a_message_of_an_unknown_kind_is_passed_over() {
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
fn a_second_report_does_not_change_the_first() {
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
fn numbers_out_of_range_are_bounded() {
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
fn control_characters_of_the_guest_do_not_reach_the_events() {
    let run = run(&["connect", "hello", "not-started=3", "wait-ack", "exit=0"]);
    assert_eq!(run.ending(), (Some(125), "failed", Some("workload_setup")));
    assert!(!run.stdout.contains("\\u001b"), "{}", run.stdout);
}

#[test]
fn a_workload_that_cannot_start_ends_the_box_at_once() {
    let run = run(&["connect", "hello", "not-started=1", "wait-ack", "exit=127"]);
    assert_eq!(run.ending(), (Some(127), "failed", Some("workload_not_found")));
    assert!(run.duration < Duration::from_secs(5), "{:?}", run.duration);
}

#[test]
fn an_agent_that_accepts_and_closes_at_first_becomes_ready_later() {
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
    assert!(run.events.iter().any(|event| event["type"] == "agent.ready"), "{}", run.stdout);
}

#[test]
fn an_agent_that_answers_before_the_workload_runs_makes_no_box_ready() {
    let mut script = vec!["connect", "hello", "serve", "sleep-ms=500"];
    script.extend(["started=7", "sleep-ms=500", "exited=0", "drained", "wait-ack", "exit=0"]);
    let run = run(&script);
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let position = |kind| run.events.iter().position(|event| event["type"] == kind).unwrap();
    assert!(position("guest.started") < position("agent.ready"), "{}", run.stdout);
}
