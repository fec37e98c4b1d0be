//! Client of the agent in the guest, over the socket that libkrun bridges to it.
//!
//! The client supports two services: the project's own `Agent`, which also reports the state of the
//! box and its figures, and the standard `grpc.health.v1.Health`. It uses the standard one if the
//! agent answers `UNIMPLEMENTED` to the first. Answers are hostile input: their size is bounded,
//! and control characters are replaced before they are shown.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use a3s_box_core::BoxState;
use a3s_box_core::event::{GuestMetrics, HealthCause};
use a3s_box_proto::agent::agent_client::AgentClient;
use a3s_box_proto::agent::{HealthCheckRequest, MetricsRequest, State, Status as Health};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;

use super::connection::{AbortHandle, Connection};
use crate::report::printable::{MESSAGE_CHARS, printable};

/// Longest answer that is decoded. An honest agent sends some tens of bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Longest header list of an answer. Common servers send a few hundred bytes.
const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// Answer of an agent that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// State of the box. It is absent if the agent does not report one, or one of a newer version.
    pub(super) state: Option<BoxState>,
}

/// Cause of a failed check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) cause: HealthCause,
    pub(super) message: String,
}

impl Failure {
    /// Whether the agent has sent nothing at all.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self.cause, HealthCause::Transport | HealthCause::Timeout)
    }
}

/// The service that the next check uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Own,
    Standard,
}

/// A client with one connection, which is made at the first call. It is made again after it broke,
/// and after a check took too long, because a peer that has lost its end looks like a slow one.
#[derive(Debug)]
pub(super) struct Agent {
    socket: PathBuf,
    channel: Channel,
    abort_handle: AbortHandle,
    service: Service,
}

impl Agent {
    /// Creates a client for the agent behind `socket`. The caller must be in a tokio runtime.
    pub(super) fn new(socket: &Path) -> Self {
        let (channel, abort_handle) = channel(socket);
        Self { socket: socket.to_owned(), channel, abort_handle, service: Service::Own }
    }

    /// Makes one check, which takes at most `within`. It succeeds if the agent answers that it
    /// serves.
    pub(super) async fn check(&mut self, within: Duration) -> Result<Answer, Failure> {
        match timeout(within, self.ask()).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                self.abort_handle.cut();
                (self.channel, self.abort_handle) = channel(&self.socket);
                let message = format!("no answer within {} ms", within.as_millis());
                Err(Failure { cause: HealthCause::Timeout, message })
            }
        }
    }

    /// Requests the figures of the guest. Returns nothing if the agent has none or takes too long.
    pub(super) async fn metrics(&self, within: Duration) -> Option<GuestMetrics> {
        if self.service == Service::Standard {
            return None;
        }
        let mut client = self.own();
        let Ok(answer) = timeout(within, client.metrics(MetricsRequest {})).await else {
            self.abort_handle.cut();
            return None;
        };
        let answer = answer.ok()?.into_inner();
        // JSON can express neither infinities nor NaN (RFC 8259, section 6).
        let finite = |number: f64| if number.is_finite() { number } else { 0.0 };
        Some(GuestMetrics {
            memory_total_kib: answer.memory_total_kib,
            memory_available_kib: answer.memory_available_kib,
            load: [answer.load_1m, answer.load_5m, answer.load_15m].map(finite),
            processes: answer.processes,
        })
    }

    /// Returns a client that shares the connection, for calls at the same time.
    pub(super) fn share(&self) -> Self {
        Self {
            socket: self.socket.clone(),
            channel: self.channel.clone(),
            abort_handle: self.abort_handle.clone(),
            service: self.service,
        }
    }

    async fn ask(&mut self) -> Result<Answer, Failure> {
        if self.service == Service::Own {
            match self.own().health_check(HealthCheckRequest {}).await {
                Err(status) if status.code() == Code::Unimplemented => {
                    self.service = Service::Standard;
                }
                Err(status) => return Err(refused(&status)),
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let state = match answer.state() {
                        State::Unspecified => None,
                        State::Ready => Some(BoxState::Ready),
                        State::Busy => Some(BoxState::Busy),
                        State::Compacting => Some(BoxState::Compacting),
                    };
                    return serving(answer.status() == Health::Serving, answer.status, state);
                }
            }
        }
        let mut client = HealthClient::new(self.channel.clone());
        client = client.max_decoding_message_size(MAX_ANSWER_BYTES);
        // An empty service name asks for the health of the whole server (gRPC health checking
        // protocol).
        match client.check(tonic_health::pb::HealthCheckRequest::default()).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                serving(answer.status() == ServingStatus::Serving, answer.status, None)
            }
            Err(status) => {
                // Another agent may listen by the next check, so that one starts with our own
                // service.
                self.service = Service::Own;
                Err(refused(&status))
            }
        }
    }

    fn own(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }
}

fn channel(socket: &Path) -> (Channel, AbortHandle) {
    let abort_handle = AbortHandle::default();
    let (socket, for_each) = (socket.to_owned(), abort_handle.clone());
    let connect = service_fn(move |_: Uri| connect(socket.clone(), for_each.clone()));
    // tonic requires a valid authority, though a unix socket has none. The server ignores it.
    let endpoint = Endpoint::from_static("http://localhost");
    let endpoint = endpoint.http2_max_header_list_size(MAX_HEADER_BYTES);
    (endpoint.connect_with_connector_lazy(connect), abort_handle)
}

async fn connect(socket: PathBuf, abort_handle: AbortHandle) -> io::Result<TokioIo<Connection>> {
    abort_handle.connect(&socket).await.map(TokioIo::new)
}

fn serving(is_serving: bool, status: i32, state: Option<BoxState>) -> Result<Answer, Failure> {
    if is_serving {
        return Ok(Answer { state });
    }
    let message = format!("the agent says that it does not serve (status {status})");
    Err(Failure { cause: HealthCause::NotServing, message })
}

/// Converts the error of a call. The error is a status that the agent sent, or one that tonic made
/// because the connection could not be made or broke. Only the latter has a source.
fn refused(status: &Status) -> Failure {
    let chain = std::iter::successors(status.source(), |&cause| cause.source());
    let root = chain.last();
    let cause = match status.code() {
        _ if root.is_some() => HealthCause::Transport,
        Code::Unimplemented | Code::Internal | Code::OutOfRange | Code::Unknown => {
            HealthCause::Protocol
        }
        _ => HealthCause::NotServing,
    };
    // The errors above the root of a lost connection only repeat that there was a transport error.
    let message = root.map_or_else(|| status.message().to_owned(), ToString::to_string);
    Failure { cause, message: printable(&message, MESSAGE_CHARS) }
}
