//! The time from an agent that listens to the event `agent.ready`.

use std::time::{Duration, Instant, SystemTime};

use a3s_box_core::config::RootKind;

use crate::image::Image;
use crate::percentiles::{ATTEMPTS, Percentiles};
use crate::random::Random;
use crate::scratch::{ROOT_KINDS, Scratch};
use crate::shim::{Shim, Until};

/// Starts of each kind of agent. Half of them have each kind of root.
const STARTS: usize = 100;

/// Longest time until the test has read `agent.ready`, for 99 of 100 starts.
const LIMIT: Duration = Duration::from_millis(25);

/// Starts boxes whose guest plays `steps`, stamps the time, and serves the agent. Returns the
/// percentiles of the times from the stamp to `agent.ready`.
fn times(scratch: &mut Scratch, random: &mut Random, steps: &[&str]) -> Percentiles {
    let stamp = scratch.path("s").join("box/stamp");
    let times = ROOT_KINDS.into_iter().cycle().take(STARTS).map(|kind| {
        scratch.kind = kind;
        // The agent listens at a random time, up to 60 ms after the workload has started.
        let late = format!("sleep-ms={}", random.below(60));
        let script: Vec<&str> = ["connect", "hello", "started=7"]
            .into_iter()
            .chain([late.as_str()])
            .chain(steps.iter().copied())
            .chain(["stamp", "serve", "wait-stop", "exited=0", "drained", "wait-ack", "exit=0"])
            .collect();
        let mut shim = Shim::start(scratch, "box", Until::Played(&script));
        shim.wait_for("agent.ready");
        let ready = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let listening_ns: u64 = std::fs::read_to_string(&stamp).unwrap().parse().unwrap();
        shim.send(nix::sys::signal::Signal::SIGTERM);
        shim.end().assert_code(0);
        ready.saturating_sub(Duration::from_nanos(listening_ns))
    });
    Percentiles::of(times.collect())
}

#[test]
fn a_box_is_ready_within_25_ms_of_its_agent() {
    let mut scratch = Scratch::new(&Image::of_one_layer(10_000), RootKind::Block);
    let mut random = Random::new();
    for _ in 0..ATTEMPTS {
        let start = Instant::now();
        let late = times(&mut scratch, &mut random, &[]);
        println!("an agent that listens late: {late}");
        let closing = times(&mut scratch, &mut random, &["accept-and-close"]);
        println!("an agent that first accepts and closes connections: {closing}");
        println!("{} starts in {:?}", 2 * STARTS, start.elapsed());
        if late.p99 <= LIMIT && closing.p99 <= LIMIT {
            return;
        }
    }
    panic!("p99 over {LIMIT:?} in each of {ATTEMPTS} attempts");
}
