//! A shim in the scratch directory of a test, its events and its log.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use a3s_box_core::config::RootKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::block_root;
use crate::scratch::{self, Scratch};
use crate::tree::{self, Tree};
use crate::wire_types;

/// Longest time that a test waits for a shim. Sixteen shims on two busy cores need less.
const PATIENCE: Duration = Duration::from_secs(100);

/// How far a shim runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until<'a> {
    /// It mounts the root, unmounts it, and ends (`--prepare`).
    Prepared,
    /// It runs a VM whose guest hangs, until the shim is stopped.
    Stopped,
    /// It runs a VM whose guest plays this script.
    Played(&'a [&'a str]),
}

/// A running shim.
pub(crate) struct Shim {
    child: Child,
    started: Instant,
    receiver: Receiver<Value>,
    /// Events that the test has received so far.
    received: Vec<Value>,
    kind: RootKind,
    /// The box directory.
    directory: PathBuf,
    log: PathBuf,
}

/// A shim that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) took: Duration,
    pub(crate) events: Vec<Value>,
    pub(crate) log: String,
}

impl Shim {
    /// Starts a shim for box `id` with the image in the scratch directory.
    pub(crate) fn start(scratch: &Scratch, id: &str, until: Until<'_>) -> Self {
        let script = match until {
            Until::Prepared | Until::Stopped => &["hang"],
            Until::Played(script) => script,
        };
        let config = json!({
            "id": id,
            "image": {"layout": scratch.path("layout")},
            "root": {"kind": scratch.kind},
            "resources": scratch.resources,
            "process": {"entrypoint": script},
            "agent": {"boot_timeout_ms": PATIENCE.as_millis()},
            "paths": {
                "state_dir": scratch.path("s"), "cache_dir": scratch.path("c"), "guest": "/bin/true",
            },
        });
        let file = scratch.path("log").join(format!("{id}.json"));
        let log = scratch.path("log").join(id);
        fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_a3s-box-shim"));
        command.env("A3S_BOX_FAKE_GUEST", env!("CARGO_BIN_EXE_fake-guest"));
        command.args((until == Until::Prepared).then_some("--prepare"));
        command.arg("--config").arg(file).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(&log).unwrap());
        let started = Instant::now();
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map(Result::unwrap) {
                // The test may have dropped the receiver. The thread still reads the rest, so that
                // the shim never blocks on a full pipe.
                let _dropped =
                    sender.send(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        let (kind, directory) = (scratch.kind, scratch.path("s").join(id));
        Self { child, started, receiver, received: Vec::new(), kind, directory, log }
    }

    /// Starts a shim for box `id`, compares its mounted root with `expected`, and stops it.
    pub(crate) fn run_and_compare(scratch: &Scratch, id: &str, expected: &Tree) {
        let mut shim = Self::start(scratch, id, Until::Stopped);
        // Before this event, the shim changes its own root (pivot_root(2)). During that change, the
        // path of the box's root does not exist.
        shim.wait_for("shim.confined");
        tree::assert_equal(&shim.mounted(), expected, "the mounted root");
        shim.send(Signal::SIGTERM);
        shim.end().assert_code(128 + Signal::SIGTERM as i32);
        // A fake guest that was forked a moment ago may still have a copy of the box's lock. It
        // must have ended before the next start of the box, which would otherwise fail.
        scratch.assert_nothing_runs();
    }

    /// Waits for the next event of type `kind` and returns it. Panics if none comes in time.
    pub(crate) fn wait_for(&mut self, kind: &str) -> Value {
        while self.started.elapsed() < PATIENCE {
            match self.receiver.recv_timeout(PATIENCE) {
                Ok(event) => self.received.push(event),
                Err(_) => break,
            }
            let last = self.received.last().unwrap();
            if last["type"] == kind {
                return last.clone();
            }
        }
        let log = fs::read_to_string(&self.log).unwrap();
        panic!("no event `{kind}`: {:#?}\n{log}", self.received);
    }

    /// Reads the root of the box: a shared one by way of the shim's mount namespace, and a block
    /// one by a mount of the disk of its image. The disk for the writes of a block root must be
    /// sound.
    pub(crate) fn mounted(&self) -> Tree {
        let pid = self.child.id();
        match self.kind {
            RootKind::Shared => {
                let root = self.directory.join("root");
                let root = root.strip_prefix("/").unwrap();
                tree::read(&PathBuf::from(format!("/proc/{pid}/root")).join(root))
            }
            RootKind::Block => {
                scratch::assert_ext4_is_sound(&self.directory.join("disk.img"));
                block_root::read(pid, &self.log.with_extension("erofs"))
            }
        }
    }

    /// Returns the proportional set size of the shim in KiB (proc(5)), which counts a page that is
    /// shared by n processes as 1/n.
    pub(crate) fn pss_kib(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for the unpackers of the shim, and stops them and the shim by SIGSTOP.
    pub(crate) fn hold(&self) {
        // An unpacker has the signal for the death of its parent once it has its name.
        let start = Instant::now();
        let unpackers = loop {
            match self.unpackers() {
                none if none.is_empty() => {
                    assert!(start.elapsed() < PATIENCE, "no unpacker starts");
                }
                some => break some,
            }
        };
        for unpacker in unpackers {
            kill(Pid::from_raw(unpacker), Signal::SIGSTOP).unwrap();
        }
        self.send(Signal::SIGSTOP);
    }

    /// Returns the pids of the unpackers. Each thread that makes a layer starts one.
    fn unpackers(&self) -> Vec<i32> {
        let is_unpacker = |child: &&str| {
            let name = fs::read_to_string(format!("/proc/{child}/comm"));
            name.is_ok_and(|name| name == "a3s-box-unpack\n")
        };
        let mut found = Vec::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap() {
            let children = fs::read_to_string(thread.unwrap().path().join("children"));
            let children = children.unwrap_or_default();
            let unpackers = children.split_whitespace().filter(is_unpacker);
            found.extend(unpackers.map(|pid| pid.parse::<i32>().unwrap()));
        }
        found
    }

    /// Kills the shim when `moment` has passed since its start, and returns how it ended.
    pub(crate) fn kill_at(mut self, moment: Duration) -> Ended {
        std::thread::sleep(moment.saturating_sub(self.started.elapsed()));
        // This succeeds for a process that has ended by itself, because it was not waited for yet.
        self.child.kill().unwrap();
        self.end()
    }

    /// Waits for the end of the shim and checks the format and the numbers of all its events.
    pub(crate) fn end(mut self) -> Ended {
        // The stream ends when the last process that has inherited the pipe ends.
        while let Ok(event) = self.receiver.recv_timeout(PATIENCE) {
            self.received.push(event);
        }
        let took = self.started.elapsed();
        if took > PATIENCE {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        for (i, event) in self.received.iter().enumerate() {
            wire_types::check(event);
            assert_eq!(event["seq"], i, "{:#?}", self.received);
        }
        let log = fs::read_to_string(&self.log).unwrap();
        Ended { status, took, events: self.received, log }
    }
}

impl Ended {
    pub(crate) fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::SIGKILL as i32)
    }

    /// Returns the first event of type `kind`.
    pub(crate) fn event(&self, kind: &str) -> Option<&Value> {
        self.events.iter().find(|event| event["type"] == kind)
    }

    /// Panics unless the shim exited with `code`.
    pub(crate) fn assert_code(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "{:#?}\n{}", self.events, self.log);
    }

    /// Returns the number of layers that this shim did not find in the cache.
    pub(crate) fn unpacked_layers(&self) -> u64 {
        let ready = self.event("rootfs.ready").unwrap_or_else(|| panic!("{:#?}", self.events));
        ready["layers"].as_u64().unwrap() - ready["cache_hits"].as_u64().unwrap()
    }
}
