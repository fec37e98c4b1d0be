//! One stream of a client: sends the events of a process, and passes the input on.

use std::future::pending;

use a3s_box_proto::process::{Event, Failed, Started, event};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::failure::no_such_process;
use super::output::{Channel, Item, Phase, Reader};
use super::process::{Process, Scope};
use super::request::{Input, Request};
use super::table::Connected;

/// Minimum length of an event with output in bytes.
///
/// A client that is stopped must not fill its socket's buffer, because libkrun's vsock thread would
/// then block. The windows of HTTP/2 limit the bytes on the way to 64 KiB by default, but the
/// buffer counts at least about 700 bytes for each message. With this length, 64 messages fill the
/// window, and take at most two thirds of the buffer of 208 KiB.
const MIN_BYTES: usize = 1024;

/// The events of a stream, as tonic sends them.
pub(super) type Events = mpsc::Sender<Result<Event, Status>>;

/// The end of a session.
enum Ending {
    /// All events were sent.
    Complete,
    /// The client is gone.
    Lost,
    /// The client has sent a message that is not valid.
    Refused(Failed),
}

/// Serves a stream until its end. Kills the process if this stream has started it and ends before
/// the process does, unless the process is to be kept.
pub(super) async fn serve<R: Request>(
    connected: Connected,
    mut requests: Streaming<R>,
    events: Events,
) {
    let Connected { process, mut reader, is_owner } = connected;
    let ending = tokio::select! {
        ending = send(&process, &mut reader, is_owner, &events) => ending,
        ending = feed(&process, &mut requests) => ending,
        () = events.closed() => Ending::Lost,
    };
    // The pumps must not wait for this reader any more.
    drop(reader);
    if matches!(ending, Ending::Complete) {
        return;
    }
    if is_owner && !process.is_kept() {
        process.kill();
    }
    if let Ending::Refused(failed) = ending {
        // The error means that the client is gone, too.
        drop(events.send(Ok(to_event(event::Event::Failed(failed)))).await);
    }
}

/// Sends the events of the process.
async fn send(process: &Process, reader: &mut Reader, is_owner: bool, events: &Events) -> Ending {
    let first = match process.output.started().await {
        Phase::Running(pid) | Phase::Ended(pid, _) => event::Event::Started(Started {
            id: process.id.clone(),
            pid,
            attached: !is_owner,
            skipped_bytes: reader.skipped,
        }),
        Phase::Failed(failed) => event::Event::Failed(failed),
        // `started` does not return this phase.
        Phase::Starting => event::Event::Failed(no_such_process(&process.id)),
    };
    let is_failed = matches!(first, event::Event::Failed(_));
    if events.send(Ok(to_event(first))).await.is_err() {
        return Ending::Lost;
    }
    if is_failed {
        return Ending::Complete;
    }
    loop {
        let item = reader.next().await;
        let is_last = matches!(item, Item::Ended(_));
        let event = match item {
            Item::Bytes(Channel::Stdout, bytes) => event::Event::Stdout(bytes),
            Item::Bytes(Channel::Stderr, bytes) => event::Event::Stderr(bytes),
            Item::Ended(ended) => event::Event::Ended(ended),
        };
        if events.send(Ok(to_event(event))).await.is_err() {
            return Ending::Lost;
        }
        if is_last {
            return Ending::Complete;
        }
    }
}

/// Passes the input on. Does not return after the end of the input.
async fn feed<R: Request>(process: &Process, requests: &mut Streaming<R>) -> Ending {
    // Standard input exists once the process has started.
    process.output.started().await;
    loop {
        let request = match requests.message().await {
            Ok(Some(request)) => request,
            Ok(None) => break,
            // The stream was reset, its connection was lost, or a message cannot be decoded.
            Err(_) => return Ending::Lost,
        };
        match request.into_input() {
            Ok(Input::Bytes(bytes)) => process.write(&bytes).await,
            Ok(Input::Close) => process.close_stdin().await,
            // A process without a terminal, or that has ended, needs no size.
            Ok(Input::Resize(size)) => drop(process.resize(size)),
            // The client learns from the event that the process has ended.
            Ok(Input::Signal(signal)) => drop(process.signal(signal, Scope::Process)),
            Err(failed) => return Ending::Refused(failed),
        }
    }
    // A client without further input ends its stream, and gets the events all the same.
    pending().await
}

/// Makes a message, and adds what it lacks to [`MIN_BYTES`].
fn to_event(event: event::Event) -> Event {
    let length = match &event {
        event::Event::Stdout(bytes) | event::Event::Stderr(bytes) => bytes.len(),
        // There are at most two others in a stream.
        _ => MIN_BYTES,
    };
    Event { padding: vec![0; MIN_BYTES.saturating_sub(length)], event: Some(event) }
}
