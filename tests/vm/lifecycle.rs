//! Health, readiness, states and metrics of a box, and the limits of a flood from the workload.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use a3s_box_vm_tests::Shim;

/// Returns the changes in the events of type `kind`, each as `from>to`.
fn changes(shim: &Shim, kind: &str) -> Vec<String> {
    let of_kind = shim.events.iter().filter(|event| event["type"] == kind);
    let text = |event: &Value| {
        format!("{}>{}", event["from"].as_str().unwrap(), event["to"].as_str().unwrap())
    };
    of_kind.map(text).collect()
}

#[test]
fn a_health_server_of_the_image_serves_as_the_agent() {
    let steps = ["serve-standard", "sleep-ms=4000", "not-serving", "sleep-ms=100000"];
    let mut shim = Shim::start_workload(&steps, |config| {
        config["agent"]["provider"] = json!("image");
        config["agent"]["health"] = json!({"interval_ms": 300, "timeout_ms": 2000, "retries": 2});
    });
    shim.wait_for("agent.ready");
    let healthy = shim.wait_for("health.changed");
    assert_eq!(healthy["to"], "healthy", "{shim}");
    let unhealthy = shim.wait_for("health.changed");
    assert_eq!(
        (&unhealthy["to"], &unhealthy["cause"]),
        (&json!("unhealthy"), &json!("not_serving")),
        "{shim}"
    );
    shim.send(Signal::SIGTERM);
    shim.ends_with(143, "stopped", None);
}

#[test]
fn an_agent_that_never_reads_is_unhealthy_and_delays_no_stop() {
    let mut shim = Shim::start_workload(&["deaf-agent", "sleep-ms=100000"], |config| {
        config["agent"]["provider"] = json!("image");
        config["agent"]["readiness"] = json!("started");
        // Until the workload listens, failed checks must not count.
        config["agent"]["health"] =
            json!({"interval_ms": 100, "timeout_ms": 500, "retries": 2, "start_period_ms": 5000});
    });
    let unhealthy = shim.wait_for("health.changed");
    assert_eq!(
        (&unhealthy["to"], &unhealthy["cause"]),
        (&json!("unhealthy"), &json!("timeout")),
        "{shim}"
    );
    shim.send(Signal::SIGTERM);
    shim.ends_with(143, "stopped", None);
}

#[test]
fn notify_messages_of_the_workload_set_readiness_and_state() {
    let steps = [
        "sleep-ms=500",
        "notify=READY=1\nSTATUS=serving",
        "sleep-ms=500",
        "notify=X_A3S_STATE=busy",
        "sleep-ms=500",
        "notify=X_A3S_STATE=compacting",
        "sleep-ms=500",
        "notify=X_A3S_STATE=ready",
        "sleep-ms=500",
        "notify=STOPPING=1",
        "another-control",
        "sleep-ms=500",
    ];
    let mut shim =
        Shim::start_workload(&steps, |config| config["agent"]["readiness"] = json!("notify"));
    shim.ends_with(0, "exited", None);
    let expected =
        ["created>ready", "ready>busy", "busy>compacting", "compacting>ready", "ready>stopped"];
    assert_eq!(changes(&shim, "state.changed"), expected, "{shim}");
    let notified = shim.events.iter().filter(|event| event["type"] == "workload.notified");
    let notified: Vec<&Value> = notified.collect();
    assert_eq!(
        (&notified[0]["ready"], &notified[0]["status"]),
        (&json!(true), &json!("serving")),
        "{shim}"
    );
    assert_eq!(notified.last().unwrap()["stopping"], json!(true), "{shim}");
}

#[test]
fn a_flood_of_notify_messages_is_throttled_and_delays_no_stop() {
    let mut shim = Shim::start_workload(&["notify-flood"], |config| {
        config["stop"] = json!({"grace_ms": 20_000});
    });
    shim.wait_for("agent.ready");
    std::thread::sleep(std::time::Duration::from_secs(2));
    shim.send(Signal::SIGTERM);
    shim.ends_with(143, "stopped", None);
    let last = shim.events.last().unwrap();
    assert_eq!(last["stop"]["ended_by"], "signal", "{shim}");
    let uptime_ms = last["uptime_ms"].as_u64().unwrap();
    // The shim emits at most ten changes a second. The start and the end of the box add a few.
    let count = changes(&shim, "state.changed").len() as u64;
    assert!(count <= uptime_ms / 100 + 3, "{count} changes in {uptime_ms} ms");
}

#[test]
fn a_flood_of_output_stays_within_the_console_limit_and_keeps_the_newest() {
    const MIB: u64 = 1 << 20;
    let mut shim =
        Shim::start_workload(&["print-mib=8"], |config| config["console"] = json!({"max_mib": 1}));
    shim.ends_with(0, "exited", None);
    let size = |name| std::fs::metadata(shim.state().join(name)).map_or(0, |found| found.len());
    let kept = size("console.log") + size("console.log.1");
    assert!(kept <= MIB && kept > MIB / 4, "{kept} bytes are kept");
    // The workload prints numbers in lines of 16 bytes.
    let last = format!("{:015}\n", 8 * MIB / 16 - 1);
    assert!(shim.console().ends_with(last.as_bytes()), "{shim}");
    let truncated = shim.events.iter().rfind(|event| event["type"] == "console.truncated");
    let truncated = truncated.unwrap_or_else(|| panic!("{shim}"));
    assert_eq!(truncated["cause"], "size");
}

#[test]
fn metrics_describe_the_guest() {
    let mut shim = Shim::start_workload(&["sleep-ms=100000"], |config| {
        config["events"] = json!({"metrics_interval_ms": 1000});
    });
    shim.wait_for("metrics");
    let metrics = shim.wait_for("metrics");
    let total_kib = metrics["guest"]["memory_total_kib"].as_u64().unwrap();
    assert!((300_000..600_000).contains(&total_kib), "{metrics}");
    assert!(metrics["guest"]["memory_available_kib"].as_u64().unwrap() < total_kib, "{metrics}");
    assert!(metrics["guest"]["processes"].as_u64().unwrap() > 2, "{metrics}");
    assert_eq!(metrics["health"]["state"], "healthy");
    assert!(metrics["boot"]["kernel_ms"].as_u64().unwrap() > 0, "{metrics}");
    shim.send(Signal::SIGTERM);
    shim.ends_with(143, "stopped", None);
}

#[test]
fn a_shim_itself_needs_at_most_6_mib_beside_its_guest() {
    // With layers in the cache, each of three shims had 5.0 to 5.2 MiB, with either kind of root. Of
    // that, 2 MiB are its share of the executable's pages. A shim that has unpacked layers had up to
    // 1.3 MiB more.
    const BOXES: usize = 3;
    const LIMIT_KIB: u64 = 6 * 1024;
    let start = |_| {
        Shim::start_workload(&["sleep-ms=100000"], |config| {
            config["events"] = json!({"metrics_interval_ms": 1000});
        })
    };
    let mut first = Shim::start_workload(&["sleep-ms=1"], |_| {});
    first.ends_with(0, "exited", None);
    let mut shims: Vec<Shim> = (0..BOXES).map(start).collect();
    let time = |event: &Value| event["time"].as_str().unwrap().to_owned();
    let all_ready = shims.iter_mut().map(|shim| time(&shim.wait_for("agent.ready"))).max().unwrap();
    for shim in &mut shims {
        // Metrics count only once all shims are ready and share their pages.
        let mut metrics = shim.wait_for("metrics");
        while time(&metrics) <= all_ready {
            metrics = shim.wait_for("metrics");
        }
        let kib = |name: &str| metrics["process"][name].as_u64().unwrap();
        println!(
            "PSS {} KiB, of which the shim itself {} KiB",
            kib("pss_kib"),
            kib("shim_pss_kib")
        );
        assert!(
            kib("pss_kib") > 20_000 && kib("shim_pss_kib") > 500,
            "implausibly little memory of the guest or the shim: {metrics}"
        );
        assert!(kib("shim_pss_kib") <= LIMIT_KIB, "{metrics}");
    }
    for shim in &mut shims {
        shim.send(Signal::SIGTERM);
        shim.ends_with(143, "stopped", None);
    }
}
