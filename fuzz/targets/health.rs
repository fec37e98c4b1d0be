//! What the agent in a guest answers, heard by the shim's own client. The first byte says what the rest
//! is: all that the agent sends, an answer, or what is in an answer.

#![no_main]
#![allow(clippy::unwrap_used, reason = "what cannot be set up ends the fuzzer")]

use std::sync::LazyLock;
use std::time::Duration;

use a3s_box_core::event::{EventKind, GuestMetrics, HealthCause, Metrics};
use a3s_box_core::{BoxState, Event};
use a3s_box_proto::agent::{HealthCheckResponse, MetricsResponse, State, Status};
use agent::{Agent, Failure};
use ground::Ground;
use ground::memory;
use ground::peer::{Answer, serve};
use libfuzzer_sys::fuzz_target;
use report::printable::MESSAGE_CHARS;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tonic_health::pb::HealthCheckResponse as StandardResponse;
use tonic_health::pb::health_check_response::ServingStatus;

#[expect(dead_code, reason = "the rest is for the monitor")]
#[path = "../../src/control/agent.rs"]
mod agent;
#[path = "../../src/control/connection.rs"]
mod connection;
/// The modules of the shim that the agent's client imports, under the paths that they have there.
#[path = "../../src/report"]
mod report {
    pub(crate) mod printable;
}

/// Longer than any answer takes: a connection that was closed, or that has answered, is not waited for.
const PATIENCE: Duration = Duration::from_secs(8);

/// Memory of one connection with an answer of at most 64 KiB, several times over: h2's own buffers
/// are some hundred KiB.
const MEMORY_BYTES: usize = 2 << 20;

const UNIMPLEMENTED: u8 = 12;

static GROUND: LazyLock<Ground> = LazyLock::new(Ground::build);

fuzz_target!(|input: &[u8]| {
    let Some((kind, said)) = input.split_first() else { return };
    LazyLock::force(&GROUND);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    memory::within(MEMORY_BYTES, || runtime.block_on(ask(kind % 6, said)));
});

async fn ask(kind: u8, said: &[u8]) {
    match kind {
        0 => drop(check_answered_with(&Script::Bytes(said)).await),
        1 => {
            let found = check_answered_with(&Script::Answers(&[Answer::Message(said)])).await;
            let answer = HealthCheckResponse::decode(said).ok();
            let serving = answer.filter(|answer| answer.status() == Status::Serving);
            assert_eq!(found.map(|answer| answer.state).ok(), serving.map(|answer| state(&answer)));
        }
        2 => {
            let unknown = Answer::Status(UNIMPLEMENTED, b"");
            let answers = [unknown, Answer::Message(said)];
            let found = check_answered_with(&Script::Answers(&answers)).await;
            let answer = StandardResponse::decode(said).ok();
            let is_serving = answer.is_some_and(|answer| answer.status() == ServingStatus::Serving);
            assert_eq!(found.map(|answer| answer.state).ok(), is_serving.then_some(None));
        }
        3 => drop(check_answered_with(&Script::Answers(&[Answer::Body(said)])).await),
        4 => {
            let (status, text) = said.split_first().unwrap_or((&0, &[]));
            let answers = [Answer::Status(*status, text); 2];
            let found = check_answered_with(&Script::Answers(&answers)).await;
            assert!(found.is_err(), "{found:?} without a message");
        }
        _ => check_metrics(said).await,
    }
}

/// What a peer does.
enum Script<'a> {
    /// It sends this, and closes.
    Bytes(&'a [u8]),
    Answers(&'a [Answer<'a>]),
}

/// Checks the agent's health once, and that the outcome is fit to be shown.
async fn check_answered_with(script: &Script<'_>) -> Result<agent::Answer, Failure> {
    let found = with_agent(script, async |agent| agent.check(PATIENCE).await).await;
    if let Err(Failure { cause, message }) = &found {
        assert_ne!(*cause, HealthCause::Timeout, "the peer has said all");
        let has_control = message.chars().any(char::is_control);
        let is_short = message.chars().count() <= MESSAGE_CHARS;
        assert!(!has_control && is_short, "not fit to be shown: {message:?}");
    }
    found
}

/// Does `work` with a client of a peer that follows the script.
async fn with_agent<T>(script: &Script<'_>, work: impl AsyncFnOnce(&mut Agent) -> T) -> T {
    let socket = GROUND.path("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut agent = Agent::new(&socket);
    let peer = async {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            match script {
                // A client that does not like what it hears goes away.
                Script::Bytes(bytes) => drop(client.write_all(bytes).await),
                Script::Answers(answers) => drop(serve(client, answers).await),
            }
        }
    };
    let done = tokio::select! {
        done = work(&mut agent) => done,
        () = peer => unreachable!("a peer has no end"),
    };
    std::fs::remove_file(&socket).unwrap();
    done
}

/// Checks that the figures of the guest are what it said, and that an event can hold them.
async fn check_metrics(said: &[u8]) {
    let script = Script::Answers(&[Answer::Message(said)]);
    let found = with_agent(&script, async |agent| agent.metrics(PATIENCE).await).await;
    let answer = MetricsResponse::decode(said).ok();
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
    // Numbers near the largest one do not come back: `serde_json` is not exact in the last bit.
    let is_large = found.load.iter().any(|load| load.abs() > 1e300);
    assert!(read.is_ok() || is_large, "{line}: {read:?}");
}

fn state(answer: &HealthCheckResponse) -> Option<BoxState> {
    match answer.state() {
        State::Unspecified => None,
        State::Ready => Some(BoxState::Ready),
        State::Busy => Some(BoxState::Busy),
        State::Compacting => Some(BoxState::Compacting),
    }
}
