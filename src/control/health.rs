//! Health checks, from the start of the workload until the box ends.
//!
//! A task sends the checks and passes each result to the monitor through [`Checks`]. Before the
//! first success it checks every few milliseconds, so that a box is ready as soon as its agent is.

use std::path::Path;
use std::time::Duration;

use a3s_box_core::config::OnUnhealthy;
use a3s_box_core::event::{EventKind, HealthMetrics};
use a3s_box_core::{BoxState, HealthState};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::agent::{Agent, Answer, Failure};
use crate::spec::HealthSpec;

/// First and longest pause between two checks before the first success. The longest one bounds the
/// delay between the agent's first `listen(2)` and the shim's notice of it.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// Least timeout of the checks before the first success. Such a check includes the connection and
/// possibly the start of the agent, so the configured timeout may be too short for it.
const FIRST_TIMEOUT: Duration = Duration::from_secs(2);

/// Bound of the channel from the task to the monitor. The task waits while it is full.
const MAX_WAITING_CHECKS: usize = 4;

/// A check that has ended.
#[derive(Debug)]
pub(super) struct Check {
    result: Result<Answer, Failure>,
    took: Duration,
}

/// Changes that a check has caused.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Whether the check is the first success.
    pub(super) is_first: bool,
    /// The event of a change of health.
    pub(super) changed: Option<EventKind>,
    /// The box's health as a sentence for the service manager's status.
    pub(super) health: &'static str,
    /// The state of the box, if the agent's answer differs from its previous one. An unchanged
    /// answer is left out, because the workload may have reported a newer state since.
    pub(super) state: Option<BoxState>,
}

/// The checks of a box.
#[derive(Debug)]
pub(super) struct Checks {
    agent: Agent,
    results: mpsc::Receiver<Check>,
    health: Health,
    has_succeeded: bool,
    last_state: Option<BoxState>,
}

impl Checks {
    /// Starts to check the agent behind `socket`. The receiver holds the time of the last answer.
    pub(super) fn start(socket: &Path, spec: HealthSpec) -> (Self, LastAnswer) {
        let agent = Agent::new(socket);
        let (sender, results) = mpsc::channel(MAX_WAITING_CHECKS);
        let (answered, last_answer) = watch::channel(None);
        tokio::spawn(check_repeatedly(agent.share(), spec, sender, answered));
        let health = Health::new(spec, Instant::now());
        (Self { agent, results, health, has_succeeded: false, last_state: None }, last_answer)
    }

    /// Returns the next check that ends. The future is cancel safe: `select!` may drop it.
    pub(super) async fn next(&mut self) -> Check {
        match self.results.recv().await {
            Some(check) => check,
            // The task ends only after this receiver is dropped.
            None => std::future::pending().await,
        }
    }

    /// Records a check and returns the changes that it has caused.
    pub(super) fn take(&mut self, check: &Check) -> Outcome {
        let changed = self.health.take(check, Instant::now());
        let is_first = check.result.is_ok() && !self.has_succeeded;
        self.has_succeeded |= check.result.is_ok();
        let answered = check.result.as_ref().ok().and_then(|answer| answer.state);
        let state = answered.filter(|_| answered != self.last_state);
        self.last_state = answered.or(self.last_state);
        let health = match self.health.state {
            HealthState::Starting => "the box is starting",
            HealthState::Healthy => "the box is healthy",
            HealthState::Unhealthy => "the box is unhealthy",
        };
        Outcome { is_first, changed, health, state }
    }

    pub(super) fn is_unhealthy(&self) -> bool {
        self.health.state == HealthState::Unhealthy
    }

    pub(super) fn on_unhealthy(&self) -> OnUnhealthy {
        self.health.spec.on_unhealthy
    }

    /// Returns a client that shares the connection.
    pub(super) fn agent(&self) -> Agent {
        self.agent.share()
    }

    /// Returns the figures, and starts a new maximum of the latency.
    pub(super) fn metrics(&mut self) -> HealthMetrics {
        self.health.metrics()
    }
}

/// Time of the agent's last answer. An error that the agent sent counts as an answer.
pub(super) type LastAnswer = watch::Receiver<Option<Instant>>;

/// Checks until the receiver of `checks` is dropped. Before the first success it passes on one
/// failure an interval, because the short pauses would use up the retries in milliseconds.
async fn check_repeatedly(
    mut agent: Agent,
    spec: HealthSpec,
    checks: mpsc::Sender<Check>,
    answered: watch::Sender<Option<Instant>>,
) {
    let (mut pause, mut last_passed_on, mut has_succeeded) = (FIRST_PAUSE, Instant::now(), false);
    loop {
        let start = Instant::now();
        let limit = if has_succeeded { spec.timeout } else { spec.timeout.max(FIRST_TIMEOUT) };
        let result = agent.check(limit).await;
        if !result.as_ref().is_err_and(Failure::is_silence) {
            answered.send_replace(Some(Instant::now()));
        }
        has_succeeded |= result.is_ok();
        if has_succeeded || last_passed_on.elapsed() >= spec.interval {
            last_passed_on = Instant::now();
            if checks.send(Check { result, took: start.elapsed() }).await.is_err() {
                return;
            }
        }
        sleep(if has_succeeded { spec.interval } else { pause }).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The health of a box as its checks have shown it.
#[derive(Debug)]
struct Health {
    spec: HealthSpec,
    start: Instant,
    state: HealthState,
    /// Failures since the last success.
    failures_in_a_row: u32,
    checks: u64,
    failures: u64,
    last_latency: Duration,
    max_latency: Duration,
}

impl Health {
    /// Creates the health of a box whose workload was started at `start`.
    fn new(spec: HealthSpec, start: Instant) -> Self {
        Self {
            spec,
            start,
            state: HealthState::Starting,
            failures_in_a_row: 0,
            checks: 0,
            failures: 0,
            last_latency: Duration::ZERO,
            max_latency: Duration::ZERO,
        }
    }

    /// Records a check and returns the event of the change that it has caused.
    fn take(&mut self, check: &Check, now: Instant) -> Option<EventKind> {
        self.checks += 1;
        let to = match &check.result {
            Ok(_) => {
                self.failures_in_a_row = 0;
                self.last_latency = check.took;
                self.max_latency = self.max_latency.max(check.took);
                HealthState::Healthy
            }
            Err(_) => {
                self.failures += 1;
                // The start period ends early with the first success, as in container engines.
                let excused = self.state == HealthState::Starting
                    && now.duration_since(self.start) < self.spec.start_period;
                if !excused {
                    self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                }
                let is_over = self.failures_in_a_row >= self.spec.retries;
                if is_over { HealthState::Unhealthy } else { self.state }
            }
        };
        let from = std::mem::replace(&mut self.state, to);
        let failure = check.result.as_ref().err();
        (from != to).then(|| EventKind::HealthChanged {
            from,
            to,
            cause: failure.map(|failure| failure.cause),
            message: failure.map(|failure| failure.message.clone()),
            failures: self.failures_in_a_row,
        })
    }

    fn metrics(&mut self) -> HealthMetrics {
        let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        HealthMetrics {
            state: self.state,
            checks: self.checks,
            failures: self.failures,
            last_latency_us: microseconds(self.last_latency),
            max_latency_us: microseconds(std::mem::take(&mut self.max_latency)),
        }
    }
}

#[cfg(test)]
mod tests {
    use a3s_box_core::event::HealthCause;

    use super::*;

    const RETRIES: u32 = 3;

    fn health(start: Instant) -> Health {
        let spec = HealthSpec {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            retries: RETRIES,
            start_period: Duration::from_secs(10),
            on_unhealthy: OnUnhealthy::Report,
        };
        Health::new(spec, start)
    }

    fn check(is_success: bool) -> Check {
        let failure = Failure { cause: HealthCause::NotServing, message: "m".into() };
        let result = if is_success { Ok(Answer { state: None }) } else { Err(failure) };
        Check { result, took: Duration::from_millis(2) }
    }

    /// Returns the state after each of `checks`. A `+` is a success, a `-` is a failure, and a
    /// check ends each second from the start on.
    fn states(checks: &str) -> Vec<HealthState> {
        let start = Instant::now();
        let mut health = health(start);
        let mut take = |(second, sign)| {
            let before = health.state;
            let change = health.take(&check(sign == '+'), start + Duration::from_secs(second));
            assert_eq!(change.is_some(), before != health.state);
            health.state
        };
        (0..).zip(checks.chars()).map(&mut take).collect()
    }

    #[test]
    fn failures_count_only_after_the_start_period() {
        use HealthState::{Starting, Unhealthy};
        let states = states("-------------");
        assert_eq!(states[..12], [Starting; 12]);
        assert_eq!(states[12], Unhealthy);
    }

    #[test]
    fn success_ends_the_start_period_and_resets_the_count_of_failures() {
        use HealthState::{Healthy, Unhealthy};
        let expected =
            [Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Unhealthy, Unhealthy, Healthy];
        assert_eq!(states("+--+---")[..], expected[..7]);
        assert_eq!(states("+--+----+")[7..], expected[7..]);
    }

    #[test]
    fn change_contains_its_cause_and_the_number_of_failures() {
        let start = Instant::now();
        let mut health = health(start);
        let later = start + Duration::from_secs(60);
        assert!(health.take(&check(true), later).is_some());
        assert!(health.take(&check(false), later).is_none());
        assert!(health.take(&check(false), later).is_none());
        let change = health.take(&check(false), later).unwrap();
        let EventKind::HealthChanged { from, to, cause, message, failures } = change else {
            panic!("another event")
        };
        assert_eq!((from, to), (HealthState::Healthy, HealthState::Unhealthy));
        assert_eq!((cause, message.as_deref()), (Some(HealthCause::NotServing), Some("m")));
        assert_eq!(failures, RETRIES);
        let metrics = health.metrics();
        assert_eq!((metrics.checks, metrics.failures, metrics.max_latency_us), (4, 3, 2000));
        assert_eq!(health.metrics().max_latency_us, 0);
    }
}
