//! Lines of events, as the runtime reads them from the shim.

#![no_main]
#![allow(clippy::unwrap_used, reason = "what cannot be written or read again is a finding")]

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use a3s_box_core::{Event, EventLineError};
use a3s_box_core::event::{EVENT_VERSION, EventKind};
use ground::pieces::Pieces;
use libfuzzer_sys::fuzz_target;
use lines::{EventLines, StreamError};
use tokio::io::{AsyncRead, AsyncReadExt};

#[path = "../../runtime/src/lines.rs"]
mod lines;

/// Inputs that begin with one of these end in a line without an end: it takes milliseconds to read.
const ENDLESS: u8 = 0xf0;

/// Twice what a line may have.
const ENDLESS_BYTES: u64 = 2 << 20;

/// Longest error: an excerpt of 80 characters, of which one may become ten (`\u{10ffff}`), and the
/// words around it.
const ERROR_BYTES: usize = 1000;

/// Loads up to here are read again when they were written. Not to the last bit: `serde_json` reads
/// numbers faster than that.
const MAX_LOAD: f64 = 1e300;
const PRECISION: f64 = 1e-9;

fuzz_target!(|input: &[u8]| {
    let pieces = Pieces::new(input);
    let (events, end) = read(pieces.clone());
    let (expected, is_whole) = by_the_book(pieces.stream());
    assert_eq!(events, expected);
    assert_eq!(end.is_ok(), is_whole, "{end:?}");
    if let Err(error) = end {
        // Its cause quotes what was found, as it is.
        let text = error.to_string();
        let has_control = text.chars().any(char::is_control);
        assert!(!has_control && text.len() <= ERROR_BYTES, "not fit to be shown: {text:?}");
    }
    events.into_iter().for_each(check_round_trip);
    if is_whole && input.first().is_some_and(|byte| *byte >= ENDLESS) {
        let endless = tokio::io::repeat(b' ').take(ENDLESS_BYTES);
        let (_, end) = read(AsyncReadExt::chain(pieces, endless));
        assert!(matches!(end, Err(StreamError::Line(EventLineError::TooLong { .. }))), "{end:?}");
    }
});

/// Reads all events up to an error.
fn read(stream: impl AsyncRead + Unpin) -> (Vec<Event>, Result<(), StreamError>) {
    let (mut lines, mut events) = (EventLines::new(stream), Vec::new());
    loop {
        // The streams here are never waited for.
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

/// Does the same with the whole stream at hand; and whether it is events to its end.
fn by_the_book(stream: &[u8]) -> (Vec<Event>, bool) {
    let mut events = Vec::new();
    for line in stream.split_inclusive(|byte| *byte == b'\n') {
        // The last one may be cut.
        let Some(line) = line.strip_suffix(b"\n") else { break };
        match serde_json::from_slice::<Event>(line) {
            Ok(event) if event.v == EVENT_VERSION => events.push(event),
            _ => return (events, false),
        }
    }
    (events, true)
}

/// Checks that an event is the same when it was written and read again, in one line.
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

/// Takes out what an event says of the guest's load.
fn loads(event: &mut Event) -> [f64; 3] {
    match &mut event.kind {
        EventKind::Metrics(metrics) => metrics
            .guest
            .as_mut()
            .map_or_else(Default::default, |guest| std::mem::take(&mut guest.load)),
        _ => [0.0; 3],
    }
}
