use std::net::{IpAddr, Ipv4Addr};

use a3s_box_core::event::{
    BootPhases, EventKind, Metrics, ProcessMetrics, RefusedProtocol, StopCause, StopReason,
    TruncationCause,
};
use a3s_box_core::{BoxState, ErrorCode, ErrorReport, HealthState};
use proptest::prelude::*;

use super::grid::{Activity, Health};
use super::model::BarKind;
use super::panel::{Panel, Row, panels};
use super::*;

/// Returns an event with the sequence number `seq`.
fn event(seq: u64, elapsed_ms: u64, kind: EventKind) -> Event {
    let time = "2026-01-31T09:00:00.123Z".to_owned();
    Event { v: 1, seq, time, elapsed_ms, box_id: "demo".to_owned(), kind }
}

fn timeline_of(events: &[Event]) -> Timeline {
    let mut runs = Runs::new(None);
    events.iter().for_each(|event| runs.record(event));
    runs.finish().unwrap()
}

fn timeline(kinds: Vec<(u64, EventKind)>) -> Timeline {
    let events: Vec<_> = (0..).zip(kinds).map(|(seq, (ms, kind))| event(seq, ms, kind)).collect();
    timeline_of(&events)
}

fn started() -> EventKind {
    EventKind::ShimStarted { version: "0.1.0".to_owned(), pid: 1 }
}

fn progress(layer_number: u32, bytes_done: u64) -> EventKind {
    EventKind::RootfsProgress {
        layer: "sha256:abc".to_owned(),
        layer_number,
        layers: 3,
        bytes_done,
        bytes_total: 100,
        image_bytes_done: 0,
        image_bytes_total: 300,
    }
}

fn vm_starting() -> EventKind {
    EventKind::VmStarting { vcpus: 1, memory_mib: 512, ipv6: None }
}

fn guest_started() -> EventKind {
    EventKind::GuestStarted { guest_version: "0.1.0".to_owned(), workload_pid: Some(7) }
}

fn agent_ready() -> EventKind {
    let (config_ms, rootfs_ms, vm_ms, kernel_ms, agent_ms) = (10, 20, 30, 40, 50);
    let phases = BootPhases { config_ms, rootfs_ms, vm_ms, kernel_ms, agent_ms, total_ms: 150 };
    EventKind::AgentReady { phases }
}

fn state(from: BoxState, to: BoxState) -> EventKind {
    EventKind::StateChanged { from, to }
}

fn health(from: HealthState, to: HealthState) -> EventKind {
    EventKind::HealthChanged { from, to, cause: None, message: None, failures: 3 }
}

fn stop_requested() -> EventKind {
    EventKind::StopRequested {
        cause: StopCause::Signal,
        signal: "SIGTERM".to_owned(),
        grace_ms: 1000,
    }
}

fn box_stopped(uptime_ms: u64) -> EventKind {
    let (exit_code, signal, stop) = (Some(0), None, None);
    EventKind::BoxStopped { reason: StopReason::Stopped, exit_code, signal, uptime_ms, stop }
}

fn error(message: &str) -> EventKind {
    EventKind::Error(ErrorReport {
        code: ErrorCode::BootTimeout,
        message: message.to_owned(),
        causes: vec![message.to_owned()],
        hint: Some(message.to_owned()),
        retryable: true,
    })
}

/// Returns bars as (label, from, to, is finished).
fn shown(bars: &[model::Bar]) -> Vec<(&str, u64, u64, bool)> {
    let show = |bar: &'_ model::Bar| (bar.span.from_ms, bar.span.to_ms, bar.is_finished);
    bars.iter()
        .map(|bar| {
            let (from_ms, to_ms, is_finished) = show(bar);
            (bar.label.as_str(), from_ms, to_ms, is_finished)
        })
        .collect()
}

#[test]
fn draws_the_phases_that_the_shim_measured() {
    let timeline = timeline(vec![(1, started()), (150, agent_ready())]);
    let expected = [
        ("config", 0, 10, true),
        ("rootfs", 10, 30, true),
        ("vm", 30, 60, true),
        ("kernel", 60, 100, true),
        ("agent", 100, 150, true),
    ];
    assert_eq!(shown(&timeline.boot), expected);
    assert!(timeline.is_ready && timeline.boot_end_ms == 150);
}

#[test]
fn a_failed_boot_ends_with_an_unfinished_phase() {
    let cases = [
        (vec![(2, error("a"))], vec![("config", 0, 90, false)]),
        (
            vec![
                (1, started()),
                (20, progress(1, 50)),
                (30, progress(1, 100)),
                (50, progress(2, 9)),
            ],
            vec![
                ("config", 0, 20, true),
                ("rootfs", 20, 90, false),
                ("layer 1/3", 20, 30, true),
                ("layer 2/3", 30, 90, false),
            ],
        ),
        (
            vec![(1, started()), (30, vm_starting())],
            vec![("config", 0, 30, true), ("rootfs", 30, 30, true), ("vm, kernel", 30, 90, false)],
        ),
        (
            vec![(30, vm_starting()), (60, guest_started())],
            vec![
                ("config", 0, 30, true),
                ("rootfs", 30, 30, true),
                ("vm, kernel", 30, 60, true),
                ("agent", 60, 90, false),
            ],
        ),
    ];
    for (mut kinds, expected) in cases {
        kinds.push((90, box_stopped(90)));
        let timeline = timeline(kinds);
        assert_eq!(shown(&timeline.boot), expected);
        assert!(!timeline.is_ready);
    }
}

#[test]
fn a_box_without_an_agent_is_ready_with_its_change_of_state() {
    let timeline = timeline(vec![
        (10, vm_starting()),
        (40, guest_started()),
        (40, state(BoxState::Created, BoxState::Ready)),
        (99, box_stopped(99)),
    ]);
    assert_eq!(timeline.boot.last().unwrap().kind, BarKind::Kernel);
    assert!(timeline.is_ready && timeline.boot_end_ms == 40);
}

#[test]
fn layers_follow_each_other_without_gaps_despite_rare_progress_events() {
    let timeline = timeline(vec![
        (10, progress(1, 10)),
        (100, progress(1, 60)),
        (200, progress(2, 20)),
        (300, progress(2, 100)),
        (390, progress(3, 80)),
        (500, EventKind::EventsDropped { count: 7 }),
        (600, vm_starting()),
    ]);
    let layers: Vec<_> = timeline.boot.iter().filter(|bar| bar.kind == BarKind::Layer).collect();
    let spans: Vec<_> = layers.iter().map(|bar| (bar.span.from_ms, bar.span.to_ms)).collect();
    assert_eq!(spans, [(10, 200), (200, 300), (300, 600)]);
}

#[test]
fn states_and_health_add_up_to_the_whole_run() {
    let timeline = timeline(vec![
        (0, started()),
        (100, state(BoxState::Created, BoxState::Ready)),
        (100, health(HealthState::Starting, HealthState::Healthy)),
        (300, state(BoxState::Ready, BoxState::Busy)),
        (350, health(HealthState::Healthy, HealthState::Unhealthy)),
        (600, state(BoxState::Busy, BoxState::Compacting)),
        (700, state(BoxState::Compacting, BoxState::Ready)),
        (900, stop_requested()),
        (940, state(BoxState::Ready, BoxState::Busy)),
        (1000, box_stopped(1000)),
    ]);
    let totals = &timeline.totals;
    assert_eq!(Activity::ALL.map(|of| totals.activity(of)), [100, 400, 300, 100, 100]);
    assert_eq!(Health::ALL.map(|of| totals.health(of)), [100, 250, 650]);
    let sum: f64 = timeline.grid.cells().flat_map(|(_, cell)| cell.activity_ms).sum();
    assert!((sum - 1000.0).abs() < 1e-6);
    assert_eq!(shown(&timeline.stop), [("stopping", 900, 1000, true)]);
}

#[test]
fn draws_the_steps_of_a_stop() {
    let timeline = timeline(vec![
        (500, stop_requested()),
        (1500, EventKind::StopKilled {}),
        (1520, EventKind::GuestExited { exit_code: None, signal: Some(9) }),
        (1600, box_stopped(1600)),
    ]);
    let expected = [
        ("stopping", 500, 1500, true),
        ("killing", 1500, 1520, true),
        ("shutting down", 1520, 1600, true),
    ];
    assert_eq!(shown(&timeline.stop), expected);
}

fn titles(timeline: &Timeline) -> Vec<String> {
    panels(timeline).into_iter().map(|panel| panel.title).collect()
}

#[test]
fn boot_and_stop_of_a_long_run_have_panels_of_their_own() {
    let life = |end_ms| {
        timeline(vec![
            (150, agent_ready()),
            (150, state(BoxState::Created, BoxState::Ready)),
            (end_ms, stop_requested()),
            (end_ms + 50, box_stopped(end_ms + 50)),
        ])
    };
    assert_eq!(titles(&life(500)), ["Boot and life"]);
    assert_eq!(titles(&life(86_400_000)), ["Boot", "Life", "Stop, after 1 d"]);
}

#[test]
fn a_file_without_its_beginning_is_drawn_with_notes() {
    let late = |seq, kind| event(seq, 90_000_000 + seq, kind);
    let events = [
        late(1000, state(BoxState::Busy, BoxState::Ready)),
        late(1003, state(BoxState::Ready, BoxState::Busy)),
    ];
    let timeline = timeline_of(&events);
    assert_eq!(timeline.life, span::Span::new(90_001_000, 90_001_003));
    assert_eq!(titles(&timeline), ["Life"]);
    let notes: Vec<_> = timeline.notes.iter().map(|note| note.text.as_str()).collect();
    let expected =
        ["the file begins here; the file before it has the rest", "2 events are not in the file"];
    assert_eq!(notes, expected);
}

#[test]
fn bounds_the_rows_of_an_image_with_many_layers() {
    let kinds = (1..=100).map(|layer| (u64::from(layer) * 10, progress(layer, 100)));
    let timeline = timeline(kinds.chain([(1010, vm_starting())]).collect());
    let panels = panels(&timeline);
    let rows = panels.iter().flat_map(|panel: &Panel| &panel.rows);
    let bars: Vec<_> = rows
        .filter_map(|row| if let Row::Bar { bar, .. } = row { Some(bar) } else { None })
        .collect();
    let layers: Vec<_> = bars.iter().filter(|bar| bar.kind == BarKind::Layer).collect();
    assert_eq!(layers.len(), 16);
    assert_eq!(layers.last().unwrap().label, "85 others");
    assert_eq!(layers.iter().map(|bar| bar.took_ms).sum::<u64>(), 990);
}

#[test]
fn each_restart_of_the_sequence_number_begins_a_run() {
    let events = [event(0, 1, started()), event(0, 1, started()), event(0, 2, started())];
    assert_eq!(timeline_of(&events).run, RunNumber { number: 3, of: 3 });
}

/// The output is bounded for a long stream, as it would be for a file of one gibibyte.
#[test]
fn bounds_the_picture_of_a_long_stream() {
    let mut runs = Runs::new(None);
    let mut seq = 0;
    let mut record = |ms, kind| {
        runs.record(&event(seq, ms, kind));
        seq += 1;
    };
    for round in 0..20_000_u64 {
        let ms = round * 977;
        record(ms, state(BoxState::Ready, BoxState::Busy));
        record(ms + 100, state(BoxState::Busy, BoxState::Ready));
        record(ms + 200, health(HealthState::Healthy, HealthState::Unhealthy));
        record(ms + 300, health(HealthState::Unhealthy, HealthState::Healthy));
        record(ms + 400, error("no"));
        let status = Some(format!("round {round}"));
        record(ms + 500, EventKind::WorkloadNotified { ready: true, stopping: false, status });
        let cause = TruncationCause::Size;
        record(ms + 600, EventKind::ConsoleTruncated { discarded_bytes: round, cause });
        let (protocol, address) = (RefusedProtocol::Tcp, IpAddr::from(Ipv4Addr::LOCALHOST));
        let (port, name) = (Some(443), Some("a.example".to_owned()));
        record(ms + 650, EventKind::NetworkRefused { protocol, address, port, name, count: 2 });
        let process = ProcessMetrics { pss_kib: round, cpu_user_ms: round, ..Default::default() };
        record(ms + 700, EventKind::Metrics(Box::new(Metrics { process, ..Default::default() })));
        record(ms + 800, progress(u32::try_from(round).unwrap(), 1));
    }
    let timeline = runs.finish().unwrap();
    let refused = "40000 packets were refused, the last ones to tcp 127.0.0.1:443 (a.example)";
    assert!(timeline.notes.iter().any(|note| note.text == refused), "{:?}", timeline.notes);
    assert!(timeline.notes.len() < 20, "{}", timeline.notes.len());
    assert!(svg::render(&timeline).len() < 500_000);
    assert!(text::render(&timeline, 100).lines().count() < 100);
}

fn any_text() -> impl Strategy<Value = String> {
    let hostile = "\u{1b}[2J</text><script>&\"'\u{202e}]]>\u{0}\u{fffe}<!--";
    prop_oneof!["\\PC{0,40}", any::<String>(), Just(hostile.to_owned())]
}

fn any_kind() -> impl Strategy<Value = EventKind> {
    let states = prop::sample::select(vec![
        BoxState::Created,
        BoxState::Ready,
        BoxState::Busy,
        BoxState::Compacting,
        BoxState::Stopped,
    ]);
    let healths = prop::sample::select(vec![
        HealthState::Starting,
        HealthState::Healthy,
        HealthState::Unhealthy,
    ]);
    prop_oneof![
        any_text().prop_map(|version| EventKind::ShimStarted { version, pid: 1 }),
        (any::<u32>(), any::<u64>()).prop_map(|(layer, done)| progress(layer, done)),
        Just(vm_starting()),
        Just(guest_started()),
        prop::array::uniform5(any::<u64>()).prop_map(
            |[config_ms, rootfs_ms, vm_ms, kernel_ms, agent_ms]| {
                let phases =
                    BootPhases { config_ms, rootfs_ms, vm_ms, kernel_ms, agent_ms, total_ms: 1 };
                EventKind::AgentReady { phases }
            }
        ),
        (states.clone(), states).prop_map(|(from, to)| state(from, to)),
        (healths.clone(), healths, any_text()).prop_map(|(from, to, text)| {
            let message = Some(text);
            EventKind::HealthChanged { from, to, cause: None, message, failures: 1 }
        }),
        any_text().prop_map(|text| error(&text)),
        any_text().prop_map(|text| EventKind::WorkloadNotified {
            ready: true,
            stopping: false,
            status: Some(text),
        }),
        (any::<u64>(), any::<u64>()).prop_map(|(pss_kib, cpu_user_ms)| {
            let process = ProcessMetrics { pss_kib, cpu_user_ms, ..Default::default() };
            EventKind::Metrics(Box::new(Metrics { process, ..Default::default() }))
        }),
        any::<u64>().prop_map(|count| EventKind::EventsDropped { count }),
        (any_text(), any::<u64>()).prop_map(|(signal, grace_ms)| EventKind::StopRequested {
            cause: StopCause::Signal,
            signal,
            grace_ms,
        }),
        Just(EventKind::StopKilled {}),
        Just(EventKind::GuestExited { exit_code: Some(3), signal: None }),
        any::<u64>().prop_map(box_stopped),
        Just(EventKind::PrepareDone {}),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let times = prop_oneof![0..500_u64, 0..600_000_000_u64, any::<u64>()];
    (0..50_u64, times, any_text(), any_text(), any_kind()).prop_map(
        |(seq, elapsed_ms, time, box_id, kind)| Event { v: 1, seq, time, elapsed_ms, box_id, kind },
    )
}

/// Returns the numbers of an attribute, from all elements that have it.
fn numbers<'a>(
    document: &'a roxmltree::Document<'_>,
    name: &'a str,
) -> impl Iterator<Item = f64> + 'a {
    let values = document.descendants().filter_map(move |node| node.attribute(name));
    values.map(|value| value.parse().unwrap())
}

proptest! {
    /// For any events in any order, the picture is well-formed XML without a script and has all
    /// elements on its page. The text has no control characters and fits into its columns.
    #[test]
    fn draws_any_stream(mut events in prop::collection::vec(any_event(), 1..60)) {
        events.sort_by_key(|event| event.seq);
        let timeline = timeline_of(&events);
        let svg = svg::render(&timeline);
        let document = roxmltree::Document::parse(&svg).unwrap();
        prop_assert!(!document.descendants().any(|node| node.has_tag_name("script")));
        for name in ["x", "y", "width", "height"] {
            for number in numbers(&document, name) {
                prop_assert!(number.is_finite() && number >= 0.0, "{name}={number}");
            }
        }
        let height: f64 = document.root_element().attribute("height").unwrap().parse().unwrap();
        prop_assert!(numbers(&document, "x").all(|x| x <= 1120.0));
        prop_assert!(numbers(&document, "y").all(|y| y <= height));
        for rect in document.descendants().filter(|node| node.has_attribute("x")) {
            let number = |name| rect.attribute(name).map_or(0.0, |value| value.parse().unwrap());
            // The page without its right margin, and 0.1 for rounding.
            prop_assert!(number("x") + number("width") <= 1092.1, "{rect:?}");
        }
        prop_assert!(!svg.contains("NaN") && !svg.contains("inf "));
        let text = text::render(&timeline, 100);
        prop_assert!(!text.chars().any(|character| character.is_control() && character != '\n'));
        for line in text.lines() {
            prop_assert!(plain::columns(line) <= 100, "{line}");
        }
    }
}
