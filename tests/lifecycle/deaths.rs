//! The time from the death of a VM to its `box.stopped` event.
//!
//! | death | start of the measurement |
//! |---|---|
//! | of the shim | just before the test sends the signal |
//! | of the guest | the fake guest's step `stamp`, just before it ends, writes the time to a file |
//!
//! A guest that hangs is not measured here. It dies by a deadline that the config sets.

use std::time::{Duration, SystemTime};

use a3s_box_core::event::{EventKind, StopReason};
use nix::sys::signal::Signal;

use crate::harness::{FakeBox, Host, READY, soon};
use crate::percentiles::{ATTEMPTS, Percentiles};
use crate::scratch::ROOT_KINDS;

/// Longest time from a death to the observer of `box.stopped`, for 99 of 100 deaths.
const LIMIT: Duration = Duration::from_millis(100);

/// Deaths of each kind. Ten kinds make 200 deaths. Half of the boxes have each kind of root.
const DEATHS: usize = 20;

/// How often a signal is sent to a shim before the test gives up.
const ATTEMPTS_TO_KILL: usize = 10;

/// How a VM dies.
enum Death {
    /// The shim gets this signal once the box is ready.
    Shim(Signal),
    /// The guest plays this script, which ends with `stamp` and then `exit` or `abort`.
    Guest(&'static [&'static str]),
}

use Death::{Guest, Shim};

/// Each kind of death and the reason that `box.stopped` must give for it.
const KINDS: [(&str, Death, StopReason); 10] = [
    ("SIGKILL of the shim", Shim(Signal::SIGKILL), StopReason::Killed),
    ("SIGSEGV of the shim", Shim(Signal::SIGSEGV), StopReason::Killed),
    ("SIGABRT of the shim", Shim(Signal::SIGABRT), StopReason::Killed),
    ("exit at once", Guest(&["stamp", "exit=0"]), StopReason::Failed),
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
    /// Starts a box and kills it. Returns the box and the time of its death.
    async fn happen(&self, host: &Host) -> (FakeBox, SystemTime) {
        match self {
            Shim(signal) => {
                let demo = host.new_box(&READY);
                soon(demo.vm.boot()).await.unwrap();
                if *signal == Signal::SIGSEGV {
                    // Rust's SIGSEGV handler, which detects stack overflows, finds none here. It
                    // resets the signal to its default action and returns, so that a real fault
                    // happens again. A signal that was sent does not, so a second one is needed.
                    demo.send(*signal);
                }
                // Signals of one number do not queue. If the first one is still pending when the
                // next is sent, the kernel drops that one, and the test must send another.
                for _ in 0..ATTEMPTS_TO_KILL {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let death = SystemTime::now();
                    demo.send(*signal);
                    let ended = tokio::time::timeout(Duration::from_secs(1), demo.vm.wait()).await;
                    if ended.is_ok() {
                        return (demo, death);
                    }
                }
                panic!("the shim survives {ATTEMPTS_TO_KILL} {signal} signals");
            }
            Guest(script) => {
                let demo = host.new_box(script);
                // Some of these guests end before the box is ready. Whether `boot` reports that as
                // an error does not matter here.
                let _booted = soon(demo.vm.boot()).await;
                soon(demo.vm.wait()).await;
                let death = demo.stamp();
                (demo, death)
            }
        }
    }
}

#[tokio::test]
async fn box_stopped_follows_every_kind_of_death_within_100_ms() {
    let hosts = ROOT_KINDS.map(Host::new);
    for _ in 0..ATTEMPTS {
        let all = times(&hosts).await;
        if all.p99 <= LIMIT {
            return;
        }
    }
    panic!("p99 over {LIMIT:?} in each of {ATTEMPTS} attempts");
}

/// Measures [`DEATHS`] deaths of each kind, prints the percentiles of each kind, and returns those
/// of all deaths.
async fn times(hosts: &[Host]) -> Percentiles {
    let mut all = Vec::new();
    for (kind, death, reason) in KINDS {
        let mut times = Vec::new();
        for host in hosts.iter().cycle().take(DEATHS) {
            let (demo, died) = death.happen(host).await;
            let outcome = demo.vm.wait().await;
            assert_eq!(outcome.reason, reason, "{kind}: {:#?}", demo.events());
            let stopped = demo.observed_at(|event| matches!(event, EventKind::BoxStopped { .. }));
            times.push(stopped.unwrap().duration_since(died).unwrap());
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
