//! The whole event stream of each kind of end. `UPDATE_GOLDEN=1` rewrites the files.

use serde_json::{Value, json};

use crate::harness::{Run, run, start};

/// Compares the stream with `goldens/<name>.ndjson`, with what changes from run to run replaced.
fn check(name: &str, run: &Run) {
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
        "{path}: run the tests with UPDATE_GOLDEN=1, then review\n{}",
        run.stderr
    );
}

fn replace_volatile(event: &mut Value) {
    let Value::Object(fields) = event else { return };
    for (name, value) in fields {
        match (name.as_str(), &*value) {
            ("time", _) => *value = json!("TIME"),
            // What the kernel has of it is not the same everywhere.
            ("layers", Value::Array(_)) => *value = json!("LAYERS"),
            ("version", _) => *value = json!("VERSION"),
            ("pid", _) => *value = json!("PID"),
            ("grace_ms", _) => {}
            (_, Value::Number(_)) if name.ends_with("_ms") => *value = json!("MS"),
            (_, Value::Object(_)) => replace_volatile(value),
            _ => {}
        }
    }
}

#[test]
fn success() {
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
    check("success", &run);
}

#[test]
fn a_short_command_that_ends_before_the_first_health_check_is_no_failure() {
    let run = run(&["connect", "hello", "started=7", "exited=3", "drained", "wait-ack", "exit=0"]);
    assert_eq!(run.ending(), (Some(3), "exited", None));
    check("short", &run);
}

#[test]
fn death_by_signal() {
    let run =
        run(&["connect", "hello", "started=7", "signaled=9", "drained", "wait-ack", "exit=137"]);
    assert_eq!(run.ending(), (Some(137), "exited", None));
    check("signal", &run);
}

#[test]
fn not_found() {
    let run = run(&["connect", "hello", "not-started=1", "wait-ack", "exit=127"]);
    assert_eq!(run.ending(), (Some(127), "failed", Some("workload_not_found")));
    check("not_found", &run);
}

#[test]
fn guest_lost() {
    let run = run(&["connect", "hello", "serve", "started=7", "sleep-ms=500", "exit=0"]);
    assert_eq!(run.ending(), (Some(125), "failed", Some("guest_lost")));
    check("guest_lost", &run);
}

#[test]
fn stopped_by_a_signal_to_the_shim() {
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
    check("stopped", &run);
}

#[test]
fn timeout() {
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
    check("timeout", &run);
}

#[test]
fn bad_config() {
    let run =
        start(&[], |config| config["mounts"] = json!([{"type": "tmpfs", "target": "a"}])).wait();
    assert_eq!(run.ending(), (Some(125), "failed", Some("config_invalid")));
    assert!(!run.directory.path().join("s").exists(), "no side effect");
    check("bad_config", &run);
}

/// The agent's socket appears with it; a moment later the box is ready.
fn wait_for_agent(running: &crate::harness::RunningShim) {
    let start = std::time::Instant::now();
    while !running.box_path("agent.sock").exists() {
        assert!(start.elapsed().as_secs() < 10);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
}
