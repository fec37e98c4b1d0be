//! A shim on the test's ground, and what it says.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::ground::Ground;
use crate::tree::{self, Tree};
use crate::wire_types;

/// Longer than sixteen shims need that share two busy cores.
const PATIENCE: Duration = Duration::from_secs(100);

/// What the shim is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until<'a> {
    /// Mount the root, undo it, and end (`--prepare`).
    Prepared,
    /// Run a VM whose guest does nothing, until the shim is stopped.
    Stopped,
    /// Run a VM whose guest plays this script.
    Played(&'a [&'a str]),
}

/// A shim that runs.
pub(crate) struct Shim {
    child: Child,
    started: Instant,
    events: Receiver<Value>,
    heard: Vec<Value>,
    root: PathBuf,
    log: PathBuf,
}

/// How a shim ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) took: Duration,
    pub(crate) events: Vec<Value>,
    pub(crate) log: String,
}

impl Shim {
    /// Starts a shim for box `id` with the image of the ground.
    pub(crate) fn start(ground: &Ground, id: &str, until: Until<'_>) -> Self {
        let script = match until {
            Until::Prepared | Until::Stopped => &["hang"],
            Until::Played(script) => script,
        };
        let config = json!({
            "id": id,
            "image": {"layout": ground.path("layout")},
            "process": {"entrypoint": script},
            "agent": {"boot_timeout_ms": PATIENCE.as_millis()},
            "paths": {
                "state_dir": ground.path("s"), "cache_dir": ground.path("c"), "guest": "/bin/true",
            },
        });
        let file = ground.path("log").join(format!("{id}.json"));
        let log = ground.path("log").join(id);
        fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_a3s-box-shim"));
        command.env("A3S_BOX_FAKE_GUEST", env!("CARGO_BIN_EXE_fake-guest"));
        command.args((until == Until::Prepared).then_some("--prepare"));
        command.arg("--config").arg(file).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(&log).unwrap());
        let started = Instant::now();
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map(Result::unwrap) {
                // A test that has heard enough listens no more.
                let _gone = sender.send(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        let root = ground.path("s").join(id).join("root");
        Self { child, started, events, heard: Vec::new(), root, log }
    }

    /// Starts a shim for box `id`, compares the root that it mounts, and stops it.
    pub(crate) fn run_and_compare(ground: &Ground, id: &str, expected: &Tree) {
        let mut shim = Self::start(ground, id, Until::Stopped);
        // Meanwhile it changes its root, and the path to the box's has a gap.
        shim.wait_for("shim.confined");
        tree::assert_equal(&shim.mounted(), expected, "the mounted root");
        shim.send(Signal::SIGTERM);
        shim.end().assert_code(128 + Signal::SIGTERM as i32);
        // The next start of the box must not meet the fake guest, which may have been forked with the
        // lock of the state directory and not be dead yet.
        ground.assert_nothing_runs();
    }

    /// Waits for the next event of a type.
    pub(crate) fn wait_for(&mut self, kind: &str) -> Value {
        while self.started.elapsed() < PATIENCE {
            match self.events.recv_timeout(PATIENCE) {
                Ok(event) => self.heard.push(event),
                Err(_) => break,
            }
            let last = self.heard.last().unwrap();
            if last["type"] == kind {
                return last.clone();
            }
        }
        let log = fs::read_to_string(&self.log).unwrap();
        panic!("no event `{kind}`: {:#?}\n{log}", self.heard);
    }

    /// The root as the shim has it mounted, in its own namespace.
    pub(crate) fn mounted(&self) -> Tree {
        let root = self.root.strip_prefix("/").unwrap();
        tree::read(&PathBuf::from(format!("/proc/{}/root", self.child.id())).join(root))
    }

    /// Memory of the shim, with what is shared counted in parts.
    pub(crate) fn pss_kib(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Lets the shim run until `moment` after its start, and kills it.
    pub(crate) fn kill_at(mut self, moment: Duration) -> Ended {
        std::thread::sleep(moment.saturating_sub(self.started.elapsed()));
        self.child.kill().unwrap();
        self.end()
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> Ended {
        // The stream ends with the last process that has it.
        while let Ok(event) = self.events.recv_timeout(PATIENCE) {
            self.heard.push(event);
        }
        let took = self.started.elapsed();
        if took > PATIENCE {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        for (i, event) in self.heard.iter().enumerate() {
            wire_types::check(event);
            assert_eq!(event["seq"], i, "{:#?}", self.heard);
        }
        let log = fs::read_to_string(&self.log).unwrap();
        Ended { status, took, events: self.heard, log }
    }
}

impl Ended {
    pub(crate) fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::SIGKILL as i32)
    }

    /// The first event of a type.
    pub(crate) fn event(&self, kind: &str) -> Option<&Value> {
        self.events.iter().find(|event| event["type"] == kind)
    }

    /// Panics unless the shim ended with `code`.
    pub(crate) fn assert_code(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "{:#?}\n{}", self.events, self.log);
    }

    /// Layers that this shim unpacked itself.
    pub(crate) fn unpacked_layers(&self) -> u64 {
        let ready = self.event("rootfs.ready").unwrap_or_else(|| panic!("{:#?}", self.events));
        ready["layers"].as_u64().unwrap() - ready["cache_hits"].as_u64().unwrap()
    }
}
