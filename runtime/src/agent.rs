//! Asks the agent in a box how it is, over the socket that libkrun bridges to the guest.

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

/// An answer takes a millisecond, under emulation some tens; the rest is for a busy host.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer that is decoded. A real one has some tens of bytes; the guest is hostile.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What an agent that could be reached says about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Health {
    pub(crate) is_serving: bool,
    /// Absent when the agent does not say it, or says something that this version does not know.
    pub(crate) state: Option<BoxState>,
}

/// A client whose one connection is made at the first call, and again after it broke. Clones
/// share it.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    client: AgentClient<Channel>,
}

impl Agent {
    /// A client for the agent behind `socket`. To be called in a tokio runtime.
    pub(crate) fn new(socket: PathBuf) -> Self {
        let connect = service_fn(move |_: Uri| connect(socket.clone()));
        // The authority of a unix socket is not looked at; it must only be one.
        let endpoint = Endpoint::from_static("http://localhost");
        let client = AgentClient::new(endpoint.connect_with_connector_lazy(connect));
        Self { client: client.max_decoding_message_size(MAX_ANSWER_BYTES) }
    }

    /// Asks once. `None` when no answer came: nobody listens, or it took too long.
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
