//! Fuzzes the answers of the agent in a guest, as the shim's own client reads them.
//!
//! The first byte of an input decides what the rest is: all bytes that the agent sends, the body of
//! an answer, the message in it, or its status.

#![no_main]
#![allow(clippy::unwrap_used, reason = "a failed setup must end the fuzzer")]

use std::sync::LazyLock;
use std::time::Duration;

use a3s_box_core::event::{EventKind, GuestMetrics, HealthCause, Metrics};
use a3s_box_core::{BoxState, Event};
use a3s_box_proto::agent::{HealthCheckResponse, MetricsResponse, State, Status};
use agent::{Agent, Failure};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use report::printable::MESSAGE_CHARS;
use scratch::Scratch;
use scratch::memory;
use scratch::peer::{Answer, serve};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tonic_health::pb::HealthCheckResponse as StandardResponse;
use tonic_health::pb::health_check_response::ServingStatus;

#[expect(dead_code, reason = "only the control loop uses the rest")]
#[path = "../../src/control/agent.rs"]
mod agent;
#[path = "../../src/control/connection.rs"]
mod connection;
/// The modules of the shim that the agent's client imports, under the paths that they have there.
#[path = "../../src/report"]
mod report {
    pub(crate) mod printable;
}

/// Timeout of a call. No call may reach it, because the peer sends all that it has and closes, and
/// the client must not wait for a closed connection.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Most memory of one connection: several times an answer of at most 64 KiB, and the buffers of the
/// crate h2, which are some hundred KiB.
const MEMORY_BYTES: usize = 2 << 20;

/// gRPC status of a service that the peer does not have.
const UNIMPLEMENTED: u8 = 12;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::build);

fuzz_target!(|input: &[u8]| {
    let Some((kind, payload)) = input.split_first() else { return };
    // Built here, because its memory does not belong to the input.
    LazyLock::force(&SCRATCH);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    memory::within(MEMORY_BYTES, || runtime.block_on(call(kind % 6, payload)));
});

/// Calls the agent, which sends `payload` in the way that `kind` selects.
async fn call(kind: u8, payload: &[u8]) {
    match kind {
        0 => drop(check_health(&Script::Bytes(payload)).await),
        1 => {
            let found = check_health(&Script::Answers(&[Answer::Message(payload)])).await;
            let answer = HealthCheckResponse::decode(payload).ok();
            let serving = answer.filter(|answer| answer.status() == Status::Serving);
            assert_eq!(found.map(|answer| answer.state).ok(), serving.map(|answer| state(&answer)));
        }
        // Without the agent service, the client falls back to the standard health service of gRPC.
        2 => {
            let unknown = Answer::Status(UNIMPLEMENTED, b"");
            let answers = [unknown, Answer::Message(payload)];
            let found = check_health(&Script::Answers(&answers)).await;
            let answer = StandardResponse::decode(payload).ok();
            let is_serving = answer.is_some_and(|answer| answer.status() == ServingStatus::Serving);
            assert_eq!(found.map(|answer| answer.state).ok(), is_serving.then_some(None));
        }
        3 => drop(check_health(&Script::Answers(&[Answer::Body(payload)])).await),
        4 => {
            // Twice, because the status may be UNIMPLEMENTED, after which the client calls again.
            let (status, text) = payload.split_first().unwrap_or((&0, &[]));
            let answers = [Answer::Status(*status, text); 2];
            let found = check_health(&Script::Answers(&answers)).await;
            assert!(found.is_err(), "{found:?} without a message");
        }
        _ => check_metrics(payload).await,
    }
}

/// The behaviour of a peer on each connection.
enum Script<'a> {
    /// The peer sends these bytes and closes the connection.
    Bytes(&'a [u8]),
    /// The peer sends these answers, one for each request.
    Answers(&'a [Answer<'a>]),
}

/// Makes one health check. Checks that its error, if any, is printable and short, and no timeout.
async fn check_health(script: &Script<'_>) -> Result<agent::Answer, Failure> {
    let found = with_agent(script, async |agent| agent.check(TIMEOUT).await).await;
    if let Err(Failure { cause, message }) = &found {
        assert_ne!(*cause, HealthCause::Timeout, "a timeout on a connection that was answered");
        let has_control = message.chars().any(char::is_control);
        let is_short = message.chars().count() <= MESSAGE_CHARS;
        assert!(!has_control && is_short, "not printable or too long: {message:?}");
    }
    found
}

/// Runs `work` with a client whose peer follows the script.
async fn with_agent<T>(script: &Script<'_>, work: impl AsyncFnOnce(&mut Agent) -> T) -> T {
    let socket = SCRATCH.path("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut agent = Agent::new(&socket);
    let peer = async {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            match script {
                // Write errors are ignored: the client may close the connection at invalid data.
                Script::Bytes(bytes) => drop(client.write_all(bytes).await),
                Script::Answers(answers) => drop(serve(client, answers).await),
            }
        }
    };
    let done = tokio::select! {
        done = work(&mut agent) => done,
        () = peer => unreachable!("the peer loops for ever"),
    };
    std::fs::remove_file(&socket).unwrap();
    done
}

/// Checks that the client returns the metrics that the guest sent, and that an event with them can
/// be read again.
async fn check_metrics(message: &[u8]) {
    let script = Script::Answers(&[Answer::Message(message)]);
    let found = with_agent(&script, async |agent| agent.metrics(TIMEOUT).await).await;
    let answer = MetricsResponse::decode(message).ok();
    assert_eq!(found.is_some(), answer.is_some());
    let (Some(found), Some(answer)) = (found, answer) else { return };
    let GuestMetrics { memory_total_kib, memory_available_kib, processes, .. } = found;
    assert_eq!(memory_total_kib, answer.memory_total_kib);
    assert_eq!(memory_available_kib, answer.memory_available_kib);
    assert_eq!(processes, answer.processes);
    let metrics = Metrics { guest: Some(found), ..Metrics::default() };
    let event = Event {
        v: 1,
        seq: 0,
        time: String::new(),
        elapsed_ms: 0,
        box_id: String::new(),
        kind: EventKind::Metrics(Box::new(metrics)),
    };
    let line = serde_json::to_string(&event).unwrap();
    let read: Result<Event, _> = serde_json::from_str(&line);
    // `serde_json` does not read floats exactly, so one near the largest may overflow.
    let is_large = found.load.iter().any(|load| load.abs() > 1e300);
    assert!(read.is_ok() || is_large, "{line}: {read:?}");
}

/// Returns the state that the client must report for an answer.
fn state(answer: &HealthCheckResponse) -> Option<BoxState> {
    match answer.state() {
        State::Unspecified => None,
        State::Ready => Some(BoxState::Ready),
        State::Busy => Some(BoxState::Busy),
        State::Compacting => Some(BoxState::Compacting),
    }
}
