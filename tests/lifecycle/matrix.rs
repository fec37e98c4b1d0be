//! Every way to die, at every phase of a box: nothing may be left but its own state directory, and the
//! same id must start again at once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::chance::Chance;
use crate::ground::Ground;
use crate::image::Image;

/// Starts of the same box, each ended in one of the ways.
const CYCLES: usize = 1000;

/// Longer than anything takes here on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a box is when it is ended.
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

/// How it is ended.
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

/// A box that is on its way.
struct Start {
    /// The shim, or the shell that started it.
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Option<Receiver<Value>>,
    heard: Vec<Value>,
}

impl Start {
    fn new(ground: &Ground, death: Death) -> Self {
        let shim = env!("CARGO_BIN_EXE_a3s-box-shim");
        let mut command = match death {
            Death::DeadSupervisor => {
                let mut shell = Command::new("/bin/sh");
                // The second command keeps the shell from becoming the shim.
                shell.args(["-c", r#""$0"; exit"#, shim]);
                shell
            }
            _ => Command::new(shim),
        };
        command.env("A3S_BOX_FAKE_GUEST", env!("CARGO_BIN_EXE_fake-guest"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(ground.path("log").join("shim")).unwrap());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody listens any more: the pipe is closed.
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, lines: Some(lines), heard: Vec::new() }
    }

    /// Lets the box come to its phase.
    fn reach(&mut self, phase: Phase, config: &str, chance: &mut Chance) {
        let mut stdin = self.stdin.take().unwrap();
        if phase == Phase::Config {
            stdin.write_all(&config.as_bytes()[..20]).unwrap();
            self.stdin = Some(stdin);
            std::thread::sleep(chance.within(Duration::from_millis(10)));
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
                std::thread::sleep(chance.within(Duration::from_millis(20)));
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
            let event = self.lines.as_ref().unwrap().recv_timeout(PATIENCE);
            self.heard.push(event.unwrap_or_else(|_| panic!("no `{kind}`: {:#?}", self.heard)));
            if self.heard.last().unwrap()["type"] == kind {
                return;
            }
        }
    }

    /// The shim itself, as it says.
    fn shim(&self) -> Pid {
        let pid = self.heard.first().and_then(|event| event["pid"].as_i64());
        Pid::from_raw(pid.map_or(self.child.id().cast_signed(), |pid| pid.try_into().unwrap()))
    }

    fn die(mut self, death: Death) {
        match death {
            Death::Sigkill => self.signal(Signal::SIGKILL),
            Death::Sigterm => self.signal(Signal::SIGTERM),
            Death::Sigsegv => {
                // The runtime's handler gives a fault the chance to come again, which one that was sent
                // does not: the next counts.
                while self.child.try_wait().unwrap().is_none() {
                    self.signal(Signal::SIGSEGV);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Death::ClosedStdout => {
                self.lines = None;
                // A box does not end for want of a reader.
                std::thread::sleep(Duration::from_millis(5));
                self.signal(Signal::SIGTERM);
            }
            Death::DeadSupervisor => self.child.kill().unwrap(),
        }
        // The supervisor's end of the pipe.
        self.stdin = None;
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        // It may have ended by an earlier one.
        let _ended = kill(self.shim(), signal);
    }
}

fn config(ground: &Ground) -> String {
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
        "image": {"layout": ground.path("layout")},
        "process": {"entrypoint": script},
        "paths": {"state_dir": ground.path("s"), "cache_dir": ground.path("c"), "guest": "/bin/true"},
    })
    .to_string()
}

/// Panics if anything is left but the box's state directory, which nobody holds.
fn assert_only_the_directory_is_left(ground: &Ground) {
    ground.assert_nothing_runs();
    ground.assert_no_file_elsewhere();
    let directory = ground.path("s").join("box");
    if let Ok(run) = File::open(directory.join("run.json")) {
        assert!(run.try_lock().is_ok(), "the box's directory is held");
    }
}

/// The ends that are asked for are told on disk; those by force are not, and nothing lies.
fn assert_the_record_is_true(ground: &Ground, phase: Phase, death: Death) -> bool {
    let found = fs::read(ground.path("s").join("box/exit.json")).ok();
    let record: Option<Value> = found.map(|json| serde_json::from_slice(&json).unwrap());
    let is_told = record.is_some();
    let by_force = matches!(death, Death::Sigkill | Death::Sigsegv);
    // A box that is stopping anyway may end before it is killed.
    if phase != Phase::Stopping {
        assert_eq!(is_told, !by_force, "{phase:?} {death:?}: {record:?}");
    }
    if let Some(record) = record {
        let names = ["agent.sock", "control.sock", "upper", "work"];
        let left: Vec<_> = names
            .into_iter()
            .filter(|name| ground.path("s").join("box").join(name).exists())
            .collect();
        assert!(left.is_empty(), "{phase:?} {death:?}: {left:?} {record}");
        assert_eq!(record["reason"], "stopped", "{phase:?} {death:?}: {record}");
    }
    is_told
}

#[test]
fn nothing_is_left_of_a_box_however_it_ends() {
    let image = Image::of_one_layer(1_000_000);
    let ground = Ground::new(&image);
    let config = config(&ground);
    let mut chance = Chance::new();
    let mut counts = BTreeMap::<(Phase, Death), (usize, usize)>::new();
    let start = Instant::now();
    for cycle in 0..CYCLES {
        let phase = PHASES[cycle % PHASES.len()];
        let death = DEATHS[cycle / PHASES.len() % DEATHS.len()];
        if phase == Phase::Unpack {
            ground.clear_cache();
        }
        let mut box_ = Start::new(&ground, death);
        box_.reach(phase, &config, &mut chance);
        box_.die(death);
        assert_only_the_directory_is_left(&ground);
        // Without a config there is no directory yet: what is there is of the cycle before.
        let is_told = phase != Phase::Config && assert_the_record_is_true(&ground, phase, death);
        let (cycles, told) = counts.entry((phase, death)).or_default();
        *cycles += 1;
        *told += usize::from(is_told);
    }
    println!(
        "{CYCLES} ends in {:?}; each: how often, and how often exit.json told it",
        start.elapsed()
    );
    for ((phase, death), (cycles, told)) in counts {
        println!("{phase:?} {death:?}: {cycles}, {told}");
    }
    println!("left: 0 processes, 0 mounts, 0 sockets and files outside of the directory, 0 locks");
}
