//! Starts a shim, follows its events, and prints events, log and console if a test fails.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Longest time between two events of a shim. A boot in the lab takes less, even under load.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running box.
#[derive(Debug)]
pub struct Shim {
    /// Process of the shim, or of the program that starts it.
    pub child: Child,
    lines: Receiver<String>,
    /// Events that the test has received so far.
    pub events: Vec<Value>,
    directory: tempfile::TempDir,
}

/// Returns a path from an environment variable that `tests/vm/run` sets. Panics without it.
pub fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run tests/run")).into()
}

/// Returns a config with this `process`, the demo image, and a state directory below `directory`.
///
/// The kind of the root is the default, or `A3S_BOX_ROOT_KIND`.
pub fn config(directory: &Path, process: &Value) -> Value {
    let mut config = json!({
        "id": "test",
        "image": {"layout": variable("A3S_BOX_IMAGES").join("demo"), "reference": "latest"},
        "process": process,
        "agent": {"boot_timeout_ms": 110_000},
        "paths": {
            "state_dir": directory.join("s"),
            // All tests share the cache, so that each layer is unpacked only once.
            "cache_dir": std::env::temp_dir().join("a3s-box-vm-cache"),
            "libkrunfw": variable("A3S_BOX_LIBKRUNFW"),
            "guest": variable("A3S_BOX_GUEST"),
        },
    });
    if let Some(kind) = std::env::var_os("A3S_BOX_ROOT_KIND") {
        config["root"] = json!({"kind": kind.to_str().unwrap()});
    }
    config
}

/// Returns a new directory and a config for the test workload with these steps.
///
/// The workload comes from the first share, mounted at `/w`.
fn workload(steps: &[&str], change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, Value) {
    let program = variable("A3S_BOX_WORKLOAD");
    let args: Vec<&str> = std::iter::once("/w/workload").chain(steps.iter().copied()).collect();
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let mut config = config(directory.path(), &json!({"args": args}));
    let source = program.parent();
    config["mounts"] =
        json!([{"type": "virtiofs", "source": source, "target": "/w", "read_only": true}]);
    // This is shorter than PATIENCE. A guest that hangs then ends by itself, and its test fails
    // with the events.
    config["resources"] = json!({"timeout_ms": 100_000});
    change(&mut config);
    (directory, config)
}

/// Returns the command that starts the shim. In the lab, all its threads stay on one CPU, because
/// the emulator makes mistakes otherwise (see `.config/nextest.toml`).
fn shim() -> Command {
    let program = variable("A3S_BOX_SHIM");
    if std::env::var_os("A3S_BOX_IN_LAB").is_none() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", "1"]).arg(program);
    command
}

impl Shim {
    /// Starts a box that runs `process` on the demo image.
    pub fn start(process: &Value) -> Self {
        Self::start_with(process, |_| {})
    }

    /// Starts a box that runs `process`, after `change` has changed the config.
    pub fn start_with(process: &Value, change: impl FnOnce(&mut Value)) -> Self {
        let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
        let mut config = config(directory.path(), process);
        change(&mut config);
        Self::spawn(directory, &config)
    }

    /// Starts the test workload with `steps`, after `change` has changed the config.
    pub fn start_workload(steps: &[&str], change: impl FnOnce(&mut Value)) -> Self {
        let (directory, config) = workload(steps, change);
        Self::spawn(directory, &config)
    }

    /// Starts the test workload like [`Shim::start_workload`]. The shim is started by `program`,
    /// which gets the shim's command line as its last arguments.
    pub fn start_workload_by(
        program: Command,
        steps: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Self {
        let (directory, config) = workload(steps, change);
        Self::spawn_by(program, directory, &config)
    }

    /// Starts a box with a complete config. `directory` lives as long as the returned value.
    pub fn spawn(directory: tempfile::TempDir, config: &Value) -> Self {
        Self::spawn_with(shim(), directory, config)
    }

    /// Starts a box with a complete config by `program`, which gets the shim's command line as its
    /// last arguments.
    pub fn spawn_by(mut program: Command, directory: tempfile::TempDir, config: &Value) -> Self {
        let shim = shim();
        program.arg(shim.get_program()).args(shim.get_args());
        Self::spawn_with(program, directory, config)
    }

    fn spawn_with(mut shim: Command, directory: tempfile::TempDir, config: &Value) -> Self {
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut child = shim
            .env("A3S_BOX_LOG", "info")
            .stderr(log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        // A thread reads the events, so that a wait for the next one can time out.
        std::thread::spawn(move || {
            for line in stdout.lines() {
                sender.send(line.unwrap()).unwrap();
            }
        });
        Self { child, lines, events: Vec::new(), directory }
    }

    /// Returns the next event, or `None` at the end of the stream. Panics after [`PATIENCE`].
    fn next_event(&mut self) -> Option<&Value> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                let event = serde_json::from_str(&line).unwrap_or_else(|error| {
                    panic!("the line is no event ({error}): {line}\n{self}")
                });
                self.events.push(event);
                self.events.last()
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                self.child.kill().unwrap();
                panic!("no event in {PATIENCE:?}\n{self}")
            }
        }
    }

    /// Waits for the next event of type `kind` and returns it.
    pub fn wait_for(&mut self, kind: &str) -> Value {
        loop {
            match self.next_event() {
                Some(event) if event["type"] == kind => return event.clone(),
                Some(_) => {}
                None => panic!("the stream ended without `{kind}`\n{self}"),
            }
        }
    }

    /// Waits for the end of the shim and returns its status.
    ///
    /// Panics unless the events are numbered without gaps, and the only `box.stopped` is the last
    /// event and has the exit status of the process.
    pub fn end(&mut self) -> ExitStatus {
        while self.next_event().is_some() {}
        let status = self.child.wait().unwrap();
        for (i, event) in self.events.iter().enumerate() {
            assert_eq!(event["seq"], i, "{self}");
        }
        let terminal = self.events.iter().filter(|event| event["type"] == "box.stopped").count();
        assert_eq!(terminal, 1, "{self}");
        let last = self.events.last().unwrap();
        assert_eq!(last["type"], "box.stopped", "{self}");
        assert_eq!(last["exit_code"].as_i64(), status.code().map(i64::from), "{self}");
        status
    }

    /// Waits for the end of the shim. Panics unless exit status, reason and error code match. If
    /// `error` is `None`, there must be no error event.
    pub fn ends_with(&mut self, code: i32, reason: &str, error: Option<&str>) {
        let status = self.end();
        assert_eq!(status.code(), Some(code), "{self}");
        assert_eq!(self.events.last().unwrap()["reason"], reason, "{self}");
        let found: Vec<_> = self
            .events
            .iter()
            .filter(|event| event["type"] == "error")
            .map(|event| &event["code"])
            .collect();
        assert_eq!(found, error.into_iter().collect::<Vec<_>>(), "{self}");
    }

    /// Sends a signal to the shim.
    pub fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Returns the output of the workload so far.
    pub fn console(&self) -> Vec<u8> {
        std::fs::read(self.state().join("console.log")).unwrap_or_default()
    }

    /// Returns the path of the box directory.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("s/test")
    }

    /// Returns the temporary directory, for the next box in it.
    pub fn into_directory(self) -> tempfile::TempDir {
        self.directory
    }
}

impl std::fmt::Display for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for event in &self.events {
            writeln!(f, "  {event}")?;
        }
        let log = std::fs::read(self.directory.path().join("log")).unwrap_or_default();
        // The end of the log and of the console shows the failure. Both can have many megabytes.
        for (name, text) in [("log", log), ("console", self.console())] {
            let end = text.get(text.len().saturating_sub(4000)..).unwrap_or_default();
            writeln!(f, "{name}: {}", String::from_utf8_lossy(end))?;
        }
        Ok(())
    }
}

/// Returns the names of the boxes in a state directory. A directory that does not exist has none.
///
/// # Panics
///
/// Panics if a name is not UTF-8.
#[must_use]
pub fn boxes_in(state_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(state_dir).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    // The locks of ids stay, because another process may hold one.
    names.filter(|name| name != ".ids").collect()
}

/// Waits until `check` returns true. Panics with `what` after [`PATIENCE`].
pub fn eventually(what: &str, check: impl Fn() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < PATIENCE, "does not hold within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
