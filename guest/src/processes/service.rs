//! The gRPC server.

use std::io;

use a3s_box_proto::process::processes_server::{Processes, ProcessesServer};
use a3s_box_proto::process::{
    AttachRequest, Ended, Event, Failed, KeepRequest, KeepResponse, ListRequest, ListResponse,
    ResizeRequest, ResizeResponse, RunRequest, SignalRequest, SignalResponse, SignalScope,
    WaitRequest, attach_request, event, run_request,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::transport::Server;
use tonic::transport::server::Connected as Transport;
use tonic::{Request, Response, Status, Streaming};

use super::failure::{invalid, status};
use super::process::Scope;
use super::request::{self, signal};
use super::session;
use super::table::{Connected, Table};
use crate::files;

/// Maximum size of a message in bytes. It has room for the longest arguments and environment that
/// `execve(2)` accepts, which are 6 MiB together.
const MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// Maximum number of concurrent calls on a connection.
const CALLS_PER_CONNECTION: u32 = 64;

/// Maximum size of a request's header list in bytes. Usual clients send a few hundred bytes.
const HEADER_BYTES: u32 = 8 * 1024;

/// Window of HTTP/2 for the bytes of one stream that a process has not read, the default.
const STREAM_WINDOW_BYTES: u32 = 65_535;

/// Window of HTTP/2 for all streams of a connection. A stream whose process does not read takes
/// [`STREAM_WINDOW_BYTES`] of it, so that sixteen of them stop the other streams of the connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 * STREAM_WINDOW_BYTES;

/// Serves the connections of `incoming`: this service, and that for files.
pub(crate) async fn serve<I, IO>(incoming: I, table: Table) -> Result<(), tonic::transport::Error>
where
    I: Stream<Item = io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Transport + Unpin + Send + 'static,
{
    let service = ProcessesServer::new(Service { table }).max_decoding_message_size(MESSAGE_BYTES);
    Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(service)
        .add_service(files::server())
        .serve_with_incoming(incoming)
        .await
}

/// The implementation of the service.
#[derive(Debug)]
struct Service {
    table: Table,
}

/// The events of a stream.
type EventStream = ReceiverStream<Result<Event, Status>>;

#[tonic::async_trait]
impl Processes for Service {
    type RunStream = EventStream;
    type AttachStream = EventStream;

    async fn run(
        &self,
        request: Request<Streaming<RunRequest>>,
    ) -> Result<Response<EventStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.message);
        let connected = match first {
            Some(run_request::Message::Start(start)) => self.table.run(start),
            _ => Err(invalid("the first message is not `start`")),
        };
        Ok(Response::new(connect(connected, requests)))
    }

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<EventStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.message);
        let connected = match first {
            Some(attach_request::Message::Attach(attach)) => self.table.attach(&attach.id),
            _ => Err(invalid("the first message is not `attach`")),
        };
        Ok(Response::new(connect(connected, requests)))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<Ended>, Status> {
        let process = self.table.find(&request.into_inner().id).map_err(|it| status(&it))?;
        let ended = process.output.ended().await;
        ended.map(Response::new).map_err(|failed| status(&failed))
    }

    async fn signal(
        &self,
        request: Request<SignalRequest>,
    ) -> Result<Response<SignalResponse>, Status> {
        self.send_signal(&request.into_inner()).map_err(|failed| status(&failed))?;
        Ok(Response::new(SignalResponse {}))
    }

    async fn resize(
        &self,
        request: Request<ResizeRequest>,
    ) -> Result<Response<ResizeResponse>, Status> {
        self.set_size(&request.into_inner()).map_err(|failed| status(&failed))?;
        Ok(Response::new(ResizeResponse {}))
    }

    async fn keep(&self, request: Request<KeepRequest>) -> Result<Response<KeepResponse>, Status> {
        self.table.find(&request.into_inner().id).map_err(|failed| status(&failed))?.keep();
        Ok(Response::new(KeepResponse {}))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        Ok(Response::new(self.table.list()))
    }
}

impl Service {
    fn send_signal(&self, request: &SignalRequest) -> Result<(), Failed> {
        let number = signal(request.signal)?;
        let scope = match SignalScope::try_from(request.scope) {
            Ok(SignalScope::Unspecified | SignalScope::Process) => Scope::Process,
            Ok(SignalScope::Descendants) => Scope::Descendants,
            Err(unknown) => return Err(invalid(format!("`scope`: unknown value {unknown}"))),
        };
        self.table.find(&request.id)?.signal(number, scope)
    }

    fn set_size(&self, request: &ResizeRequest) -> Result<(), Failed> {
        let size = request.size.ok_or_else(|| invalid("`size` is missing"))?;
        self.table.find(&request.id)?.resize(request::valid_size(size)?)
    }
}

/// Starts the session of a stream, and returns its events.
fn connect<R>(connected: Result<Connected, Failed>, requests: Streaming<R>) -> EventStream
where
    R: request::Request + Send + 'static,
{
    // One event waits while tonic sends another one.
    let (sender, receiver) = mpsc::channel(1);
    match connected {
        Ok(connected) => drop(tokio::spawn(session::serve(connected, requests, sender))),
        Err(failed) => {
            let event = Event { event: Some(event::Event::Failed(failed)), ..Event::default() };
            // The channel has room for it.
            drop(sender.try_send(Ok(event)));
        }
    }
    ReceiverStream::new(receiver)
}
