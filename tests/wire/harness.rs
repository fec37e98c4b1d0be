//! Starts a shim with a fake guest, and keeps what it says.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::wire_types;

/// Longer than the longest bound of the shim (20 s).
const PATIENCE: Duration = Duration::from_secs(40);

/// A config whose guest plays `script`.
pub(crate) fn config(directory: &Path, script: &[&str]) -> Value {
    let mut config = json!({
        "id": "golden",
        "agent": {"boot_timeout_ms": 5000},
        "paths": {
            "state_dir": directory.join("s"),
            "cache_dir": directory.join("c"),
            // The fake VM only passes it on.
            "guest": "/bin/true",
        },
    });
    if !script.is_empty() {
        config["process"] = json!({"args": script});
    }
    config
}

/// The shim, with the fake guest in its environment.
pub(crate) fn shim() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_a3s-box-shim"));
    command.env("A3S_BOX_FAKE_GUEST", env!("CARGO_BIN_EXE_fake-guest"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The shim, started by another program: its path is that one's last argument.
pub(crate) fn shim_by(mut other: Command) -> Command {
    let shim = shim();
    other.arg(shim.get_program());
    other.envs(shim.get_envs().filter_map(|(name, value)| Some((name, value?))));
    other.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    other
}

/// Runs the shim with arguments, and a text on its standard input.
pub(crate) fn shim_says(arguments: &[&str], stdin: &[u8]) -> Output {
    let mut child = shim().args(arguments).spawn().unwrap();
    // A shim that does not read its input may be gone.
    let _gone = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

/// How a run ended.
pub(crate) struct Run {
    pub(crate) status: ExitStatus,
    pub(crate) events: Vec<Value>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
    pub(crate) directory: tempfile::TempDir,
}

/// A shim whose guest plays a script.
pub(crate) struct Playing {
    pub(crate) child: Child,
    directory: tempfile::TempDir,
    start: Instant,
}

/// Starts a shim whose guest plays `script`.
pub(crate) fn start(script: &[&str], change: impl FnOnce(&mut Value)) -> Playing {
    start_by(shim(), script, change)
}

/// The same, by a command of its own.
pub(crate) fn start_by(
    mut command: Command,
    script: &[&str],
    change: impl FnOnce(&mut Value),
) -> Playing {
    let directory = tempfile::Builder::new().prefix("w").tempdir().unwrap();
    let mut config = config(directory.path(), script);
    change(&mut config);
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    // A shim that refuses may be gone before it has read all.
    let _gone = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    Playing { child, directory, start }
}

/// Runs a shim whose guest plays `script`, to its end.
pub(crate) fn run(script: &[&str]) -> Run {
    start(script, |_| {}).end()
}

impl Playing {
    /// Path below the box's state directory.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.directory.path().join("s/golden").join(name)
    }

    /// Waits for the end, and checks the stream.
    pub(crate) fn end(mut self) -> Run {
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
            if self.start.elapsed() > PATIENCE {
                self.child.kill().unwrap();
                panic!("no end within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = self.start.elapsed();
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        let events = parse(&stdout);
        Run { status, events, stdout, stderr, took, directory: self.directory }
    }
}

/// Each line an event of a known shape, numbered without gaps.
pub(crate) fn parse(stdout: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let events: Vec<Value> = stdout.lines().map(parse).collect();
    for (i, event) in events.iter().enumerate() {
        wire_types::check(event);
        assert_eq!(event["seq"], i, "{stdout}");
    }
    events
}

impl Run {
    /// The end: exit status, reason, and the code of the error if there is one.
    pub(crate) fn ending(&self) -> (Option<i32>, &str, Option<&str>) {
        let of = |kind| self.events.iter().filter(move |event| event["type"] == kind);
        assert_eq!(of("box.stopped").count(), 1, "{}", self.stdout);
        let last = self.events.last().unwrap();
        assert_eq!(last["type"], "box.stopped", "{}", self.stdout);
        let errors: Vec<&str> = of("error").map(|event| event["code"].as_str().unwrap()).collect();
        assert!(errors.len() <= 1, "{}", self.stdout);
        (self.status.code(), last["reason"].as_str().unwrap(), errors.first().copied())
    }
}
