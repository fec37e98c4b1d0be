//! Ends real VMs in several ways and in every phase.
//!
//! Nothing may be left except the box directory, and a box of the same id must start at once.
//! `tests/lifecycle` does the same a thousand times with fake VMs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use a3s_box_vm_tests::{Shim, boxes_in, config, eventually};

/// Number of VMs. Phases and signals rotate.
const CYCLES: usize = 25;

/// Name of each phase, the event that begins it, and the milliseconds from the event to the signal.
const PHASES: [(&str, &str, u64); 5] = [
    ("setup", "vm.starting", 0),
    ("kernel", "vm.starting", 700),
    ("guest", "guest.started", 0),
    ("ready", "agent.ready", 0),
    ("stopping", "stop.requested", 50),
];

const DEATHS: [Signal; 3] = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGSEGV];

#[test]
fn nothing_is_left_of_a_vm_however_it_ends() {
    let mut directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    let mut deaths = Vec::new();
    for cycle in 0..CYCLES {
        let (phase, event, wait_ms) = PHASES[cycle % PHASES.len()];
        let signal = DEATHS[cycle % DEATHS.len()];
        let config = config(directory.path(), &json!({"args": ["sleep", "1000"]}));
        let mut shim = Shim::spawn(directory, &config);
        if phase == "stopping" {
            shim.wait_for("agent.ready");
            send(&shim, Signal::SIGTERM);
        }
        shim.wait_for(event);
        std::thread::sleep(Duration::from_millis(wait_ms));
        let start = Instant::now();
        send(&shim, signal);
        // Rust's SIGSEGV handler resets the signal to its default action and returns, so that a
        // real fault happens again. A signal that was sent does not, so a second one is needed.
        while signal == Signal::SIGSEGV && shim.child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(20));
            send(&shim, signal);
        }
        shim.child.wait().unwrap();
        deaths.push(start.elapsed());
        assert_nothing_is_left(&shim);
        *counts.entry((phase, signal.as_str())).or_default() += 1;
        directory = shim.into_directory();
    }
    let again = config(directory.path(), &json!({"args": ["/bin/sh", "-c", "exit 4"]}));
    Shim::spawn(directory, &again).ends_with(4, "exited", None);
    deaths.sort();
    println!("{CYCLES} endings, each followed by a start of the same id: {counts:?}");
    println!(
        "from the signal to the end of the process: median {:?}, longest {:?}",
        deaths[CYCLES / 2],
        deaths[CYCLES - 1]
    );
}

fn send(shim: &Shim, signal: Signal) {
    // The shim may have ended by an earlier signal.
    let _ended = kill(Pid::from_raw(shim.child.id().cast_signed()), signal);
}

/// Panics if a thread, a mount, a lock or a file outside of the box directory is left.
fn assert_nothing_is_left(shim: &Shim) {
    let pid = shim.child.id();
    eventually("no thread of the shim is left", || {
        !Path::new(&format!("/proc/{pid}/stat")).exists()
    });
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains("/s/test/"), "a mount is left: {mounts}");
    let run = std::fs::File::open(shim.state().join("run.json")).unwrap();
    assert!(run.try_lock().is_ok(), "the lock of the box is held\n{shim}");
    assert_eq!(boxes_in(shim.state().parent().unwrap()), ["test"]);
}
