//! Health checks, readiness, and what the workload says about itself.

use serde_json::{Value, json};

use crate::harness::{Run, run, start};

/// The end of every script here.
const END: [&str; 4] = ["exited=0", "drained", "wait-ack", "exit=0"];

fn script(steps: &[&'static str]) -> Vec<&'static str> {
    [&["connect", "hello"], steps, &END].concat()
}

fn play(steps: &[&'static str], agent: Value) -> Run {
    start(&script(steps), |config| config["agent"] = agent).wait()
}

/// Checks each 20 ms, and three failures are too many.
fn quick() -> Value {
    json!({"boot_timeout_ms": 5000, "health": {
        "interval_ms": 20, "timeout_ms": 200, "retries": 3, "start_period_ms": 0}})
}

fn of<'a>(run: &'a Run, kind: &str) -> Vec<&'a Value> {
    run.events.iter().filter(|event| event["type"] == kind).collect()
}

/// The changes of health or state, as `from>to`.
fn changes(run: &Run, kind: &str) -> Vec<String> {
    let text = |event: &&Value| {
        format!("{}>{}", event["from"].as_str().unwrap(), event["to"].as_str().unwrap())
    };
    of(run, kind).iter().map(text).collect()
}

#[test]
fn an_agent_that_says_it_does_not_serve_is_unhealthy_until_it_does() {
    let steps = [
        "serve",
        "started=7",
        "sleep-ms=300",
        "not-serving",
        "sleep-ms=500",
        "serving",
        "sleep-ms=300",
    ];
    let run = play(&steps, quick());
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let found = changes(&run, "health.changed");
    assert_eq!(
        found,
        ["starting>healthy", "healthy>unhealthy", "unhealthy>healthy"],
        "{}",
        run.stdout
    );
    let unhealthy = of(&run, "health.changed")[1];
    assert_eq!((&unhealthy["cause"], &unhealthy["failures"]), (&json!("not_serving"), &json!(3)));
    assert_eq!(changes(&run, "state.changed"), ["created>ready", "ready>stopped"]);
}

#[test]
fn an_agent_that_is_too_slow_is_unhealthy_and_the_box_goes_on() {
    let steps = [
        "serve",
        "started=7",
        "sleep-ms=300",
        "answer-after-ms=1000",
        "sleep-ms=1500",
        "answer-after-ms=0",
        "sleep-ms=700",
    ];
    let run = play(&steps, quick());
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let found = changes(&run, "health.changed");
    assert_eq!(
        found,
        ["starting>healthy", "healthy>unhealthy", "unhealthy>healthy"],
        "{}",
        run.stdout
    );
    assert_eq!(of(&run, "health.changed")[1]["cause"], "timeout");
}

#[test]
fn a_box_that_is_to_stop_when_unhealthy_does_and_says_so() {
    let steps =
        ["connect", "hello", "serve", "started=7", "sleep-ms=300", "not-serving", "wait-stop"];
    let run = start(
        &[&steps[..], &["signaled=15", "drained", "wait-ack", "exit=0"]].concat(),
        |config| {
            config["agent"] = quick();
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
fn an_agent_that_vanishes_is_a_lost_transport() {
    let steps = ["serve", "started=7", "sleep-ms=300", "vanish", "sleep-ms=700"];
    let run = play(&steps, quick());
    assert_eq!(run.ending(), (Some(0), "exited", None));
    assert_eq!(changes(&run, "health.changed"), ["starting>healthy", "healthy>unhealthy"]);
    assert_eq!(of(&run, "health.changed")[1]["cause"], "transport");
}

#[test]
fn a_server_of_the_image_with_the_standard_service_is_an_agent() {
    let mut agent = quick();
    agent["provider"] = json!("image");
    let steps = ["serve-standard", "started=7", "sleep-ms=300", "not-serving", "sleep-ms=400"];
    let run = play(&steps, agent);
    assert_eq!(run.ending(), (Some(0), "exited", None));
    assert_eq!(of(&run, "agent.ready").len(), 1, "{}", run.stdout);
    assert_eq!(changes(&run, "health.changed"), ["starting>healthy", "healthy>unhealthy"]);
}

#[test]
fn failures_in_the_start_period_do_not_count() {
    let mut agent = quick();
    agent["readiness"] = json!("started");
    agent["health"]["start_period_ms"] = json!(60_000);
    let run = play(&["started=7", "sleep-ms=600", "serve", "sleep-ms=300"], agent);
    assert_eq!(changes(&run, "health.changed"), ["starting>healthy"], "{}", run.stdout);
    let mut agent = quick();
    agent["readiness"] = json!("started");
    let run = play(&["started=7", "sleep-ms=600", "serve", "sleep-ms=300"], agent);
    assert_eq!(changes(&run, "health.changed"), ["starting>unhealthy", "unhealthy>healthy"]);
}

#[test]
fn a_box_is_ready_when_its_workload_says_so() {
    let mut agent = quick();
    agent["readiness"] = json!("notify");
    let steps = ["serve", "started=7", "sleep-ms=300", "notify-ready", "sleep-ms=200"];
    let run = play(&steps, agent.clone());
    let position = |kind| run.events.iter().position(|event| event["type"] == kind).unwrap();
    assert!(position("agent.ready") < position("state.changed"), "{}", run.stdout);
    let ready_ms = of(&run, "state.changed")[0]["elapsed_ms"].as_u64().unwrap();
    // Not since `guest.started`: what the guest says first may be read late.
    let begun_ms = of(&run, "vm.starting")[0]["elapsed_ms"].as_u64().unwrap();
    assert!(ready_ms >= begun_ms + 300, "{}", run.stdout);

    agent["boot_timeout_ms"] = json!(700);
    let run = play(&["serve", "started=7", "hang"], agent);
    assert_eq!(run.ending(), (Some(125), "failed", Some("boot_timeout")));
    assert!(run.stdout.contains("has not sent `READY=1`"), "{}", run.stdout);
}

#[test]
fn a_box_without_checks_is_ready_when_its_workload_was_started() {
    let run = play(&["started=7", "sleep-ms=100"], json!({"provider": "none"}));
    assert_eq!(changes(&run, "state.changed"), ["created>ready", "ready>stopped"]);
    assert!(of(&run, "agent.ready").is_empty() && of(&run, "health.changed").is_empty());
}

#[test]
fn what_the_box_does_is_the_workloads_or_the_agents_to_say() {
    let mut agent = quick();
    agent["readiness"] = json!("started");
    let steps = ["started=7", "notify-state=2", "sleep-ms=250", "notify-state=3", "sleep-ms=250"];
    let run = play(&steps, agent.clone());
    let expected = ["created>ready", "ready>busy", "busy>compacting", "compacting>stopped"];
    assert_eq!(changes(&run, "state.changed"), expected, "{}", run.stdout);

    let run = play(&["serve", "started=7", "sleep-ms=250", "answer-busy", "sleep-ms=250"], agent);
    assert_eq!(changes(&run, "state.changed"), ["created>ready", "ready>busy", "busy>stopped"]);
}

#[test]
fn a_busy_that_comes_before_the_box_is_ready_is_told_then() {
    let run = play(
        &["started=7", "notify-state=2", "sleep-ms=300", "answer-busy", "serve", "sleep-ms=300"],
        quick(),
    );
    let expected = ["created>ready", "ready>busy", "busy>stopped"];
    assert_eq!(changes(&run, "state.changed"), expected, "{}", run.stdout);
}

#[test]
fn what_the_workload_says_is_told_bounded_and_printable() {
    let steps = [
        "started=7",
        "notify-status=warming \u{1b}up",
        "sleep-ms=200",
        "notify-stopping",
        "sleep-ms=200",
    ];
    let run = play(&steps, json!({"provider": "none"}));
    let told = of(&run, "workload.notified");
    assert_eq!(told.len(), 2, "{}", run.stdout);
    assert_eq!(
        (&told[0]["status"], &told[0]["stopping"]),
        (&json!("warming \u{fffd}up"), &json!(false))
    );
    assert_eq!(told[1]["stopping"], json!(true));
}

#[test]
fn a_flood_of_states_is_a_few_events_and_the_last_one_counts() {
    let steps = ["started=7", "notify-flood=20000", "notify-state=3", "sleep-ms=300"];
    let run = play(&steps, json!({"provider": "none"}));
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let found = changes(&run, "state.changed");
    let flood_ms = u64::try_from(run.duration.as_millis()).unwrap();
    assert!(found.len() as u64 <= 4 + flood_ms / 100, "{} in {flood_ms} ms", found.len());
    assert_eq!(found.last().unwrap(), "compacting>stopped");
}

#[test]
fn a_guest_that_floods_does_not_delay_a_stop() {
    let steps = ["connect", "hello", "started=7", "notify-flood=100000000"];
    let running = start(&steps, |config| {
        config["agent"] = json!({"provider": "none"});
        config["stop"] = json!({"grace_ms": 200});
    });
    std::thread::sleep(std::time::Duration::from_millis(700));
    crate::faults::send(&running, nix::sys::signal::Signal::SIGTERM);
    let run = running.wait();
    let last = run.events.last().unwrap();
    assert_eq!(last["stop"]["ended_by"], "host_deadline", "{}", run.stdout);
    let requested_ms = last["stop"]["requested_ms"].as_u64().unwrap();
    assert!(requested_ms < 1200, "{}", run.stdout);
    assert!(
        last["elapsed_ms"].as_u64().unwrap() < requested_ms + 200 + 5000 + 500,
        "{}",
        run.stdout
    );
}

#[test]
fn figures_are_told_at_once_and_then_each_interval() {
    let run = start(&script(&["serve", "started=7", "sleep-ms=900"]), |config| {
        config["agent"] = quick();
        config["events"] = json!({"metrics_interval_ms": 200});
    })
    .wait();
    let told = of(&run, "metrics");
    assert!((3..=6).contains(&told.len()), "{}", run.stdout);
    let last = told.last().unwrap();
    assert_eq!(last["guest"]["memory_available_kib"], 600);
    assert_eq!(last["guest"]["load"], json!([0.5, 0.0, 0.25]));
    assert!(last["process"]["shim_pss_kib"].as_u64().unwrap() > 500, "{last}");
    assert_eq!(last["health"]["state"], "healthy");
    assert!(last["health"]["checks"].as_u64().unwrap() > 5, "{last}");
    assert!(last["health"]["last_latency_us"].as_u64().unwrap() > 0, "{last}");
    let without = run_without_metrics();
    assert!(of(&without, "metrics").is_empty());
}

#[test]
fn no_secret_is_told_anywhere() {
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
    assert!(texts.iter().all(|text| !text.contains(SECRET)), "{texts:#?}");
    assert!(texts[0].contains("box.stopped") && texts[5] == texts[0], "the file is the stream");
}

fn run_without_metrics() -> Run {
    run(&script(&["serve", "started=7", "sleep-ms=200"]))
}
