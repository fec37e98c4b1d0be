//! Ends boxes in every way and in every phase.
//!
//! Nothing may be left except the box directory, and a box of the same id must start at once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use a3s_box_core::config::RootKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::image::Image;
use crate::random::Random;
use crate::scratch::Scratch;

/// Starts of the same box, for each kind of root.
const CYCLES: usize = 600;

/// Longest time that a test waits for an event on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The phase in which a box is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Config,
    Unpack,
    Mount,
    Setup,
    Kernel,
    Ready,
    Stopping,
}

/// The way in which a box is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Death {
    Sigkill,
    Sigterm,
    Sigsegv,
    ClosedStdout,
    DeadSupervisor,
}

const PHASES: [Phase; 7] = [
    Phase::Config,
    Phase::Unpack,
    Phase::Mount,
    Phase::Setup,
    Phase::Kernel,
    Phase::Ready,
    Phase::Stopping,
];

const DEATHS: [Death; 5] =
    [Death::Sigkill, Death::Sigterm, Death::Sigsegv, Death::ClosedStdout, Death::DeadSupervisor];

/// A running box.
struct RunningBox {
    /// The shim, or the shell that is its parent.
    child: Child,
    stdin: Option<ChildStdin>,
    receiver: Option<Receiver<Value>>,
    /// Events that the test has received so far.
    received: Vec<Value>,
}

impl RunningBox {
    /// Starts the shim without a config. For [`Death::DeadSupervisor`], a shell is its parent.
    fn new(scratch: &Scratch, death: Death) -> Self {
        let shim = env!("CARGO_BIN_EXE_a3s-box-shim");
        let mut command = match death {
            Death::DeadSupervisor => {
                let mut shell = Command::new("/bin/sh");
                // A shell may replace itself with its last command. The second command prevents
                // that, so that the shell stays the parent of the shim.
                shell.args(["-c", r#""$0"; exit"#, shim]);
                shell
            }
            _ => Command::new(shim),
        };
        command.env("A3S_BOX_FAKE_GUEST", env!("CARGO_BIN_EXE_fake-guest"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(scratch.path("log").join("shim")).unwrap());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().unwrap();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                // Once the receiver is dropped, the thread ends, which closes the pipe.
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, receiver: Some(receiver), received: Vec::new() }
    }

    /// Sends the config, or a part of it, and waits until the box has reached `phase`.
    fn reach(&mut self, phase: Phase, config: &str, random: &mut Random) {
        let mut stdin = self.stdin.take().unwrap();
        if phase == Phase::Config {
            // The shim waits for the rest of an incomplete config.
            stdin.write_all(&config.as_bytes()[..20]).unwrap();
            self.stdin = Some(stdin);
            std::thread::sleep(random.up_to(Duration::from_millis(10)));
            return;
        }
        stdin.write_all(config.as_bytes()).unwrap();
        drop(stdin);
        match phase {
            Phase::Config => {}
            Phase::Unpack => self.wait_for("rootfs.progress"),
            Phase::Mount => self.wait_for("rootfs.ready"),
            Phase::Setup => self.wait_for("vm.starting"),
            Phase::Kernel => {
                self.wait_for("vm.starting");
                std::thread::sleep(random.up_to(Duration::from_millis(20)));
            }
            Phase::Ready => self.wait_for("agent.ready"),
            Phase::Stopping => {
                self.wait_for("agent.ready");
                kill(self.shim(), Signal::SIGTERM).unwrap();
                self.wait_for("stop.requested");
            }
        }
    }

    fn wait_for(&mut self, kind: &str) {
        loop {
            let event = self.receiver.as_ref().unwrap().recv_timeout(PATIENCE);
            let event = event.unwrap_or_else(|_| panic!("no `{kind}`: {:#?}", self.received));
            self.received.push(event);
            if self.received.last().unwrap()["type"] == kind {
                return;
            }
        }
    }

    /// Returns the pid of the shim from its first event. Before that event, returns the pid of the
    /// child.
    fn shim(&self) -> Pid {
        let pid = self.received.first().and_then(|event| event["pid"].as_i64());
        Pid::from_raw(pid.map_or(self.child.id().cast_signed(), |pid| pid.try_into().unwrap()))
    }

    /// Ends the box and waits for its process.
    fn die(mut self, death: Death) {
        match death {
            Death::Sigkill => self.signal(Signal::SIGKILL),
            Death::Sigterm => self.signal(Signal::SIGTERM),
            Death::Sigsegv => {
                // Rust's SIGSEGV handler resets the signal to its default action and returns, so
                // that a real fault happens again. A signal that was sent does not, so a second one
                // is needed.
                while self.child.try_wait().unwrap().is_none() {
                    self.signal(Signal::SIGSEGV);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Death::ClosedStdout => {
                self.receiver = None;
                // A box does not end because its events have no reader, so it needs a signal.
                std::thread::sleep(Duration::from_millis(5));
                self.signal(Signal::SIGTERM);
            }
            Death::DeadSupervisor => self.child.kill().unwrap(),
        }
        // The death of a supervisor also closes its end of the pipe.
        self.stdin = None;
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        // The shim may have ended by an earlier signal.
        let _ended = kill(self.shim(), signal);
    }
}

fn config(scratch: &Scratch) -> String {
    let script = [
        "sleep-ms=10",
        "connect",
        "hello",
        "serve",
        "started=7",
        "wait-stop",
        "sleep-ms=20",
        "signaled=15",
        "drained",
        "wait-ack",
        "exit=0",
    ];
    json!({
        "id": "box",
        "image": {"layout": scratch.path("layout")},
        "root": {"kind": scratch.kind},
        "process": {"entrypoint": script},
        "paths": {"state_dir": scratch.path("s"), "cache_dir": scratch.path("c"), "guest": "/bin/true"},
    })
    .to_string()
}

/// Panics if anything is left except the box directory, or if its lock is held.
fn assert_only_the_directory_is_left(scratch: &Scratch) {
    scratch.assert_nothing_runs();
    scratch.assert_no_file_elsewhere();
    let directory = scratch.path("s").join("box");
    if let Ok(run) = File::open(directory.join("run.json")) {
        assert!(run.try_lock().is_ok(), "the lock of the box directory is held");
    }
}

/// Panics unless the exit record matches the death. Returns whether there is a record.
///
/// A stop request leaves a record. A signal that kills the shim leaves none.
fn assert_record_matches_death(scratch: &Scratch, phase: Phase, death: Death) -> bool {
    let found = fs::read(scratch.path("s").join("box/exit.json")).ok();
    let record: Option<Value> = found.map(|json| serde_json::from_slice(&json).unwrap());
    let is_recorded = record.is_some();
    let by_force = matches!(death, Death::Sigkill | Death::Sigsegv);
    // A box that is already stopping may write its record before it is killed.
    if phase != Phase::Stopping {
        assert_eq!(is_recorded, !by_force, "{phase:?} {death:?}: {record:?}");
    }
    if let Some(record) = record {
        let names = ["agent.sock", "control.sock", "upper", "work", "disk.img"];
        let left: Vec<_> = names
            .into_iter()
            .filter(|name| scratch.path("s").join("box").join(name).exists())
            .collect();
        assert!(left.is_empty(), "{phase:?} {death:?}: {left:?} {record}");
        assert_eq!(record["reason"], "stopped", "{phase:?} {death:?}: {record}");
    }
    is_recorded
}

fn end_in_every_way(kind: RootKind) {
    let image = Image::of_one_layer(1_000_000);
    let scratch = Scratch::new(&image, kind);
    let config = config(&scratch);
    let mut random = Random::new();
    let mut counts = BTreeMap::<(Phase, Death), (usize, usize)>::new();
    let start = Instant::now();
    for cycle in 0..CYCLES {
        let phase = PHASES[cycle % PHASES.len()];
        let death = DEATHS[cycle / PHASES.len() % DEATHS.len()];
        if phase == Phase::Unpack {
            scratch.clear_cache();
        }
        let mut running = RunningBox::new(&scratch, death);
        running.reach(phase, &config, &mut random);
        running.die(death);
        assert_only_the_directory_is_left(&scratch);
        // A shim without a config has no box directory yet. The record is of the cycle before.
        let is_recorded =
            phase != Phase::Config && assert_record_matches_death(&scratch, phase, death);
        let (cycles, recorded) = counts.entry((phase, death)).or_default();
        *cycles += 1;
        *recorded += usize::from(is_recorded);
    }
    println!(
        "{CYCLES} endings in {:?}; for each kind, the number of endings and of exit records:",
        start.elapsed()
    );
    for ((phase, death), (cycles, recorded)) in counts {
        println!("{phase:?} {death:?}: {cycles}, {recorded}");
    }
    println!("left: 0 processes, 0 mounts, 0 sockets and files outside of the directory, 0 locks");
}

#[test]
fn nothing_is_left_of_a_box_however_it_ends() {
    end_in_every_way(RootKind::Shared);
}

#[test]
fn nothing_is_left_of_a_box_with_a_block_root_however_it_ends() {
    end_in_every_way(RootKind::Block);
}
