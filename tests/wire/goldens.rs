//! Golden event streams: one for each kind of ending. `UPDATE_GOLDEN=1` rewrites the files.

use serde_json::{Value, json};

use crate::harness::{Run, run, start};

/// Compares the events with `goldens/<name>.ndjson`, after [`replace_volatile`].
fn assert_matches_golden(name: &str, run: &Run) {
    let mut found = String::new();
    for event in &run.events {
        let mut event = event.clone();
        replace_volatile(&mut event);
        found += &format!("{event}\n");
    }
    let path = format!("{}/tests/wire/goldens/{name}.ndjson", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, expected,
        "the events differ from {path}: run the tests with UPDATE_GOLDEN=1, then review\n{}",
        run.stderr
    );
}

/// Replaces the values that differ between two runs or two hosts by constants.
fn replace_volatile(event: &mut Value) {
    let Value::Object(fields) = event else { return };
    for (name, value) in fields {
        match (name.as_str(), &*value) {
            ("time", _) => *value = json!("TIME"),
            // The layers of the confinement depend on the host kernel.
            ("layers", Value::Array(_)) => *value = json!("LAYERS"),
            ("version", _) => *value = json!("VERSION"),
            ("pid", _) => *value = json!("PID"),
            // The grace period comes from the config and not from a clock.
            ("grace_ms", _) => {}
            (_, Value::Number(_)) if name.ends_with("_ms") => *value = json!("MS"),
            (_, Value::Object(_)) => replace_volatile(value),
            _ => {}
        }
    }
}

#[test]
fn events_of_a_successful_workload_match_the_golden() {
    let run = run(&[
        "connect",
        "hello",
        "serve",
        "started=7",
        "sleep-ms=500",
        "exited=0",
        "drained",
        "wait-ack",
        "exit=0",
    ]);
    assert_eq!(run.ending(), (Some(0), "exited", None));
    assert_matches_golden("success", &run);
}

/// The workload exits before the first health check, which is no failure.
#[test]
fn events_of_a_workload_without_a_health_check_match_the_golden() {
    let run = run(&["connect", "hello", "started=7", "exited=3", "drained", "wait-ack", "exit=0"]);
    assert_eq!(run.ending(), (Some(3), "exited", None));
    assert_matches_golden("short", &run);
}

#[test]
fn events_of_a_killed_workload_match_the_golden() {
    let run =
        run(&["connect", "hello", "started=7", "signaled=9", "drained", "wait-ack", "exit=137"]);
    assert_eq!(run.ending(), (Some(137), "exited", None));
    assert_matches_golden("signal", &run);
}

#[test]
fn events_of_a_missing_workload_match_the_golden() {
    let run = run(&["connect", "hello", "not-started=1", "wait-ack", "exit=127"]);
    assert_eq!(run.ending(), (Some(127), "failed", Some("workload_not_found")));
    assert_matches_golden("not_found", &run);
}

#[test]
fn events_of_a_guest_without_a_report_match_the_golden() {
    let run = run(&["connect", "hello", "serve", "started=7", "sleep-ms=500", "exit=0"]);
    assert_eq!(run.ending(), (Some(125), "failed", Some("guest_lost")));
    assert_matches_golden("guest_lost", &run);
}

#[test]
fn events_of_a_stopped_box_match_the_golden() {
    let script = [
        "connect",
        "hello",
        "serve",
        "started=7",
        "wait-stop",
        "signaled=15",
        "drained",
        "wait-ack",
        "exit=0",
    ];
    let running = start(&script, |_| {});
    wait_for_agent(&running);
    crate::faults::send(&running, nix::sys::signal::Signal::SIGTERM);
    let run = running.wait();
    assert_eq!(run.ending(), (Some(143), "stopped", None));
    assert_matches_golden("stopped", &run);
}

#[test]
fn events_of_a_box_with_a_timeout_match_the_golden() {
    let script = [
        "connect",
        "hello",
        "serve",
        "started=7",
        "wait-stop",
        "signaled=15",
        "drained",
        "wait-ack",
        "exit=0",
    ];
    let run = start(&script, |config| config["resources"] = json!({"timeout_ms": 1000})).wait();
    assert_eq!(run.ending(), (Some(124), "timeout", None));
    assert_matches_golden("timeout", &run);
}

#[test]
fn events_of_an_invalid_config_match_the_golden() {
    let run =
        start(&[], |config| config["mounts"] = json!([{"type": "tmpfs", "target": "a"}])).wait();
    assert_eq!(run.ending(), (Some(125), "failed", Some("config_invalid")));
    assert!(
        !run.directory.path().join("s").exists(),
        "an invalid config must leave no state directory"
    );
    assert_matches_golden("bad_config", &run);
}

/// Waits until the agent has made its socket, and half a second longer, in which the box becomes
/// ready.
fn wait_for_agent(running: &crate::harness::RunningShim) {
    let start = std::time::Instant::now();
    while !running.box_path("agent.sock").exists() {
        assert!(start.elapsed().as_secs() < 10, "the agent made no socket within 10 s");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
}
