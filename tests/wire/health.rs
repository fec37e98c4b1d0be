//! Health checks, readiness, metrics, and the notifications of the workload.

use serde_json::{Value, json};

use crate::harness::{Run, run, start};

/// Last steps of most scripts: the workload exits with 0, and the VM ends.
const END: [&str; 4] = ["exited=0", "drained", "wait-ack", "exit=0"];

/// Returns a script with these steps between the start of the guest and [`END`].
fn script(steps: &[&'static str]) -> Vec<&'static str> {
    [&["connect", "hello"], steps, &END].concat()
}

/// Runs a box whose guest plays `steps`, with this `agent` in its config.
fn play(steps: &[&'static str], agent: Value) -> Run {
    start(&script(steps), |config| config["agent"] = agent).wait()
}

/// Returns an `agent` with a check every 20 ms, which is unhealthy after three failures.
///
/// The short interval lets a test see several checks within half a second.
fn frequent_checks() -> Value {
    json!({"boot_timeout_ms": 5000, "health": {
        "interval_ms": 20, "timeout_ms": 200, "retries": 3, "start_period_ms": 0}})
}

/// Returns the events of this type.
fn events_of<'a>(run: &'a Run, kind: &str) -> Vec<&'a Value> {
    run.events.iter().filter(|event| event["type"] == kind).collect()
}

/// Returns the changes of health or state, each as `<from>><to>`.
fn changes(run: &Run, kind: &str) -> Vec<String> {
    let text = |event: &&Value| {
        format!("{}>{}", event["from"].as_str().unwrap(), event["to"].as_str().unwrap())
    };
    events_of(run, kind).iter().map(text).collect()
}

#[test]
fn agent_is_unhealthy_while_it_answers_not_serving() {
    let steps = [
        "serve",
        "started=7",
        "sleep-ms=300",
        "not-serving",
        "sleep-ms=500",
        "serving",
        "sleep-ms=300",
    ];
    let run = play(&steps, frequent_checks());
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let found = changes(&run, "health.changed");
    assert_eq!(
        found,
        ["starting>healthy", "healthy>unhealthy", "unhealthy>healthy"],
        "the events are: {}",
        run.stdout
    );
    let unhealthy = events_of(&run, "health.changed")[1];
    assert_eq!((&unhealthy["cause"], &unhealthy["failures"]), (&json!("not_serving"), &json!(3)));
    assert_eq!(changes(&run, "state.changed"), ["created>ready", "ready>stopped"]);
}

#[test]
fn slow_agent_is_unhealthy_and_the_box_continues() {
    let steps = [
        "serve",
        "started=7",
        "sleep-ms=300",
        "answer-after-ms=1000",
        "sleep-ms=1500",
        "answer-after-ms=0",
        "sleep-ms=700",
    ];
    let run = play(&steps, frequent_checks());
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let found = changes(&run, "health.changed");
    assert_eq!(
        found,
        ["starting>healthy", "healthy>unhealthy", "unhealthy>healthy"],
        "the events are: {}",
        run.stdout
    );
    assert_eq!(events_of(&run, "health.changed")[1]["cause"], "timeout");
}

#[test]
fn unhealthy_box_stops_if_configured() {
    let steps =
        ["connect", "hello", "serve", "started=7", "sleep-ms=300", "not-serving", "wait-stop"];
    let run = start(
        &[&steps[..], &["signaled=15", "drained", "wait-ack", "exit=0"]].concat(),
        |config| {
            config["agent"] = frequent_checks();
            config["agent"]["health"]["on_unhealthy"] = json!("stop");
        },
    )
    .wait();
    assert_eq!(run.ending(), (Some(125), "unhealthy", Some("unhealthy")));
    let last = run.events.last().unwrap();
    assert_eq!(
        (&last["stop"]["cause"], &last["stop"]["ended_by"]),
        (&json!("unhealthy"), &json!("signal"))
    );
}

#[test]
fn agent_that_closes_its_connections_is_unhealthy_by_transport() {
    let steps = ["serve", "started=7", "sleep-ms=300", "vanish", "sleep-ms=700"];
    let run = play(&steps, frequent_checks());
    assert_eq!(run.ending(), (Some(0), "exited", None));
    assert_eq!(changes(&run, "health.changed"), ["starting>healthy", "healthy>unhealthy"]);
    assert_eq!(events_of(&run, "health.changed")[1]["cause"], "transport");
}

#[test]
fn server_of_the_image_with_the_standard_health_service_is_an_agent() {
    let mut agent = frequent_checks();
    agent["provider"] = json!("image");
    let steps = ["serve-standard", "started=7", "sleep-ms=300", "not-serving", "sleep-ms=400"];
    let run = play(&steps, agent);
    assert_eq!(run.ending(), (Some(0), "exited", None));
    assert_eq!(events_of(&run, "agent.ready").len(), 1, "the events are: {}", run.stdout);
    assert_eq!(changes(&run, "health.changed"), ["starting>healthy", "healthy>unhealthy"]);
}

#[test]
fn failures_in_the_start_period_do_not_change_the_health() {
    let mut agent = frequent_checks();
    agent["readiness"] = json!("started");
    agent["health"]["start_period_ms"] = json!(60_000);
    let run = play(&["started=7", "sleep-ms=600", "serve", "sleep-ms=300"], agent);
    assert_eq!(
        changes(&run, "health.changed"),
        ["starting>healthy"],
        "the events are: {}",
        run.stdout
    );
    // Without a start period the same failures count.
    let mut agent = frequent_checks();
    agent["readiness"] = json!("started");
    let run = play(&["started=7", "sleep-ms=600", "serve", "sleep-ms=300"], agent);
    assert_eq!(changes(&run, "health.changed"), ["starting>unhealthy", "unhealthy>healthy"]);
}

#[test]
fn box_with_readiness_notify_is_ready_after_the_notification() {
    let mut agent = frequent_checks();
    agent["readiness"] = json!("notify");
    let steps = ["serve", "started=7", "sleep-ms=300", "notify-ready", "sleep-ms=200"];
    let run = play(&steps, agent.clone());
    let position = |kind| run.events.iter().position(|event| event["type"] == kind).unwrap();
    assert!(position("agent.ready") < position("state.changed"), "the events are: {}", run.stdout);
    let ready_ms = events_of(&run, "state.changed")[0]["elapsed_ms"].as_u64().unwrap();
    // The time is not measured from `guest.started`, because the shim may read the guest's first
    // messages late on a busy host.
    let vm_started_ms = events_of(&run, "vm.starting")[0]["elapsed_ms"].as_u64().unwrap();
    assert!(ready_ms >= vm_started_ms + 300, "the box was ready too early: {}", run.stdout);

    // The boot times out if the workload sends no notification.
    agent["boot_timeout_ms"] = json!(700);
    let run = play(&["serve", "started=7", "hang"], agent);
    assert_eq!(run.ending(), (Some(125), "failed", Some("boot_timeout")));
    assert!(run.stdout.contains("has not sent `READY=1`"), "the events are: {}", run.stdout);
}

#[test]
fn box_without_health_checks_is_ready_when_its_workload_starts() {
    let run = play(&["started=7", "sleep-ms=100"], json!({"provider": "none"}));
    assert_eq!(changes(&run, "state.changed"), ["created>ready", "ready>stopped"]);
    assert!(
        events_of(&run, "agent.ready").is_empty() && events_of(&run, "health.changed").is_empty()
    );
}

#[test]
fn state_comes_from_the_workload_or_from_the_agent() {
    let mut agent = frequent_checks();
    agent["readiness"] = json!("started");
    let steps = ["started=7", "notify-state=2", "sleep-ms=250", "notify-state=3", "sleep-ms=250"];
    let run = play(&steps, agent.clone());
    let expected = ["created>ready", "ready>busy", "busy>compacting", "compacting>stopped"];
    assert_eq!(changes(&run, "state.changed"), expected, "the events are: {}", run.stdout);

    let run = play(&["serve", "started=7", "sleep-ms=250", "answer-busy", "sleep-ms=250"], agent);
    assert_eq!(changes(&run, "state.changed"), ["created>ready", "ready>busy", "busy>stopped"]);
}

#[test]
fn busy_before_the_box_is_ready_is_emitted_after_ready() {
    let run = play(
        &["started=7", "notify-state=2", "sleep-ms=300", "answer-busy", "serve", "sleep-ms=300"],
        frequent_checks(),
    );
    let expected = ["created>ready", "ready>busy", "busy>stopped"];
    assert_eq!(changes(&run, "state.changed"), expected, "the events are: {}", run.stdout);
}

#[test]
fn status_text_of_the_workload_has_no_control_characters() {
    let steps = [
        "started=7",
        "notify-status=warming \u{1b}up",
        "sleep-ms=200",
        "notify-stopping",
        "sleep-ms=200",
    ];
    let run = play(&steps, json!({"provider": "none"}));
    let notified = events_of(&run, "workload.notified");
    assert_eq!(notified.len(), 2, "the events are: {}", run.stdout);
    assert_eq!(
        (&notified[0]["status"], &notified[0]["stopping"]),
        (&json!("warming \u{fffd}up"), &json!(false))
    );
    assert_eq!(notified[1]["stopping"], json!(true));
}

#[test]
fn flood_of_state_changes_is_throttled_and_the_last_state_is_emitted() {
    let steps = ["started=7", "notify-flood=20000", "notify-state=3", "sleep-ms=300"];
    let run = play(&steps, json!({"provider": "none"}));
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let found = changes(&run, "state.changed");
    let flood_ms = u64::try_from(run.duration.as_millis()).unwrap();
    // The shim emits a state of the guest at most every 100 ms. Four more are permitted, for
    // the changes at the start and at the end.
    let max_changes = 4 + flood_ms / 100;
    assert!(found.len() as u64 <= max_changes, "{} changes in {flood_ms} ms", found.len());
    assert_eq!(found.last().unwrap(), "compacting>stopped");
}

#[test]
fn flood_of_notifications_does_not_delay_a_stop() {
    let steps = ["connect", "hello", "started=7", "notify-flood=100000000"];
    let running = start(&steps, |config| {
        config["agent"] = json!({"provider": "none"});
        config["stop"] = json!({"grace_ms": 200});
    });
    std::thread::sleep(std::time::Duration::from_millis(700));
    crate::faults::send(&running, nix::sys::signal::Signal::SIGTERM);
    let run = running.wait();
    let last = run.events.last().unwrap();
    assert_eq!(last["stop"]["ended_by"], "host_deadline", "the events are: {}", run.stdout);
    let requested_ms = last["stop"]["requested_ms"].as_u64().unwrap();
    // The test sends SIGTERM after 700 ms.
    assert!(requested_ms < 1200, "the shim read the signal late: {}", run.stdout);
    // The grace period (200 ms), the time until the shim ends the VM (5 s), and half a second for a
    // busy host.
    let latest_ms = requested_ms + 200 + 5000 + 500;
    assert!(last["elapsed_ms"].as_u64().unwrap() < latest_ms, "the box ended late: {}", run.stdout);
}

#[test]
fn metrics_are_emitted_at_once_and_then_at_each_interval() {
    let run = start(&script(&["serve", "started=7", "sleep-ms=900"]), |config| {
        config["agent"] = frequent_checks();
        config["events"] = json!({"metrics_interval_ms": 200});
    })
    .wait();
    let metrics = events_of(&run, "metrics");
    let is_expected = (3..=6).contains(&metrics.len());
    assert!(is_expected, "there are {} events of metrics: {}", metrics.len(), run.stdout);
    let last = metrics.last().unwrap();
    assert_eq!(last["guest"]["memory_available_kib"], 600);
    // The guest sent NaN as the second load.
    assert_eq!(last["guest"]["load"], json!([0.5, 0.0, 0.25]));
    assert!(last["process"]["shim_pss_kib"].as_u64().unwrap() > 500, "the event is {last}");
    assert_eq!(last["health"]["state"], "healthy");
    assert!(last["health"]["checks"].as_u64().unwrap() > 5, "the event is {last}");
    assert!(last["health"]["last_latency_us"].as_u64().unwrap() > 0, "the event is {last}");
    // By default the shim emits no metrics.
    let without = run_without_metrics();
    assert!(events_of(&without, "metrics").is_empty());
}

#[test]
fn value_of_the_environment_is_in_no_event_log_or_file() {
    const SECRET: &str = "hunter2-and-more";
    let running = start(&script(&["serve", "started=7", "sleep-ms=400"]), |config| {
        let state_dir = config["paths"]["state_dir"].as_str().unwrap().to_owned();
        let file = std::path::Path::new(&state_dir).with_file_name("events");
        config["process"]["env"] = json!({"TOKEN": SECRET});
        config["events"] = json!({"metrics_interval_ms": 100, "file": file});
    });
    let run = running.wait();
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let state = run.directory.path().join("s/golden");
    let mut texts = vec![run.stdout.clone(), run.stderr.clone()];
    for name in ["run.json", "exit.json", "console.log", "../../events"] {
        texts.push(std::fs::read_to_string(state.join(name)).unwrap());
    }
    let has_no_secret = texts.iter().all(|text| !text.contains(SECRET));
    assert!(has_no_secret, "the secret is in one of these texts: {texts:#?}");
    let is_whole = texts[0].contains("box.stopped") && texts[5] == texts[0];
    assert!(is_whole, "the event file is not equal to standard output");
}

fn run_without_metrics() -> Run {
    run(&script(&["serve", "started=7", "sleep-ms=200"]))
}
