//! Tests of the agent through gRPC clients over a socket pair.

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Code;
use tonic::codegen::tokio_stream::{self, StreamExt};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::notify::{self, Notices};
use a3s_box_proto::agent::agent_client::AgentClient;

/// Returns an agent for a workload that has sent no notification.
fn agent() -> GuestAgent {
    let metrics = Metrics::open(Path::new("/proc")).unwrap();
    GuestAgent {
        started: Instant::now(),
        state: watch::Sender::new(State::Ready).subscribe(),
        metrics,
    }
}

/// Serves the agent over a socket pair and returns a channel to it.
async fn connect(agent: GuestAgent) -> Channel {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let incoming = tokio_stream::iter([Ok(theirs)]).chain(tokio_stream::pending());
    tokio::spawn(serve(incoming, agent));
    let mut ours = Some(TokioIo::new(ours));
    Endpoint::from_static("http://guest")
        .connect_with_connector(tower::service_fn(move |_| {
            let stream = ours.take();
            async move { stream.ok_or_else(|| io::Error::other("one connection only")) }
        }))
        .await
        .unwrap()
}

#[tokio::test]
async fn reports_serving_and_ready_without_a_notification() {
    let mut client = AgentClient::new(connect(agent()).await);
    let answer = client.health_check(HealthCheckRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.status(), Health::Serving);
    assert_eq!(answer.state(), State::Ready);
    assert_eq!(answer.version, env!("CARGO_PKG_VERSION"));
    assert!(answer.uptime_ms < 10_000);
}

#[tokio::test]
async fn standard_health_covers_the_box_and_the_agent_only() {
    let mut client = HealthClient::new(connect(agent()).await);
    for service in ["", "a3s.box.agent.v1.Agent"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        let answer = client.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let request = tonic_health::pb::HealthCheckRequest { service: "ghost".into() };
    assert_eq!(client.check(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reports_the_last_state_of_the_workload_and_serving_while_it_stops() {
    let address = notify::tests::address();
    let mut notices = Notices::bind(&address).unwrap();
    let mut client =
        AgentClient::new(connect(GuestAgent { state: notices.state(), ..agent() }).await);
    let cases: [(&[u8], State); 6] = [
        (b"READY=1", State::Ready),
        (b"X_A3S_STATE=busy", State::Busy),
        (b"X_A3S_STATE=compacting", State::Compacting),
        (b"X_A3S_STATE=asleep", State::Compacting),
        (b"STOPPING=1\nSTATUS=bye", State::Compacting),
        (b"X_A3S_STATE=ready", State::Ready),
    ];
    for (datagram, expected) in cases {
        notify::tests::send(&address, datagram);
        notices.unsent();
        let answer = client.health_check(HealthCheckRequest {}).await.unwrap().into_inner();
        assert_eq!(answer.state(), expected, "{}", datagram.escape_ascii());
        assert_eq!(answer.status(), Health::Serving);
    }
    drop(notices);
    let answer = client.health_check(HealthCheckRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.state(), State::Ready);
}

#[tokio::test]
async fn reports_the_metrics_of_the_kernel() {
    let mut client = AgentClient::new(connect(agent()).await);
    let answer = client.metrics(MetricsRequest {}).await.unwrap().into_inner();
    assert!(answer.memory_available_kib > 0, "{answer:?}");
    assert!(answer.memory_total_kib >= answer.memory_available_kib, "{answer:?}");
    assert!(answer.processes > 0, "{answer:?}");
}

#[tokio::test]
async fn reports_unavailable_and_stays_healthy_without_usable_metrics() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("meminfo"), "MemTotal: 1 kB\n").unwrap();
    std::fs::write(directory.path().join("loadavg"), "0.1 0.1 0.1 1/2 3\n").unwrap();
    let metrics = Metrics::open(directory.path()).unwrap();
    let mut client = AgentClient::new(connect(GuestAgent { metrics, ..agent() }).await);
    let status = client.metrics(MetricsRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "`meminfo` of the guest: found no usable MemAvailable");
    let answer = client.health_check(HealthCheckRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.status(), Health::Serving);
}
