//! Starts a shim with a fake guest, waits for its end, and keeps its events and its log.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::wire_types;

/// Time after which a test kills the shim and fails. The shim itself gives a guest up to 20 s to
/// shut down, so a shim that works ends earlier.
const END_TIMEOUT: Duration = Duration::from_secs(40);

/// Returns a config whose fake guest plays `script`, with the state and the cache directory below
/// `directory`.
///
/// With an empty script the config has no workload.
pub(crate) fn config(directory: &Path, script: &[&str]) -> Value {
    let mut config = json!({
        "id": "golden",
        "agent": {"boot_timeout_ms": 5000},
        "paths": {
            "state_dir": directory.join("s"),
            "cache_dir": directory.join("c"),
            // The shim reads this file as the guest program, but the fake VM never runs it.
            "guest": "/bin/true",
        },
    });
    if !script.is_empty() {
        config["process"] = json!({"args": script});
    }
    config
}

/// Returns a command that runs the shim, with the path of the fake guest in its environment and all
/// standard streams as pipes.
pub(crate) fn shim() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_a3s-box-shim"));
    command.env("A3S_BOX_FAKE_GUEST", env!("CARGO_BIN_EXE_fake-guest"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Returns a command that runs the shim by `wrapper`, which gets the path of the shim as its last
/// argument.
pub(crate) fn wrapped_shim(mut wrapper: Command) -> Command {
    let shim = shim();
    wrapper.arg(shim.get_program());
    wrapper.envs(shim.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapper.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    wrapper
}

/// Runs the shim with these arguments and this standard input, and returns its output.
pub(crate) fn run_shim(arguments: &[&str], stdin: &[u8]) -> Output {
    let mut child = shim().args(arguments).spawn().unwrap();
    // A shim that does not read its input may have exited, and then the write fails with EPIPE.
    let _ignored = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

/// A shim that has ended, and its output.
pub(crate) struct Run {
    pub(crate) status: ExitStatus,
    pub(crate) events: Vec<Value>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Time from the start of the shim until a test saw its end.
    pub(crate) duration: Duration,
    /// Holds the state and the cache directory, which are removed with this value.
    pub(crate) directory: tempfile::TempDir,
}

/// A shim that runs with a fake guest.
pub(crate) struct RunningShim {
    pub(crate) child: Child,
    directory: tempfile::TempDir,
    start: Instant,
}

/// Starts a shim whose guest plays `script`. `change` can edit the config before the shim reads it.
pub(crate) fn start(script: &[&str], change: impl FnOnce(&mut Value)) -> RunningShim {
    start_with(shim(), script, change)
}

/// Starts a shim as [`start`] does, but by `command`.
pub(crate) fn start_with(
    mut command: Command,
    script: &[&str],
    change: impl FnOnce(&mut Value),
) -> RunningShim {
    let directory = tempfile::Builder::new().prefix("w").tempdir().unwrap();
    let mut config = config(directory.path(), script);
    change(&mut config);
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    // A shim that refuses to start may exit before it has read the whole config.
    let _ignored = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    RunningShim { child, directory, start }
}

/// Runs a shim whose guest plays `script` until the shim ends.
pub(crate) fn run(script: &[&str]) -> Run {
    start(script, |_| {}).wait()
}

impl RunningShim {
    /// Returns the process id of the shim.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Returns the path of a file in the box directory.
    pub(crate) fn box_path(&self, name: &str) -> PathBuf {
        self.directory.path().join("s/golden").join(name)
    }

    /// Reads standard output until an event of type `kind`, and closes it. The shim goes on without
    /// a reader.
    pub(crate) fn wait_for(&mut self, kind: &str) {
        let mut lines = BufReader::new(self.child.stdout.take().unwrap()).lines();
        let text = format!("\"type\":\"{kind}\"");
        let is_found = lines.any(|line| line.unwrap().contains(&text));
        assert!(is_found, "the shim ended without the event `{kind}`");
    }

    /// Waits until the shim ends, and checks the shape of its events.
    ///
    /// A test may have taken standard output out of `child`; the run then has no events.
    pub(crate) fn wait(mut self) -> Run {
        // Threads read both pipes while the shim runs. Otherwise a full pipe would delay its
        // output.
        let mut stderr_pipe = self.child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            stderr_pipe.read_to_string(&mut text).unwrap();
            text
        });
        let mut stdout_pipe = self.child.stdout.take();
        let stdout = std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(pipe) = &mut stdout_pipe {
                pipe.read_to_string(&mut text).unwrap();
            }
            text
        });
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.start.elapsed() > END_TIMEOUT {
                self.child.kill().unwrap();
                panic!("the shim did not end within {END_TIMEOUT:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let duration = self.start.elapsed();
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        let events = parse(&stdout);
        Run { status, events, stdout, stderr, duration, directory: self.directory }
    }
}

/// Parses a stream of events, one in each line.
///
/// Panics if an event has an unknown shape or if a sequence number is missing.
pub(crate) fn parse(stdout: &str) -> Vec<Value> {
    let parse = |line| {
        serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("this line is no JSON ({error}): {line}"))
    };
    let events: Vec<Value> = stdout.lines().map(parse).collect();
    for (i, event) in events.iter().enumerate() {
        wire_types::check(event);
        assert_eq!(event["seq"], i, "the sequence numbers have a gap: {stdout}");
    }
    events
}

impl Run {
    /// Returns the exit status of the shim, the reason of the ending, and the code of the error if
    /// there is one.
    ///
    /// Panics unless the stream has at most one error and one `box.stopped`, as its last event.
    pub(crate) fn ending(&self) -> (Option<i32>, &str, Option<&str>) {
        let of_type = |kind| self.events.iter().filter(move |event| event["type"] == kind);
        assert_eq!(of_type("box.stopped").count(), 1, "the events are: {}", self.stdout);
        let last = self.events.last().unwrap();
        assert_eq!(last["type"], "box.stopped", "another event follows the end: {}", self.stdout);
        let errors: Vec<&str> =
            of_type("error").map(|event| event["code"].as_str().unwrap()).collect();
        assert!(errors.len() <= 1, "there is more than one error: {}", self.stdout);
        (self.status.code(), last["reason"].as_str().unwrap(), errors.first().copied())
    }
}
