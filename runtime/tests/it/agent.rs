//! [`FakeAgent`]: an agent on a unix socket, whose answers the tests choose.

#![expect(clippy::unwrap_used, reason = "a failed setup fails the test")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use a3s_box_proto::agent::agent_server::{Agent, AgentServer};
use a3s_box_proto::agent::{
    HealthCheckRequest, HealthCheckResponse, MetricsRequest, MetricsResponse, State, Status,
};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response};

/// A running server, and the answer of its health checks.
pub(crate) struct FakeAgent {
    answer: Arc<Mutex<(Status, State)>>,
    socket: PathBuf,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

struct Service {
    answer: Arc<Mutex<(Status, State)>>,
}

#[tonic::async_trait]
impl Agent for Service {
    async fn health_check(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, tonic::Status> {
        let (status, state) = *self.answer.lock().unwrap();
        Ok(Response::new(HealthCheckResponse {
            status: status.into(),
            state: state.into(),
            version: "0.1.0".to_owned(),
            uptime_ms: 1,
        }))
    }

    async fn metrics(
        &self,
        _request: Request<MetricsRequest>,
    ) -> Result<Response<MetricsResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("this agent has no metrics"))
    }
}

impl FakeAgent {
    /// Starts the server on `socket`, with the answer that it serves and is ready.
    pub(crate) fn serve(socket: PathBuf) -> Self {
        let answer = Arc::new(Mutex::new((Status::Serving, State::Ready)));
        let listener = UnixListener::bind(&socket).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let service = AgentServer::new(Service { answer: Arc::clone(&answer) });
        let server = tokio::spawn(async move {
            let incoming = UnixListenerStream::new(listener);
            let stopped = async { stopped.await.unwrap() };
            let server = Server::builder().add_service(service);
            server.serve_with_incoming_shutdown(incoming, stopped).await.unwrap();
        });
        Self { answer, socket, stop, server }
    }

    /// Sets the answer of the next health checks.
    pub(crate) fn set_answer(&self, status: Status, state: State) {
        *self.answer.lock().unwrap() = (status, state);
    }

    /// Stops the server, closes its connections and removes the socket.
    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.server.await.unwrap();
        std::fs::remove_file(&self.socket).unwrap();
    }
}
