//! How soon a box is ready after its agent is.

use std::time::{Duration, Instant, SystemTime};

use crate::chance::Chance;
use crate::ground::Ground;
use crate::image::Image;
use crate::percentiles::{ATTEMPTS, Percentiles};
use crate::shim::{Shim, Until};

/// Starts of each kind.
const STARTS: usize = 100;

/// From the agent's listening to `agent.ready`, as the reader of the stream sees it.
const LIMIT: Duration = Duration::from_millis(25);

/// Starts boxes whose agent plays `steps` and tells when it listens; returns the times to ready.
fn times(ground: &Ground, chance: &mut Chance, steps: &[&str]) -> Percentiles {
    let stamp = ground.path("s").join("box/stamp");
    let times = (0..STARTS).map(|_| {
        let late = format!("sleep-ms={}", chance.below(60));
        let script: Vec<&str> = ["connect", "hello", "started=7"]
            .into_iter()
            .chain([late.as_str()])
            .chain(steps.iter().copied())
            .chain(["stamp", "serve", "wait-stop", "exited=0", "drained", "wait-ack", "exit=0"])
            .collect();
        let mut shim = Shim::start(ground, "box", Until::Played(&script));
        shim.wait_for("agent.ready");
        let seen = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let listens: u64 = std::fs::read_to_string(&stamp).unwrap().parse().unwrap();
        shim.send(nix::sys::signal::Signal::SIGTERM);
        shim.end().assert_code(0);
        seen.saturating_sub(Duration::from_nanos(listens))
    });
    Percentiles::of(times.collect())
}

#[test]
fn a_box_is_ready_as_soon_as_its_agent_is() {
    let ground = Ground::new(&Image::of_one_layer(10_000));
    let mut chance = Chance::new();
    for _ in 0..ATTEMPTS {
        let start = Instant::now();
        let late = times(&ground, &mut chance, &[]);
        println!("an agent that listens late: {late}");
        let closing = times(&ground, &mut chance, &["accept-and-close"]);
        println!("an agent that accepts and closes three times before: {closing}");
        println!("{} starts in {:?}", 2 * STARTS, start.elapsed());
        if late.p99 <= LIMIT && closing.p99 <= LIMIT {
            return;
        }
    }
    panic!("p99 over {LIMIT:?} in each of {ATTEMPTS} attempts");
}
