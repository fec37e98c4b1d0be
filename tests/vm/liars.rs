//! A hostile guest and what the shim hears of it: whatever is said on whichever port, the shim goes on,
//! ends when it is told to, and takes no more memory than it may.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use a3s_box_vm_tests::Shim;

/// Most of the shim's own memory: an idle one touches 4.4 MiB (`lifecycle`), and libkrun's queues, tokio's
/// buffers and the windows of HTTP/2 take some more under load.
const MOST_KIB: u64 = 16 * 1024;

/// Metrics, as often as they come.
fn with_metrics(config: &mut Value) {
    config["events"] = json!({"metrics_interval_ms": 500});
}

/// Follows the shim for a while, in which events go on, and gives the most of its own memory.
fn follow(shim: &mut Shim, duration: Duration) -> u64 {
    let start = Instant::now();
    let mut most_kib = 0;
    let mut count = 0;
    while start.elapsed() < duration {
        let metrics = shim.wait_for("metrics");
        most_kib = most_kib.max(metrics["process"]["shim_pss_kib"].as_u64().unwrap());
        count += 1;
    }
    assert!(count >= 3, "events stall\n{shim}");
    assert!(most_kib <= MOST_KIB, "{most_kib} KiB\n{shim}");
    most_kib
}

/// Sends SIGTERM, checks that the box ends by it, within its grace, and gives the milliseconds that it took.
fn stop_in_time(shim: &mut Shim, grace_ms: u64) -> u64 {
    shim.send(Signal::SIGTERM);
    let asked = shim.wait_for("stop.requested")["elapsed_ms"].as_u64().unwrap();
    shim.ends_with(143, "stopped", None);
    let ended = shim.events.last().unwrap()["elapsed_ms"].as_u64().unwrap();
    assert!(ended - asked <= grace_ms, "{} ms\n{shim}", ended - asked);
    ended - asked
}

#[test]
fn root_of_the_guest_that_speaks_for_pid_1_ends_its_own_box_once() {
    let cases = [
        // The first report counts, whatever follows.
        ("forge=exited-5,exited-0,started,hello,exited-3,drained", 5, "exited", None),
        ("forge=garbage", 125, "failed", Some("guest_protocol")),
        ("forge=flood,huge", 125, "failed", Some("guest_protocol")),
    ];
    for (step, code, reason, error) in cases {
        let mut shim = Shim::start_workload(&["another-control", step, "sleep-ms=100000"], |_| {});
        shim.ends_with(code, reason, error);
        assert!(shim.events.len() < 100, "{} events\n{shim}", shim.events.len());
        let exits = shim.events.iter().filter(|event| event["type"] == "guest.exited").count();
        assert_eq!(exits, usize::from(error.is_none()), "{shim}");
        let uptime_ms = shim.events.last().unwrap()["uptime_ms"].as_u64().unwrap();
        println!("{step}: {uptime_ms} ms");
    }
}

#[test]
fn floods_on_every_port_at_once_stall_nothing_and_delay_no_stop() {
    const GRACE_MS: u64 = 20_000;
    let steps = ["flood-output", "flood-control", "sleep-ms=1000", "notify-flood"];
    let mut shim = Shim::start_workload(&steps, |config| {
        with_metrics(config);
        config["console"] = json!({"max_mib": 1});
        config["stop"] = json!({"grace_ms": GRACE_MS});
    });
    shim.wait_for("agent.ready");
    let most_kib = follow(&mut shim, Duration::from_secs(8));
    let stop_ms = stop_in_time(&mut shim, GRACE_MS);
    println!("at most {most_kib} KiB of the shim's own; stopped in {stop_ms} ms");
}

#[test]
fn an_agent_that_lies_is_unhealthy_and_harms_nobody_and_may_become_honest() {
    const GRACE_MS: u64 = 20_000;
    let steps = ["lie-ms=12000", "serve-standard", "sleep-ms=100000"];
    let mut shim = Shim::start_workload(&steps, |config| {
        with_metrics(config);
        config["agent"]["provider"] = json!("image");
        config["agent"]["readiness"] = json!("started");
        config["agent"]["health"] =
            json!({"interval_ms": 100, "timeout_ms": 700, "retries": 2, "start_period_ms": 0});
        config["stop"] = json!({"grace_ms": GRACE_MS});
    });
    let unhealthy = shim.wait_for("health.changed");
    assert_eq!(unhealthy["to"], "unhealthy", "{shim}");
    let most_kib = follow(&mut shim, Duration::from_secs(6));
    let healthy = shim.wait_for("health.changed");
    assert_eq!(healthy["to"], "healthy", "{shim}");
    follow(&mut shim, Duration::from_secs(2));
    let stop_ms = stop_in_time(&mut shim, GRACE_MS);
    println!("at most {most_kib} KiB of the shim's own; stopped in {stop_ms} ms");
}
