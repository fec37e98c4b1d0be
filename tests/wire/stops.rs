//! The steps of a stop, and the death of the parent as a stop request.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::faults::send;
use crate::harness::{Run, parse, shim, start};

/// Script of a guest that ignores the messages to stop and to kill its workload.
const IGNORES_ALL: [&str; 4] = ["connect", "hello", "started=7", "hang"];

/// Script of a guest whose workload ignores its stop signal and is killed by SIGKILL.
const DIES_BY_KILL: [&str; 8] =
    ["connect", "hello", "started=7", "wait-kill", "signaled=9", "drained", "wait-ack", "exit=0"];

/// Script of a workload that exits by itself after 1.5 s. That is longer than any test takes to
/// send its signal.
const EXITS_LATER: [&str; 8] =
    ["connect", "hello", "started=7", "sleep-ms=1500", "exited=3", "drained", "wait-ack", "exit=0"];

/// Returns the stop progress in the last event. It is null if the box was not stopped.
fn stop_progress(run: &Run) -> &Value {
    &run.events.last().unwrap()["stop"]
}

#[test]
fn stop_progress_has_the_time_of_each_step_and_names_the_last_one() {
    let obeys =
        ["connect", "hello", "started=7", "wait-stop", "exited=3", "drained", "wait-ack", "exit=0"];
    // The script, the step that ends the box, and the number of steps with a time.
    let cases: [(&[&str], &str, usize); 4] = [
        (&["hang"], "before_start", 1),
        (&obeys, "signal", 3),
        (&DIES_BY_KILL, "guest_kill", 4),
        (&IGNORES_ALL, "host_deadline", 3),
    ];
    for (script, ended_by, times) in cases {
        let running = start(script, |config| config["stop"] = json!({"grace_ms": 200}));
        // By then the guest has played its script as far as it goes without a stop request.
        std::thread::sleep(Duration::from_millis(700));
        send(&running, Signal::SIGTERM);
        let run = running.wait();
        let stop = stop_progress(&run);
        assert_eq!(
            (&stop["cause"], &stop["ended_by"]),
            (&json!("signal"), &json!(ended_by)),
            "the events are: {}",
            run.stdout
        );
        let steps = ["requested_ms", "signaled_ms", "killed_ms", "exited_ms"];
        let found: Vec<u64> = steps.iter().filter_map(|step| stop[step].as_u64()).collect();
        assert!(found.len() == times && found.is_sorted(), "the times are wrong: {stop}");
    }
}

#[test]
fn workload_that_ignores_its_stop_signal_is_killed_after_the_grace_period() {
    let running = start(&DIES_BY_KILL, |config| config["stop"] = json!({"grace_ms": 300}));
    std::thread::sleep(Duration::from_millis(700));
    send(&running, Signal::SIGTERM);
    let run = running.wait();
    assert_eq!(run.ending(), (Some(137), "stopped", None));
    let was_killed = run.events.iter().any(|event| event["type"] == "stop.killed");
    assert!(was_killed, "there is no event `stop.killed`: {}", run.stdout);
}

#[test]
fn second_signal_ends_the_grace_period() {
    let running = start(&DIES_BY_KILL, |config| config["stop"] = json!({"grace_ms": 60_000}));
    std::thread::sleep(Duration::from_millis(700));
    send(&running, Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    send(&running, Signal::SIGINT);
    let run = running.wait();
    assert_eq!(run.ending(), (Some(137), "stopped", None));
}

#[test]
fn stop_request_during_the_boot_ends_the_box_at_once() {
    let running = start(&["hang"], |_| {});
    std::thread::sleep(Duration::from_millis(700));
    send(&running, Signal::SIGHUP);
    let run = running.wait();
    assert_eq!(run.ending(), (Some(129), "stopped", None));
}

#[test]
fn guest_that_ignores_the_kill_message_fails_with_a_shutdown_timeout() {
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
fn third_signal_ends_the_box_at_once() {
    let running = start(&IGNORES_ALL, |config| config["stop"] = json!({"grace_ms": 60_000}));
    std::thread::sleep(Duration::from_millis(700));
    for _ in 0..3 {
        send(&running, Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(100));
    }
    let run = running.wait();
    assert_eq!(run.ending(), (Some(143), "stopped", None));
    assert_eq!(stop_progress(&run)["ended_by"], "host_deadline");
    assert!(run.duration < Duration::from_secs(3), "the box took {:?}", run.duration);
}

#[test]
fn box_that_ends_by_itself_has_no_stop_progress() {
    let run = crate::harness::run(&[
        "connect",
        "hello",
        "started=7",
        "exited=0",
        "drained",
        "wait-ack",
        "exit=0",
    ]);
    assert!(stop_progress(&run).is_null());
}

#[test]
fn report_that_arrives_right_before_the_vm_ends_counts() {
    // The order in which the shim reads the report and the end of the VM varies from run to run.
    for _ in 0..20 {
        let run = crate::harness::run(&["connect", "hello", "started=7", "exited=9", "exit=0"]);
        assert_eq!(run.ending(), (Some(9), "exited", None));
    }
}

/// A supervisor, which is a shell that starts a shim and waits for it.
///
/// The shim writes its events to a file, so that they survive the death of the shell.
struct Supervisor {
    shell: Child,
    directory: tempfile::TempDir,
}

impl Supervisor {
    /// Starts the shell as `user`, or as root without one. Its shim has a guest that plays
    /// `script`.
    fn start(script: &[&str], user: Option<u32>, change: impl FnOnce(&mut Value)) -> Self {
        let directory = tempfile::Builder::new().prefix("p").tempdir().unwrap();
        let mut config = crate::harness::config(directory.path(), script);
        config["stop"] = json!({"grace_ms": 200});
        change(&mut config);
        std::fs::write(directory.path().join("config"), config.to_string()).unwrap();
        let template = shim();
        let mut shell = Command::new("/bin/sh");
        shell.env("A3S_BOX_FAKE_GUEST", env!("CARGO_BIN_EXE_fake-guest"));
        // A shell may execute its last command without a fork, and would then become the shim. The
        // second command, `exit`, prevents that.
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

    /// Waits until the events contain `text`.
    fn wait_for(&self, text: &str) {
        let start = Instant::now();
        while !self.events().contains(text) {
            let log = std::fs::read_to_string(self.directory.path().join("log"));
            let events = self.events();
            assert!(start.elapsed() < Duration::from_secs(20), "no `{text}` in {events}{log:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the shell and reaps it. The shim then has another parent.
    fn kill(&mut self) {
        self.shell.kill().unwrap();
        self.shell.wait().unwrap();
    }
}

#[test]
fn box_is_stopped_when_its_parent_dies() {
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
    // The shim of an ordinary user enters a user namespace, and the request for the parent-death
    // signal must survive that.
    for user in [None, Some(4242)] {
        let mut supervisor = Supervisor::start(&obeys, user, |_| {});
        supervisor.wait_for("guest.started");
        supervisor.kill();
        supervisor.wait_for("box.stopped");
        let events = parse(&supervisor.events());
        let last = events.last().unwrap();
        assert_eq!((&last["reason"], &last["exit_code"]), (&json!("stopped"), &json!(143)));
        assert_eq!(last["stop"]["cause"], "parent_died", "the user is {user:?}");
    }
}

#[test]
fn box_ends_at_once_when_its_parent_dies_during_the_boot() {
    let mut supervisor = Supervisor::start(&["hang"], None, |_| {});
    supervisor.wait_for("vm.starting");
    supervisor.kill();
    supervisor.wait_for("box.stopped");
    let events = parse(&supervisor.events());
    assert_eq!(events.last().unwrap()["stop"]["ended_by"], "before_start");
}

#[test]
fn box_outlives_its_parent_if_configured() {
    let mut supervisor = Supervisor::start(&EXITS_LATER, None, |config| {
        config["stop"]["die_with_parent"] = json!(false);
    });
    supervisor.wait_for("guest.started");
    supervisor.kill();
    supervisor.wait_for("box.stopped");
    let events = parse(&supervisor.events());
    let last = events.last().unwrap();
    assert_eq!((&last["reason"], &last["exit_code"]), (&json!("exited"), &json!(3)));
}

#[test]
fn end_of_the_thread_that_started_the_shim_does_not_stop_the_box() {
    // The kernel sends the parent-death signal when the thread that forked the shim ends
    // (prctl(2)).
    let running = std::thread::spawn(move || start(&EXITS_LATER, |_| {})).join().unwrap();
    assert_eq!(running.wait().ending(), (Some(3), "exited", None));
}

#[test]
fn death_of_the_parent_before_the_start_stops_the_box_if_its_pid_is_given() {
    let directory = tempfile::Builder::new().prefix("p").tempdir().unwrap();
    let config = crate::harness::config(directory.path(), &["hang"]);
    // After the wait, no process has this pid.
    let mut dead_parent = Command::new("true").spawn().unwrap();
    dead_parent.wait().unwrap();
    let mut child = shim().args(["--parent", &dead_parent.id().to_string()]).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(parse(&text).last().unwrap()["stop"]["cause"], "parent_died");
}

#[test]
fn parent_death_signal_from_another_process_is_ignored() {
    let running = start(&EXITS_LATER, |_| {});
    std::thread::sleep(Duration::from_millis(400));
    kill(Pid::from_raw(running.child.id().cast_signed()), Signal::SIGUSR2).unwrap();
    assert_eq!(running.wait().ending(), (Some(3), "exited", None));
}
