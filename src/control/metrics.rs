//! The figures of the `metrics` event, which are read in the background.

use std::time::Duration;

use a3s_box_core::event::{GuestMetrics, ProcessMetrics};
use tokio::task::JoinHandle;

use super::agent::Agent;
use super::usage;

/// How long the agent may take for its figures. They are not worth a longer wait.
const METRICS_TIMEOUT: Duration = Duration::from_secs(1);

/// The figures of the process, and those of the guest if its agent answers.
pub(super) type Figures = (ProcessMetrics, Option<GuestMetrics>);

/// Gathers figures, one set at a time.
#[derive(Debug)]
pub(super) struct Metrics {
    /// Absent: no `metrics` events.
    interval: Option<Duration>,
    /// Polled by the loop, which must not block while figures are gathered.
    pub(super) gathering: Option<JoinHandle<Figures>>,
}

impl Metrics {
    pub(super) fn new(interval: Option<Duration>) -> Self {
        Self { interval, gathering: None }
    }

    /// Returns the time between two events.
    pub(super) fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// Starts to read the figures, unless that is going on. It happens in the background, because the
    /// host kernel is slow to report on a large guest, and the agent of a busy guest is slow to
    /// answer.
    pub(super) fn gather(&mut self, agent: Option<Agent>) {
        self.gathering.get_or_insert_with(|| {
            tokio::spawn(async move {
                let guest = async {
                    match &agent {
                        Some(agent) => agent.metrics(METRICS_TIMEOUT).await,
                        None => None,
                    }
                };
                let (process, guest) =
                    tokio::join!(tokio::task::spawn_blocking(usage::read), guest);
                // Without a thread to read them, this set has no figures of the process.
                (process.unwrap_or_default(), guest)
            })
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn figures_of_the_process_need_no_agent_and_one_set_is_gathered_at_a_time() {
        let mut metrics = Metrics::new(None);
        metrics.gather(None);
        let first = metrics.gathering.as_ref().unwrap().id();
        metrics.gather(None);
        assert_eq!(metrics.gathering.as_ref().unwrap().id(), first);
        let (process, guest) = metrics.gathering.take().unwrap().await.unwrap();
        assert!(process.rss_kib > 0 && guest.is_none(), "{process:?}");
    }
}
