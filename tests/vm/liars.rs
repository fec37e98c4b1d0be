//! A hostile guest that sends false, malformed or endless messages on the ports of the shim.
//!
//! The shim must keep working, stop the box in time, and stay within a bound of memory.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use a3s_box_vm_tests::Shim;

/// Most memory of the shim itself in KiB (PSS). An idle shim has 4.4 MiB (`lifecycle`). Under load,
/// the queues of libkrun, the buffers of tokio and the windows of HTTP/2 need more.
const MOST_KIB: u64 = 16 * 1024;

/// Sets the interval of the event `metrics`, by which the tests see that the shim is alive.
fn with_metrics(config: &mut Value) {
    config["events"] = json!({"metrics_interval_ms": 500});
}

/// Reads metrics for `duration` and returns the most memory of the shim itself in KiB.
///
/// Panics if fewer than three metrics come or the memory exceeds [`MOST_KIB`].
fn follow(shim: &mut Shim, duration: Duration) -> u64 {
    let start = Instant::now();
    let mut most_kib = 0;
    let mut count = 0;
    while start.elapsed() < duration {
        let metrics = shim.wait_for("metrics");
        most_kib = most_kib.max(metrics["process"]["shim_pss_kib"].as_u64().unwrap());
        count += 1;
    }
    assert!(count >= 3, "only {count} metrics came\n{shim}");
    assert!(most_kib <= MOST_KIB, "{most_kib} KiB\n{shim}");
    most_kib
}

/// Stops the box with SIGTERM and returns the milliseconds that the stop took. Panics unless the
/// workload ends by the signal within the grace period.
fn stop_in_time(shim: &mut Shim, grace_ms: u64) -> u64 {
    shim.send(Signal::SIGTERM);
    let requested_ms = shim.wait_for("stop.requested")["elapsed_ms"].as_u64().unwrap();
    shim.ends_with(143, "stopped", None);
    let ended_ms = shim.events.last().unwrap()["elapsed_ms"].as_u64().unwrap();
    let stop_ms = ended_ms - requested_ms;
    assert!(stop_ms <= grace_ms, "the stop took {stop_ms} ms\n{shim}");
    stop_ms
}

#[test]
fn forged_messages_of_pid_1_end_the_box_once() {
    let cases = [
        // The shim accepts the first report of an exit and ignores the rest.
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
fn floods_on_all_ports_at_once_stall_no_event_and_delay_no_stop() {
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
    println!("the shim itself had at most {most_kib} KiB; stopped in {stop_ms} ms");
}

#[test]
fn an_agent_with_malformed_answers_is_unhealthy_until_it_answers_correctly() {
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
    println!("the shim itself had at most {most_kib} KiB; stopped in {stop_ms} ms");
}
