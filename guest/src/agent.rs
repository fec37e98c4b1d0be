//! The gRPC server of the agent: the standard `grpc.health.v1.Health` and the project's own
//! service.
//!
//! Answers come from the memory of this process and from `/proc`. They need neither the workload
//! nor a disk, so a busy workload, a slow disk or a full console port does not delay them.

use std::io;
use std::path::Path;
use std::time::Instant;

use a3s_box_proto::agent::agent_server::{Agent, AgentServer};
use a3s_box_proto::agent::{
    HealthCheckRequest, HealthCheckResponse, MetricsRequest, MetricsResponse, State,
    Status as Health,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tonic::codegen::tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use crate::kmsg;
use crate::listener::{self, ListenError, Peers};
use crate::metrics::{Metrics, MetricsError};

/// Maximum number of concurrent requests on a connection. A client that checks health has one or
/// two. Each request takes a few KiB.
const REQUESTS_PER_CONNECTION: u32 = 16;

/// Maximum size of a request's header list in bytes. Usual clients send a few hundred bytes.
const HEADER_BYTES: u32 = 8 * 1024;

/// The reason why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The port cannot be bound.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A file of `/proc` cannot be opened.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// Listens on a vsock port, and serves requests in the background until the process ends.
///
/// The uptime in answers counts from `started`.
pub(crate) fn listen(
    port: u32,
    started: Instant,
    state: watch::Receiver<State>,
) -> Result<(), AgentError> {
    let agent = GuestAgent { started, state, metrics: Metrics::open(Path::new("/proc"))? };
    let incoming = listener::listen(port, Peers::Any)?;
    tokio::spawn(async move {
        if let Err(error) = serve(incoming, agent).await {
            kmsg::error(&error);
        }
    });
    Ok(())
}

/// Serves the connections of `incoming`.
async fn serve<I, IO>(incoming: I, agent: GuestAgent) -> Result<(), tonic::transport::Error>
where
    I: Stream<Item = io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let (reporter, health) = tonic_health::server::health_reporter();
    // tonic-health itself reports the empty service name, which stands for the whole server.
    reporter.set_serving::<AgentServer<GuestAgent>>().await;
    Server::builder()
        .max_concurrent_streams(REQUESTS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .add_service(health)
        .add_service(AgentServer::new(agent))
        .serve_with_incoming(incoming)
        .await
}

/// The data that answers are made of.
#[derive(Debug)]
struct GuestAgent {
    started: Instant,
    state: watch::Receiver<State>,
    metrics: Metrics,
}

#[tonic::async_trait]
impl Agent for GuestAgent {
    async fn health_check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse {
            // Constant: an agent that cannot serve does not answer at all.
            status: Health::Serving.into(),
            state: (*self.state.borrow()).into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }))
    }

    async fn metrics(
        &self,
        _: Request<MetricsRequest>,
    ) -> Result<Response<MetricsResponse>, Status> {
        let values = self.metrics.read();
        values.map(Response::new).map_err(|error| Status::unavailable(kmsg::chain(&error)))
    }
}

#[cfg(test)]
mod tests;
