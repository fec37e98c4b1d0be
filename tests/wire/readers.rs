//! Standard output: slow, gone, and nobody else's.

use std::time::Duration;

use serde_json::json;

use crate::harness::{parse, run, start};

#[test]
fn a_library_that_prints_does_not_reach_the_stream() {
    let run = run(&["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"]);
    assert!(run.stderr.contains("a library prints to standard output"), "{}", run.stderr);
    assert!(!run.stdout.contains("a library prints"), "{}", run.stdout);
}

#[test]
fn a_reader_that_is_gone_does_not_end_the_box() {
    let script = [
        "connect",
        "hello",
        "started=7",
        "sleep-ms=300",
        "exited=4",
        "drained",
        "wait-ack",
        "exit=0",
    ];
    let mut playing = start(&script, |_| {});
    drop(playing.child.stdout.take());
    assert_eq!(playing.end().status.code(), Some(4));
}

#[test]
fn a_reader_that_comes_late_still_gets_everything() {
    let script = ["connect", "hello", "started=7", "exited=4", "drained", "wait-ack", "exit=0"];
    let playing = start(&script, |_| {});
    std::thread::sleep(Duration::from_secs(1));
    let run = playing.end();
    assert_eq!(run.ending(), (Some(4), "exited", None));
}

#[test]
fn output_of_the_workload_is_complete_and_not_in_the_stream() {
    let script = [
        "connect",
        "hello",
        "started=7",
        "print=3000000",
        "exited=0",
        "drained",
        "wait-ack",
        "exit=0",
    ];
    let run = run(&script);
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let console = std::fs::read(run.folder.path().join("s/golden/console.log")).unwrap();
    assert_eq!(console.len(), 3_000_000);
}

#[test]
fn events_go_to_a_file_as_well_as_to_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let events = folder.path().join("events");
    let config = folder.path().join("config.json");
    let script = ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];
    std::fs::write(&config, crate::harness::config(folder.path(), &script).to_string()).unwrap();
    let status = crate::harness::shim()
        .arg("--config")
        .arg(&config)
        .stdout(std::fs::File::create(&events).unwrap())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    let events = parse(&std::fs::read_to_string(events).unwrap());
    assert_eq!(events.last().unwrap()["reason"], json!("exited"));
}
