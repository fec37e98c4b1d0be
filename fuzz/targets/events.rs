//! Fuzzes the event lines that the runtime reads from the shim.

#![no_main]
#![allow(clippy::unwrap_used, reason = "an event that cannot be written or read is a finding")]

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use a3s_box_core::event::{EVENT_VERSION, EventKind};
use a3s_box_core::{Event, EventLineError};
use libfuzzer_sys::fuzz_target;
use lines::{EventLines, StreamError};
use scratch::pieces::Pieces;
use tokio::io::{AsyncRead, AsyncReadExt};

#[path = "../../runtime/src/lines.rs"]
mod lines;

/// After an input whose first byte is at least this, the stream goes on with a line that is too
/// long. Only some inputs have it, because reading it takes milliseconds.
const ENDLESS: u8 = 0xf0;

/// Length of that line: twice the limit.
const ENDLESS_BYTES: u64 = 2 << 20;

/// Most bytes of an error: an excerpt of 80 characters, each of which may become the ten characters
/// of an escape (`\u{10ffff}`), and the words around it.
const ERROR_BYTES: usize = 1000;

/// Larger loads may be out of range when they are read again, and smaller ones may differ in their
/// last bits, because `serde_json` trades exact floats for speed.
const MAX_LOAD: f64 = 1e300;
const PRECISION: f64 = 1e-9;

fuzz_target!(|input: &[u8]| {
    let pieces = Pieces::new(input);
    let (events, end) = read(pieces.clone());
    let (expected, is_valid) = read_whole(pieces.stream());
    assert_eq!(events, expected);
    assert_eq!(end.is_ok(), is_valid, "{end:?}");
    if let Err(error) = end {
        // The cause is not checked: it quotes the input without escapes.
        let text = error.to_string();
        let has_control = text.chars().any(char::is_control);
        assert!(!has_control && text.len() <= ERROR_BYTES, "not printable or too long: {text:?}");
    }
    events.into_iter().for_each(check_round_trip);
    if is_valid && input.first().is_some_and(|byte| *byte >= ENDLESS) {
        let endless = tokio::io::repeat(b' ').take(ENDLESS_BYTES);
        let (_, end) = read(AsyncReadExt::chain(pieces, endless));
        assert!(matches!(end, Err(StreamError::Line(EventLineError::TooLong { .. }))), "{end:?}");
    }
});

/// Reads all events up to an error with the reader under test.
fn read(stream: impl AsyncRead + Unpin) -> (Vec<Event>, Result<(), StreamError>) {
    let (mut lines, mut events) = (EventLines::new(stream), Vec::new());
    loop {
        // A stream in memory is always ready, so the target needs no runtime.
        let next = pin!(lines.next());
        let Poll::Ready(next) = next.poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("the reader waits")
        };
        match next {
            Ok(Some(event)) => events.push(event),
            Ok(None) => return (events, Ok(())),
            Err(error) => return (events, Err(error)),
        }
    }
}

/// Reads all events up to an error, from the whole stream: the reference for the reader under test.
/// Returns also whether all lines are events.
fn read_whole(stream: &[u8]) -> (Vec<Event>, bool) {
    let mut events = Vec::new();
    for line in stream.split_inclusive(|byte| *byte == b'\n') {
        // The shim may be killed while it writes its last line, so an incomplete one is no error.
        let Some(line) = line.strip_suffix(b"\n") else { break };
        match serde_json::from_slice::<Event>(line) {
            Ok(event) if event.v == EVENT_VERSION => events.push(event),
            _ => return (events, false),
        }
    }
    (events, true)
}

/// Checks that an event is written in one line, and is the same when it is read again.
fn check_round_trip(mut event: Event) {
    let line = serde_json::to_string(&event).unwrap();
    assert!(!line.contains('\n'), "{line}");
    if loads(&mut event).iter().any(|load| load.abs() > MAX_LOAD) {
        return;
    }
    let mut again = serde_json::from_str(&line).unwrap();
    for (read, written) in loads(&mut again).into_iter().zip(loads(&mut event)) {
        assert!((read - written).abs() <= PRECISION * written.abs(), "{read} {written}");
    }
    assert_eq!(again, event, "{line}");
}

/// Takes the load averages of the guest out of an event, so that the rest can be compared exactly.
fn loads(event: &mut Event) -> [f64; 3] {
    match &mut event.kind {
        EventKind::Metrics(metrics) => metrics
            .guest
            .as_mut()
            .map_or_else(Default::default, |guest| std::mem::take(&mut guest.load)),
        _ => [0.0; 3],
    }
}
