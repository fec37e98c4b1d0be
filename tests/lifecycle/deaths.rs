//! From the death of a VM to the event that says so.
//!
//! | moment of the death | |
//! |---|---|
//! | of the shim | before the test sends the signal |
//! | of the guest | before the fake guest ends: it writes the time down |
//!
//! A guest that hangs dies by a deadline of the shim, which is a limit and no delay: it is not here.

use std::time::{Duration, SystemTime};

use a3s_box_core::event::{EventKind, StopReason};
use nix::sys::signal::Signal;

use crate::harness::{FakeBox, Host, READY, soon};
use crate::percentiles::{ATTEMPTS, Percentiles};

/// From a death to the observer of `box.stopped`, for 99 of 100 deaths.
const LIMIT: Duration = Duration::from_millis(100);

/// Deaths of each kind: with ten kinds, 200.
const DEATHS: usize = 20;

/// How often a signal is sent.
const ATTEMPTS_TO_KILL: usize = 10;

/// How a VM dies.
enum Death {
    /// The shim gets this signal once the box is ready.
    Shim(Signal),
    /// The guest plays this, stamps and ends with `exit` or `abort`.
    Guest(&'static [&'static str]),
}

use Death::{Guest, Shim};

/// Each kind, and the end that it is to be told as.
const KINDS: [(&str, Death, StopReason); 10] = [
    ("SIGKILL of the shim", Shim(Signal::SIGKILL), StopReason::Killed),
    ("SIGSEGV of the shim", Shim(Signal::SIGSEGV), StopReason::Killed),
    ("SIGABRT of the shim", Shim(Signal::SIGABRT), StopReason::Killed),
    ("exit before a word", Guest(&["stamp", "exit=0"]), StopReason::Failed),
    ("exit 0, no report", Guest(&["connect", "hello", "stamp", "exit=0"]), StopReason::Failed),
    (
        "exit 42, no report",
        Guest(&["connect", "hello", "serve", "started=7", "stamp", "exit=42"]),
        StopReason::Failed,
    ),
    (
        "exit, reported",
        Guest(&[
            "connect",
            "hello",
            "started=7",
            "exited=3",
            "drained",
            "wait-ack",
            "stamp",
            "exit=0",
        ]),
        StopReason::Exited,
    ),
    ("abort", Guest(&["connect", "hello", "started=7", "stamp", "abort"]), StopReason::Killed),
    (
        "control closed, exit",
        Guest(&["connect", "hello", "started=7", "close", "stamp", "exit=0"]),
        StopReason::Failed,
    ),
    (
        "garbage, exit",
        Guest(&["connect", "hello", "garbage", "stamp", "exit=0"]),
        StopReason::Failed,
    ),
];

impl Death {
    /// Lets the box die; the time of it.
    async fn happen(&self, host: &Host) -> (FakeBox, SystemTime) {
        match self {
            Shim(signal) => {
                let demo = host.new_box(&READY);
                soon(demo.vm.boot()).await.unwrap();
                if *signal == Signal::SIGSEGV {
                    // Rust's handler looks for an overflow of the stack, finds none, and leaves the
                    // end to the fault when it comes again; this one was none.
                    demo.send(*signal);
                }
                // A busy machine may not have handled the first one when the next is sent: then that
                // is none.
                for _ in 0..ATTEMPTS_TO_KILL {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let death = SystemTime::now();
                    demo.send(*signal);
                    let ended = tokio::time::timeout(Duration::from_secs(1), demo.vm.wait()).await;
                    if ended.is_ok() {
                        return (demo, death);
                    }
                }
                panic!("the shim survives {signal}");
            }
            Guest(script) => {
                let demo = host.new_box(script);
                // It ends before it is ready, and whether that is an error is not our matter.
                let _ended = soon(demo.vm.boot()).await;
                soon(demo.vm.wait()).await;
                let death = demo.stamp();
                (demo, death)
            }
        }
    }
}

#[tokio::test]
async fn two_hundred_deaths_of_every_kind_are_told_soon() {
    let host = Host::new();
    for _ in 0..ATTEMPTS {
        let all = times(&host).await;
        if all.p99 <= LIMIT {
            return;
        }
    }
    panic!("p99 over {LIMIT:?} in each of {ATTEMPTS} attempts");
}

/// Lets boxes die in every way, and prints the times of each.
async fn times(host: &Host) -> Percentiles {
    let mut all = Vec::new();
    for (kind, death, reason) in KINDS {
        let mut times = Vec::new();
        for _ in 0..DEATHS {
            let (demo, died) = death.happen(host).await;
            let outcome = demo.vm.wait().await;
            assert_eq!(outcome.reason, reason, "{kind}: {:#?}", demo.events());
            let told = demo.heard_at(|event| matches!(event, EventKind::BoxStopped { .. }));
            times.push(told.unwrap().duration_since(died).unwrap());
            soon(demo.vm.destroy()).await.unwrap();
        }
        println!("{kind:<20} {DEATHS:>3} deaths: {}", Percentiles::of(times.clone()));
        all.append(&mut times);
    }
    assert_eq!(all.len(), 200);
    let all = Percentiles::of(all);
    println!("{:<20} 200 deaths: {all}", "all");
    all
}
