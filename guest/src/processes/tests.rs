//! Tests of the service through clients over socket pairs: messages that a client may not send, and
//! a client that does not read.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use a3s_box_proto::process::processes_client::ProcessesClient;
use a3s_box_proto::process::{
    AttachRequest, AttachTo, Event, Failed, FailureKind, ListRequest, RunRequest, SignalRequest,
    Start, TerminalSize, WaitRequest, attach_request, ended, event, run_request,
};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::codegen::tokio_stream::{self, StreamExt, wrappers::ReceiverStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use super::*;
use crate::children::Children;
use crate::launch::tests::serial;

/// Limit for each wait, far above the usual time.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection whose client can stop reading.
struct Gated {
    stream: UnixStream,
    is_stopped: Arc<AtomicBool>,
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_stopped.load(Ordering::Relaxed) {
            // Never woken again: the client is stopped for good.
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Makes a table without cgroups, and reaps its processes in the background.
fn table() -> Table {
    let mut children = Children::watch().unwrap();
    let table = Table::new(None, None, children.exits());
    tokio::spawn(async move { children.reap_forever().await });
    table
}

/// Serves one connection. Returns its client, the switch that stops it, and its socket.
async fn connect(table: &Table) -> (ProcessesClient<Channel>, Arc<AtomicBool>, StdStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let ours = ours.into_std().unwrap();
    let raw = ours.try_clone().unwrap();
    let incoming = tokio_stream::iter([Ok(theirs)]).chain(tokio_stream::pending());
    tokio::spawn(serve(incoming, table.clone()));
    let is_stopped = Arc::new(AtomicBool::new(false));
    let stream = UnixStream::from_std(ours).unwrap();
    let gated = Gated { stream, is_stopped: Arc::clone(&is_stopped) };
    let mut gated = Some(TokioIo::new(gated));
    let channel = Endpoint::from_static("http://guest")
        // The windows of the project's own client, see `runtime/src/connection.rs`.
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535)
        .connect_with_connector(tower::service_fn(move |_| {
            let stream = gated.take();
            async move { stream.ok_or_else(|| io::Error::other("one connection only")) }
        }))
        .await
        .unwrap();
    (ProcessesClient::new(channel), is_stopped, raw)
}

fn start(script: &str) -> Start {
    let args = ["sh", "-c", script].map(str::to_owned).into();
    Start { args, ..Start::default() }
}

fn message(message: run_request::Message) -> RunRequest {
    RunRequest { message: Some(message) }
}

/// Starts a process. Returns the stream of requests and the events after the first one.
async fn run(
    client: &mut ProcessesClient<Channel>,
    start: Start,
) -> (mpsc::Sender<RunRequest>, Streaming<Event>) {
    let (sender, receiver) = mpsc::channel(4);
    sender.send(message(run_request::Message::Start(start))).await.unwrap();
    let mut events = client.run(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let first = next(&mut events).await;
    assert!(matches!(first, event::Event::Started(_)), "{first:?}");
    (sender, events)
}

async fn next(events: &mut Streaming<Event>) -> event::Event {
    let event = timeout(PATIENCE, events.message()).await.expect("no event comes");
    event.unwrap().expect("the stream ends").event.unwrap()
}

/// Returns the failure of a stream whose first message is this one.
async fn refusal(client: &mut ProcessesClient<Channel>, first: Vec<RunRequest>) -> FailureKind {
    let mut events = client.run(tokio_stream::iter(first)).await.unwrap().into_inner();
    match next(&mut events).await {
        event::Event::Failed(failed) => failed.kind(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn first_message_of_a_stream_must_be_its_start() {
    let _serial = serial().await;
    let table = table();
    let (mut client, ..) = connect(&table).await;
    for first in [
        vec![],
        vec![RunRequest::default()],
        vec![message(run_request::Message::Stdin(vec![1]))],
        vec![message(run_request::Message::Signal(9))],
        vec![message(run_request::Message::Start(Start::default()))],
    ] {
        assert_eq!(refusal(&mut client, first).await, FailureKind::InvalidRequest);
    }
    let attach = attach_request::Message::Attach(AttachTo { id: "x\u{1b}".repeat(100) });
    for (message, expected) in [
        (None, FailureKind::InvalidRequest),
        (Some(attach_request::Message::Stdin(vec![])), FailureKind::InvalidRequest),
        (Some(attach), FailureKind::NoSuchProcess),
    ] {
        let requests = tokio_stream::iter([AttachRequest { message }]);
        let mut events = client.attach(requests).await.unwrap().into_inner();
        let event::Event::Failed(failed) = next(&mut events).await else { panic!() };
        assert_eq!(failed.kind(), expected);
    }
    assert_eq!(client.list(ListRequest {}).await.unwrap().into_inner().processes, []);
}

#[tokio::test]
async fn message_that_is_not_valid_ends_the_stream_and_the_process() {
    let _serial = serial().await;
    let table = table();
    let (mut client, ..) = connect(&table).await;
    let size = TerminalSize { rows: 0, columns: 0 };
    for invalid in [
        RunRequest::default(),
        message(run_request::Message::Start(start("true"))),
        message(run_request::Message::Stdin(vec![0; 65_537])),
        message(run_request::Message::Signal(65)),
        message(run_request::Message::Resize(size)),
    ] {
        let keeping = start("exec sleep 1000");
        let (requests, mut events) = run(&mut client, Start { id: "a".into(), ..keeping }).await;
        requests.send(invalid.clone()).await.unwrap();
        let event::Event::Failed(failed) = next(&mut events).await else { panic!() };
        assert_eq!(failed.kind(), FailureKind::InvalidRequest, "{invalid:?}");
        // The id is free again when the process is dead.
        let ended = async { while client.wait(WaitRequest { id: "a".into() }).await.is_ok() {} };
        timeout(PATIENCE, ended).await.expect("the process does not end");
    }
}

#[tokio::test]
async fn failure_of_a_call_is_in_the_details_of_its_status() {
    let _serial = serial().await;
    let table = table();
    let (mut client, ..) = connect(&table).await;
    // An id is at most part of a text, so controls and length do no harm.
    let id = "\u{1b}ü\n".repeat(100_000);
    let status = client.wait(WaitRequest { id: id.clone() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let failed = Failed::decode(status.details()).unwrap();
    assert_eq!(failed.kind(), FailureKind::NoSuchProcess);
    assert!(failed.message.len() <= 4096 && failed.message.contains("\u{1b}ü"));
    for (signal, scope, expected) in [
        (0, 1, FailureKind::InvalidRequest),
        (65, 1, FailureKind::InvalidRequest),
        (9, 3, FailureKind::InvalidRequest),
        (9, 2, FailureKind::NoSuchProcess),
    ] {
        let request = SignalRequest { id: "a".into(), signal, scope };
        let status = client.signal(request).await.unwrap_err();
        assert_eq!(Failed::decode(status.details()).unwrap().kind(), expected);
    }
}

/// Returns the lengths of the DATA frames of HTTP/2 in these bytes (RFC 9113, section 4.1).
fn data_frames(mut bytes: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        if *kind == 0 {
            found.push(length);
        }
        bytes = rest.get(length..).unwrap_or_default();
    }
    found
}

#[tokio::test]
async fn client_that_stops_gets_few_messages_and_stops_nobody_else() {
    let _serial = serial().await;
    let table = table();
    let (mut client, is_stopped, socket) = connect(&table).await;
    // The shell writes single bytes, each by a call of its own.
    let script = "while :; do echo -n x; done";
    let (_requests, _events) = run(&mut client, start(script)).await;
    is_stopped.store(true, Ordering::Relaxed);
    // The window of HTTP/2 is 65535 bytes, and a message is not cut.
    let full = async {
        while rustix::io::ioctl_fionread(&socket).unwrap() < 60_000 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, full).await.expect("the window does not fill");
    // Other clients are served as before.
    let (mut other, ..) = connect(&table).await;
    for _ in 0..20 {
        let (_requests, mut events) = run(&mut other, start("echo y")).await;
        assert_eq!(next(&mut events).await, event::Event::Stdout(b"y\n".to_vec()));
        let event::Event::Ended(ended) = next(&mut events).await else { panic!() };
        assert_eq!(ended.status, Some(ended::Status::ExitCode(0)));
    }
    let bytes = rustix::io::ioctl_fionread(&socket).unwrap();
    assert!(bytes < 80_000, "{bytes} bytes wait for a client that does not read");
    let mut waiting = vec![0; usize::try_from(bytes).unwrap()];
    io::Read::read_exact(&mut &socket, &mut waiting).unwrap();
    // A socket's buffer of 208 KiB has room for about 270 messages of any length below 256 bytes.
    let frames = data_frames(&waiting);
    assert!(frames.len() <= 80, "{} frames: {frames:?}", frames.len());
    let (_requests, _events) = (_requests, _events);
}
