//! The watch over a running guest: its health checks, and the probe that finds a halted guest.

use std::path::PathBuf;

use a3s_box_core::config::OnUnhealthy;
use a3s_box_core::event::HealthMetrics;
use tokio::task::JoinHandle;

use super::agent::Agent;
use super::health::{Check, Checks, Outcome};
use super::liveness::{self, Probe};
use crate::spec::HealthSpec;

/// Watches one guest, from the start of its workload to its end.
#[derive(Debug)]
pub(super) struct Watch {
    agent_socket: PathBuf,
    /// Absent: the agent is not asked.
    spec: Option<HealthSpec>,
    /// Polled by the loop.
    pub(super) checks: Option<Checks>,
    /// Polled by the loop. It ends when the guest has halted.
    pub(super) liveness: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn new(agent_socket: PathBuf, spec: Option<HealthSpec>) -> Self {
        Self { agent_socket, spec, checks: None, liveness: None }
    }

    /// Begins with the start of the workload.
    ///
    /// The agent of the guest program listens before the workload is started. It is not asked before
    /// that start: an early question would delay the start by the time of its answer, and it would
    /// make a box ready whose workload cannot be signalled yet.
    pub(super) fn start(&mut self) {
        let socket = self.agent_socket.clone();
        let probe = match self.spec {
            None => Probe::Kernel,
            Some(spec) => {
                let (checks, last_answer) = Checks::start(&socket, spec);
                self.checks = Some(checks);
                Probe::Agent(Agent::new(&socket), last_answer)
            }
        };
        self.liveness =
            Some(tokio::spawn(async move { liveness::until_halted(probe, &socket).await }));
    }

    /// Ends with the workload: a guest that is shutting down does not answer.
    pub(super) fn end(&mut self) {
        self.checks = None;
        self.liveness = None;
    }

    /// Takes a check that has ended, and returns what it changes and whether the box must be stopped
    /// for it. A check that ends after the watch counts for nothing.
    pub(super) fn take(&mut self, check: &Check) -> Option<(Outcome, bool)> {
        let checks = self.checks.as_mut()?;
        let outcome = checks.take(check);
        let must_stop = checks.is_unhealthy() && checks.on_unhealthy() == OnUnhealthy::Stop;
        Some((outcome, must_stop))
    }

    /// Returns a client that shares the connection of the health checks.
    pub(super) fn agent(&self) -> Option<Agent> {
        self.checks.as_ref().map(Checks::agent)
    }

    /// Returns the figures of the health checks.
    pub(super) fn metrics(&mut self) -> Option<HealthMetrics> {
        self.checks.as_mut().map(Checks::metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn guest_without_health_checks_is_probed_for_liveness_only() {
        let mut watch = Watch::new("/nonexistent".into(), None);
        watch.start();
        assert!(watch.checks.is_none() && watch.liveness.is_some());
        assert!(watch.agent().is_none() && watch.metrics().is_none());
        watch.end();
        assert!(watch.liveness.is_none());
    }
}
