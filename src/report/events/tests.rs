use std::fs;
use std::io::{PipeReader, Read};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use a3s_box_core::event::{HealthCause, TruncationCause};
use a3s_box_core::{BoxState, ErrorCode, HealthState};
use nix::fcntl::{FcntlArg, fcntl};

use super::*;

/// Number of events in the long tests.
const MANY: usize = 100_000;

fn progress(bytes_done: u64) -> EventKind {
    EventKind::RootfsProgress {
        layer: "x".repeat(1000),
        layer_number: 1,
        layers: 1,
        bytes_done,
        bytes_total: 9,
        image_bytes_done: bytes_done,
        image_bytes_total: 9,
    }
}

fn health(from: HealthState, to: HealthState, message: String) -> EventKind {
    let (cause, message) = (Some(HealthCause::Timeout), Some(message));
    EventKind::HealthChanged { from, to, cause, message, failures: 3 }
}

/// An event that is never dropped, with a number that identifies it.
fn lifecycle(number: usize) -> EventKind {
    EventKind::VmStarting { vcpus: 1, memory_mib: u32::try_from(number).unwrap(), ipv6: None }
}

/// The events of a box that never rests. Of each ten, six are droppable, three are changes of state
/// and one is a change of health. Each two thousandth event is never dropped.
fn mix(number: usize) -> EventKind {
    const STATES: [BoxState; 3] = [BoxState::Ready, BoxState::Busy, BoxState::Compacting];
    if number % 2000 == 1 {
        return lifecycle(number);
    }
    let bytes = number as u64;
    match number % 10 {
        0 | 1 => progress(bytes),
        2 => EventKind::Metrics(Box::default()),
        3 => EventKind::WorkloadNotified { ready: true, stopping: false, status: None },
        4 | 5 => {
            EventKind::ConsoleTruncated { discarded_bytes: bytes, cause: TruncationCause::Size }
        }
        6 => {
            let states = [HealthState::Healthy, HealthState::Unhealthy];
            let (from, to) = (states[number / 10 % 2], states[(number / 10 + 1) % 2]);
            health(from, to, format!("check {number}"))
        }
        rest => {
            let step = number / 10 * 3 + rest - 7;
            EventKind::StateChanged { from: STATES[step % 3], to: STATES[(step + 1) % 3] }
        }
    }
}

/// Emits the mix, and returns the highest numbers of waiting bytes and lines.
fn emit_many(events: &EventWriter) -> (usize, usize) {
    let mut peak = (0, 0);
    for number in 0..MANY {
        events.emit(mix(number));
        let stream = events.lock();
        let bytes = stream.lines.iter().map(|line| line.len()).sum();
        assert_eq!(stream.waiting_bytes, bytes);
        peak = (peak.0.max(bytes), peak.1.max(stream.lines.len()));
    }
    peak
}

fn parse(text: &str) -> Vec<Event> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Reads to the end in pages, with a pause after each.
fn read_slowly(mut reader: PipeReader, pause: Duration) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let mut page = [0; 4096];
        loop {
            match reader.read(&mut page).unwrap() {
                0 => return String::from_utf8(text).unwrap(),
                count => text.extend(&page[..count]),
            }
            std::thread::sleep(pause);
        }
    })
}

fn announced(events: &[Event]) -> u64 {
    let count = |event: &Event| match event.kind {
        EventKind::EventsDropped { count } => count,
        _ => 0,
    };
    events.iter().map(count).sum()
}

/// Checks the events of the mix that arrived: their numbers, that none is missing which is never
/// dropped, the announced drops, and that the changes lead from the first state to the last.
fn check_mix(events: &[Event]) {
    assert!(events.iter().enumerate().all(|(i, event)| event.seq == i as u64));
    assert!(events.is_sorted_by_key(|event| event.elapsed_ms));
    let must: Vec<EventKind> = (0..MANY / 2000).map(|i| lifecycle(i * 2000 + 1)).collect();
    let is_must = |event: &&Event| matches!(event.kind, EventKind::VmStarting { .. });
    let found: Vec<EventKind> =
        events.iter().filter(is_must).map(|event| event.kind.clone()).collect();
    assert_eq!(found, must);
    let announcements =
        events.iter().filter(|event| matches!(event.kind, EventKind::EventsDropped { .. })).count();
    assert_eq!((events.len() - announcements) as u64 + announced(events), MANY as u64);
    let (mut state, mut health_state) = (BoxState::Ready, HealthState::Healthy);
    for event in events {
        match event.kind {
            EventKind::StateChanged { from, to } => {
                assert_eq!(std::mem::replace(&mut state, to), from, "{event:?}");
            }
            EventKind::HealthChanged { from, to, .. } => {
                assert_eq!(std::mem::replace(&mut health_state, to), from, "{event:?}");
            }
            _ => {}
        }
    }
    // The mix has 30,000 changes of state and 10,000 of health, which lead back to the first ones.
    assert_eq!((state, health_state), (BoxState::Ready, HealthState::Healthy));
}

#[test]
fn reader_that_does_not_read_loses_droppable_events_only_and_gets_their_number() {
    let (mut reader, writer) = UnixStream::pair().unwrap();
    let events = EventWriter::new(writer.into());
    for i in 0..5000 {
        events.emit(progress(i));
    }
    events.emit(EventKind::PrepareDone {});
    let waiting = events.lock().lines.len();
    assert!(waiting <= MAX_WAITING_LINES + 2, "{waiting}");

    let received = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    events.finish();
    drop(events);
    let events = parse(&received.join().unwrap());
    assert!(events.iter().enumerate().all(|(i, event)| event.seq == i as u64));
    assert_eq!(events.last().unwrap().kind, EventKind::PrepareDone {});
    let progress = events.iter().filter(|event| event.kind.is_droppable()).count() as u64;
    let dropped = announced(&events);
    assert!(dropped > 0);
    assert_eq!(progress + dropped, 5000);
}

#[test]
fn slow_reader_of_100_000_events_gets_all_that_are_never_dropped() {
    let (reader, writer) = std::io::pipe().unwrap();
    let events = EventWriter::new(writer.into());
    let received = read_slowly(reader, Duration::from_millis(2));
    let (peak_bytes, peak_lines) = emit_many(&events);
    while events.flush() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let metrics = events.metrics();
    drop(events);
    let text = received.join().unwrap();
    let events = parse(&text);
    println!(
        "slow reader: {} of {MANY} arrived, {} dropped; at most {peak_bytes} bytes in {peak_lines} lines waited",
        events.len(),
        metrics.dropped
    );
    check_mix(&events);
    assert!(peak_lines < MAX_WAITING_CHANGES + 4 * (MANY / 2000), "{peak_lines}");
    // No event of the mix is longer than 1300 bytes.
    assert!(peak_bytes < 1300 * MAX_WAITING_CHANGES, "{peak_bytes}");
    let expected = EventMetrics {
        emitted: events.len() as u64,
        emitted_bytes: text.len() as u64,
        dropped: announced(&events),
        waiting: 0,
    };
    assert_eq!(metrics, expected);
    assert!(metrics.dropped > MANY as u64 / 2);
}

#[test]
fn reader_that_never_reads_costs_bounded_memory_and_time() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let events = EventWriter::new(writer.into());
    let (peak_bytes, peak_lines) = emit_many(&events);
    println!("no reader: at most {peak_bytes} bytes in {peak_lines} lines waited");
    assert!(peak_lines < MAX_WAITING_CHANGES + 4 * (MANY / 2000), "{peak_lines}");
    assert!(peak_bytes < 1300 * MAX_WAITING_CHANGES, "{peak_bytes}");
    let start = Instant::now();
    events.finish();
    assert!((FINISH_TIMEOUT..FINISH_TIMEOUT * 2).contains(&start.elapsed()));
    assert!(events.metrics().waiting >= MAX_WAITING_CHANGES as u64);
    // A reader that reads at last still gets all events that are never dropped.
    let received = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    while events.flush() {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(events);
    check_mix(&parse(&received.join().unwrap()));
}

#[test]
fn closed_reader_is_no_error_and_costs_no_memory() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let events = EventWriter::new(writer.into());
    let (_, peak_lines) = emit_many(&events);
    events.finish();
    assert_eq!((peak_lines, events.lock().waiting_bytes), (0, 0));
    assert_eq!(events.metrics().emitted, MANY as u64);
}

#[test]
fn changes_with_long_texts_are_bounded_in_bytes() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let events = EventWriter::new(writer.into());
    let (up, down) = (HealthState::Healthy, HealthState::Unhealthy);
    let long = 64 * 1024;
    for i in 0..1000 {
        let (from, to) = if i % 2 == 0 { (up, down) } else { (down, up) };
        events.emit(health(from, to, "y".repeat(long)));
    }
    let waiting = events.lock().waiting_bytes;
    assert!((MAX_WAITING_BYTES..MAX_WAITING_BYTES + long + 1000).contains(&waiting), "{waiting}");
}

/// Returns a reader that has read nothing, its writer with the most lines that can wait before
/// changes are merged, and the number of the next event.
fn full() -> (PipeReader, EventWriter, u64) {
    let (reader, writer) = std::io::pipe().unwrap();
    let events = EventWriter::new(writer.into());
    while !events.lock().is_behind(MAX_WAITING_CHANGES) {
        events.emit(EventKind::PrepareDone {});
    }
    let next = events.metrics().emitted;
    (reader, events, next)
}

/// Reads to the end, and returns the events from number `next` on.
fn rest(reader: PipeReader, events: EventWriter, next: u64) -> Vec<EventKind> {
    let received = read_slowly(reader, Duration::ZERO);
    while events.flush() {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(events);
    let events = parse(&received.join().unwrap());
    events.into_iter().filter(|event| event.seq >= next).map(|event| event.kind).collect()
}

#[test]
fn waiting_changes_are_merged_and_precede_later_events() {
    use BoxState::{Busy, Compacting, Ready, Stopped};
    use HealthState::{Healthy, Starting, Unhealthy};
    let (reader, events, next) = full();
    let said = |text: &str| text.to_owned();
    events.emit(EventKind::StateChanged { from: Ready, to: Busy });
    events.emit(health(Starting, Healthy, said("first")));
    events.emit(EventKind::StateChanged { from: Busy, to: Compacting });
    events.emit(health(Healthy, Unhealthy, said("second")));
    events.emit(progress(1));
    events.emit(EventKind::StateChanged { from: Compacting, to: Stopped });
    assert_eq!(events.metrics().emitted, next);
    events.emit(EventKind::StopKilled {});
    let expected = [
        EventKind::EventsDropped { count: 4 },
        health(Starting, Unhealthy, said("second")),
        EventKind::StateChanged { from: Ready, to: Stopped },
        EventKind::StopKilled {},
    ];
    assert_eq!(rest(reader, events, next), expected);
}

#[test]
fn merged_changes_that_end_where_they_began_are_dropped() {
    use BoxState::{Busy, Ready};
    let (reader, events, next) = full();
    events.emit(EventKind::StateChanged { from: Ready, to: Busy });
    events.emit(EventKind::StateChanged { from: Busy, to: Ready });
    events.emit(EventKind::StopKilled {});
    let expected = [EventKind::EventsDropped { count: 2 }, EventKind::StopKilled {}];
    assert_eq!(rest(reader, events, next), expected);
}

#[test]
fn waiting_change_is_emitted_as_soon_as_there_is_space() {
    use BoxState::{Busy, Ready};
    let (reader, events, next) = full();
    events.emit(EventKind::StateChanged { from: Ready, to: Busy });
    let expected = [EventKind::StateChanged { from: Ready, to: Busy }];
    assert_eq!(rest(reader, events, next), expected);
}

#[test]
fn texts_of_an_error_are_cut() {
    let (reader, writer) = std::io::pipe().unwrap();
    let events = EventWriter::new(writer.into());
    let long = "\u{1}".repeat(1 << 20);
    let error = ErrorReport {
        code: ErrorCode::Internal,
        message: long.clone(),
        causes: vec![long.clone(); 100],
        hint: Some(long),
        retryable: true,
    };
    events.emit(EventKind::Error(error));
    let bytes = events.metrics().emitted_bytes;
    assert!((400 << 10..450 << 10).contains(&bytes), "{bytes}");
    assert_eq!(rest(reader, events, 0).len(), 1);
}

#[test]
fn pipe_is_made_non_blocking_for_the_writer_alone() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let ours = writer.try_clone().unwrap();
    let events = EventWriter::new(ours.into());
    let flags = |fd: &dyn AsFd| OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap());
    assert!(flags(&events.lock().fd).contains(OFlag::O_NONBLOCK));
    assert!(!flags(&writer).contains(OFlag::O_NONBLOCK));
}

#[test]
fn event_file_has_all_numbered_lines_whether_or_not_they_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    fs::write(&path, r#"{"cut":"#).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let events = EventWriter::new(writer.into());
    events.keep(&path, 16 << 20, Rotation::Rename).unwrap();
    for number in 0..5000 {
        events.emit(mix(number));
    }
    let kept = fs::read_to_string(&path).unwrap();
    let kept = kept.strip_prefix("{\"cut\":\n").unwrap().to_owned();
    assert_eq!(kept.lines().count() as u64, events.metrics().emitted);
    assert!(events.metrics().dropped > 0);
    let received = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    while events.flush() {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(events);
    let kept = fs::read_to_string(&path).unwrap();
    assert_eq!(kept.strip_prefix("{\"cut\":\n").unwrap(), received.join().unwrap());
}

#[test]
fn event_file_is_bounded_and_keeps_the_last_lines() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let events = EventWriter::new(writer.into());
    events.keep(&path, 64 << 10, Rotation::Rename).unwrap();
    // The reader is closed, so no line waits and no event is dropped.
    for number in 0..5000 {
        events.emit(mix(number));
    }
    let text = [fs::read(directory.path().join("events.1")).unwrap(), fs::read(&path).unwrap()];
    let text = String::from_utf8(text.concat()).unwrap();
    assert!((32 << 10..=64 << 10).contains(&text.len()), "{}", text.len());
    let kept = parse(&text);
    assert_eq!(kept.last().unwrap().seq, 4999);
    assert!(kept.iter().zip(&kept[1..]).all(|(a, b)| a.seq + 1 == b.seq));
    let long = health(HealthState::Healthy, HealthState::Unhealthy, "y".repeat(40 << 10));
    events.emit(long);
    events.emit(EventKind::Metrics(Box::default()));
    let last = parse(&fs::read_to_string(&path).unwrap()).pop().unwrap();
    assert_eq!(last.seq, 5001);
}
