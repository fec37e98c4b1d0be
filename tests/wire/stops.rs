//! The steps of a stop, and a parent that dies.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::faults::send;
use crate::harness::{Run, parse, shim, start};

const IGNORES_ALL: [&str; 4] = ["connect", "hello", "started=7", "hang"];

const DIES_BY_KILL: [&str; 8] =
    ["connect", "hello", "started=7", "wait-kill", "signaled=9", "drained", "wait-ack", "exit=0"];

/// Longer than a test takes to do something to the box.
const LIVES_ON: [&str; 8] =
    ["connect", "hello", "started=7", "sleep-ms=1500", "exited=3", "drained", "wait-ack", "exit=0"];

fn stop_of(run: &Run) -> &Value {
    &run.events.last().unwrap()["stop"]
}

#[test]
fn each_step_that_was_needed_has_its_time_and_the_last_one_is_named() {
    let obeys =
        ["connect", "hello", "started=7", "wait-stop", "exited=3", "drained", "wait-ack", "exit=0"];
    let cases: [(&[&str], &str, usize); 4] = [
        (&["hang"], "before_start", 1),
        (&obeys, "signal", 3),
        (&DIES_BY_KILL, "guest_kill", 4),
        (&IGNORES_ALL, "host_deadline", 3),
    ];
    for (script, ended_by, times) in cases {
        let running = start(script, |config| config["stop"] = json!({"grace_ms": 200}));
        std::thread::sleep(Duration::from_millis(700));
        send(&running, Signal::SIGTERM);
        let run = running.wait();
        let stop = stop_of(&run);
        assert_eq!(
            (&stop["cause"], &stop["ended_by"]),
            (&json!("signal"), &json!(ended_by)),
            "{}",
            run.stdout
        );
        let steps = ["requested_ms", "signaled_ms", "killed_ms", "exited_ms"];
        let found: Vec<u64> = steps.iter().filter_map(|step| stop[step].as_u64()).collect();
        assert!(found.len() == times && found.is_sorted(), "{stop}");
    }
}

#[test]
fn a_workload_that_ignores_its_stop_signal_is_killed_after_the_grace_period() {
    let running = start(&DIES_BY_KILL, |config| config["stop"] = json!({"grace_ms": 300}));
    std::thread::sleep(Duration::from_millis(700));
    send(&running, Signal::SIGTERM);
    let run = running.wait();
    assert_eq!(run.ending(), (Some(137), "stopped", None));
    assert!(run.events.iter().any(|event| event["type"] == "stop.killed"), "{}", run.stdout);
}

#[test]
fn a_second_signal_shortens_the_grace_period() {
    let running = start(&DIES_BY_KILL, |config| config["stop"] = json!({"grace_ms": 60_000}));
    std::thread::sleep(Duration::from_millis(700));
    send(&running, Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    send(&running, Signal::SIGINT);
    let run = running.wait();
    assert_eq!(run.ending(), (Some(137), "stopped", None));
}

#[test]
fn a_stop_during_the_boot_ends_the_box_at_once() {
    let running = start(&["hang"], |_| {});
    std::thread::sleep(Duration::from_millis(700));
    send(&running, Signal::SIGHUP);
    let run = running.wait();
    assert_eq!(run.ending(), (Some(129), "stopped", None));
}

#[test]
fn a_guest_that_ignores_even_the_kill_is_ended() {
    let running = start(&IGNORES_ALL, |config| {
        config["stop"] = json!({"grace_ms": 100});
    });
    std::thread::sleep(Duration::from_millis(700));
    send(&running, Signal::SIGTERM);
    let run = running.wait();
    let (status, reason, error) = run.ending();
    assert_eq!((status, reason), (Some(125), "failed"));
    assert_eq!(error, Some("shutdown_timeout"));
}

#[test]
fn a_third_signal_ends_the_box_at_once() {
    let running = start(&IGNORES_ALL, |config| config["stop"] = json!({"grace_ms": 60_000}));
    std::thread::sleep(Duration::from_millis(700));
    for _ in 0..3 {
        send(&running, Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(100));
    }
    let run = running.wait();
    assert_eq!(run.ending(), (Some(143), "stopped", None));
    assert_eq!(stop_of(&run)["ended_by"], "host_deadline");
    assert!(run.duration < Duration::from_secs(3), "{:?}", run.duration);
}

#[test]
fn an_end_by_itself_tells_of_no_stop() {
    let run = crate::harness::run(&[
        "connect",
        "hello",
        "started=7",
        "exited=0",
        "drained",
        "wait-ack",
        "exit=0",
    ]);
    assert!(stop_of(&run).is_null());
}

#[test]
fn a_report_that_was_sent_right_before_the_machine_ended_counts() {
    for _ in 0..20 {
        let run = crate::harness::run(&["connect", "hello", "started=7", "exited=9", "exit=0"]);
        assert_eq!(run.ending(), (Some(9), "exited", None));
    }
}

/// A supervisor that starts a shim and waits: a shell, which leaves its shim's output alone.
struct Supervisor {
    shell: Child,
    directory: tempfile::TempDir,
}

impl Supervisor {
    fn start(script: &[&str], user: Option<u32>, change: impl FnOnce(&mut Value)) -> Self {
        let directory = tempfile::Builder::new().prefix("p").tempdir().unwrap();
        let mut config = crate::harness::config(directory.path(), script);
        config["stop"] = json!({"grace_ms": 200});
        change(&mut config);
        std::fs::write(directory.path().join("config"), config.to_string()).unwrap();
        let template = shim();
        let mut shell = Command::new("/bin/sh");
        shell.env("A3S_BOX_FAKE_GUEST", env!("CARGO_BIN_EXE_fake-guest"));
        // The second command keeps the shell from becoming the shim.
        shell.args(["-c", r#""$0" --config config >events 2>log; exit"#]);
        shell.arg(template.get_program()).current_dir(directory.path()).stdin(Stdio::null());
        if let Some(user) = user {
            std::os::unix::fs::chown(directory.path(), Some(user), Some(user)).unwrap();
            shell.uid(user).gid(user);
        }
        Self { shell: shell.spawn().unwrap(), directory }
    }

    fn events(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("events")).unwrap_or_default()
    }

    fn wait_for(&self, text: &str) {
        let start = Instant::now();
        while !self.events().contains(text) {
            let log = std::fs::read_to_string(self.directory.path().join("log"));
            assert!(start.elapsed() < Duration::from_secs(20), "{}{log:?}", self.events());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn die(&mut self) {
        self.shell.kill().unwrap();
        self.shell.wait().unwrap();
    }
}

#[test]
fn a_box_ends_with_the_process_that_started_it() {
    let obeys = [
        "connect",
        "hello",
        "started=7",
        "wait-stop",
        "signaled=15",
        "drained",
        "wait-ack",
        "exit=0",
    ];
    // Another user's shim makes a user namespace.
    for user in [None, Some(4242)] {
        let mut supervisor = Supervisor::start(&obeys, user, |_| {});
        supervisor.wait_for("guest.started");
        supervisor.die();
        supervisor.wait_for("box.stopped");
        let events = parse(&supervisor.events());
        let last = events.last().unwrap();
        assert_eq!((&last["reason"], &last["exit_code"]), (&json!("stopped"), &json!(143)));
        assert_eq!(last["stop"]["cause"], "parent_died", "{user:?}");
    }
}

#[test]
fn a_box_of_a_parent_that_dies_during_the_boot_ends_at_once() {
    let mut supervisor = Supervisor::start(&["hang"], None, |_| {});
    supervisor.wait_for("vm.starting");
    supervisor.die();
    supervisor.wait_for("box.stopped");
    let events = parse(&supervisor.events());
    assert_eq!(events.last().unwrap()["stop"]["ended_by"], "before_start");
}

#[test]
fn a_box_that_is_to_outlive_its_parent_does() {
    let mut supervisor = Supervisor::start(&LIVES_ON, None, |config| {
        config["stop"]["die_with_parent"] = json!(false);
    });
    supervisor.wait_for("guest.started");
    supervisor.die();
    supervisor.wait_for("box.stopped");
    let events = parse(&supervisor.events());
    let last = events.last().unwrap();
    assert_eq!((&last["reason"], &last["exit_code"]), (&json!("exited"), &json!(3)));
}

#[test]
fn the_end_of_a_thread_of_the_parent_is_not_the_parents() {
    let running = std::thread::spawn(move || start(&LIVES_ON, |_| {})).join().unwrap();
    assert_eq!(running.wait().ending(), (Some(3), "exited", None));
}

#[test]
fn a_parent_that_has_died_already_is_seen_where_it_said_who_it_is() {
    let directory = tempfile::Builder::new().prefix("p").tempdir().unwrap();
    let config = crate::harness::config(directory.path(), &["hang"]);
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let mut child = shim().args(["--parent", &gone.id().to_string()]).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(parse(&text).last().unwrap()["stop"]["cause"], "parent_died");
}

#[test]
fn the_signal_of_a_parents_end_from_somebody_else_means_nothing() {
    let running = start(&LIVES_ON, |_| {});
    std::thread::sleep(Duration::from_millis(400));
    kill(Pid::from_raw(running.child.id().cast_signed()), Signal::SIGUSR2).unwrap();
    assert_eq!(running.wait().ending(), (Some(3), "exited", None));
}
