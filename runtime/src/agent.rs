//! [`Agent`]: a gRPC client of the agent in a box.
//!
//! The client connects to the socket `agent.sock` of the box, which libkrun bridges to the vsock
//! port of the agent.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use a3s_box_core::BoxState;
use a3s_box_proto::agent::agent_client::AgentClient;
use a3s_box_proto::agent::{HealthCheckRequest, State, Status};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// Time limit of an answer. It takes a millisecond, and some tens of milliseconds under emulation.
/// The rest is a margin for a busy host.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum length of an answer that is decoded. A usual answer has some tens of bytes, but the
/// guest is hostile and may send without end.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The answer of the agent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Health {
    /// Whether the agent reports that it serves.
    pub(crate) is_serving: bool,
    /// `None` if the agent reports no state, or one that this version does not know.
    pub(crate) state: Option<BoxState>,
}

/// A client with one connection, which it opens at the first call and again after the connection
/// has closed. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    client: AgentClient<Channel>,
}

impl Agent {
    /// Makes a client of the agent at `socket`, without connecting. Callers must be in a tokio
    /// runtime.
    pub(crate) fn new(socket: PathBuf) -> Self {
        let connect = service_fn(move |_: Uri| connect(socket.clone()));
        // tonic requires a URI with an authority, although the connector ignores it.
        let endpoint = Endpoint::from_static("http://localhost");
        let client = AgentClient::new(endpoint.connect_with_connector_lazy(connect));
        Self { client: client.max_decoding_message_size(MAX_ANSWER_BYTES) }
    }

    /// Calls `HealthCheck` once. Returns `None` if no server listens, if the server does not offer
    /// this service, or if no answer comes within [`ANSWER_TIMEOUT`].
    pub(crate) async fn health(mut self) -> Option<Health> {
        let answer = timeout(ANSWER_TIMEOUT, self.client.health_check(HealthCheckRequest {})).await;
        let answer = answer.ok()?.ok()?.into_inner();
        let state = match answer.state() {
            State::Unspecified => None,
            State::Ready => Some(BoxState::Ready),
            State::Busy => Some(BoxState::Busy),
            State::Compacting => Some(BoxState::Compacting),
        };
        Some(Health { is_serving: answer.status() == Status::Serving, state })
    }
}

async fn connect(socket: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(socket).await.map(TokioIo::new)
}
