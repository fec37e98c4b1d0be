//! Health checks: a real gRPC round trip over the socket that libkrun bridges to the guest.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use a3s_box_proto::agent::agent_client::AgentClient;
use a3s_box_proto::agent::{HealthCheckRequest, Status};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// First and longest pause between two tries: an agent that listens is seen within one of them.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// An answer takes a millisecond; under emulation some tens.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A client whose connection is made at the first call, and again after it broke. Its clones share
/// the connection.
#[derive(Clone, Debug)]
pub(super) struct Health {
    client: AgentClient<Channel>,
}

impl Health {
    /// A client for the agent behind `socket`.
    pub(super) fn new(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connect = service_fn(move |_: Uri| connect(socket.clone()));
        // The authority of a unix socket is not looked at; it must only be one.
        let endpoint = Endpoint::from_static("http://localhost");
        Self { client: AgentClient::new(endpoint.connect_with_connector_lazy(connect)) }
    }

    /// Asks once; whether the agent says that it serves.
    pub(super) async fn is_serving(&mut self) -> bool {
        let answer = timeout(ANSWER_TIMEOUT, self.client.health_check(HealthCheckRequest {})).await;
        matches!(answer, Ok(Ok(answer)) if answer.get_ref().status() == Status::Serving)
    }

    /// Asks until the agent says that it serves.
    pub(super) async fn until_serving(mut self) {
        let mut pause = FIRST_PAUSE;
        while !self.is_serving().await {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

async fn connect(socket: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(socket).await.map(TokioIo::new)
}
