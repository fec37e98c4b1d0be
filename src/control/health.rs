//! Health checks, for as long as the box runs.
//!
//! A task asks and hands each result to the monitor, which keeps the [`Checks`] of the box. Up to
//! the first success it asks every few milliseconds, so that a box is ready as soon as its agent is.

use std::path::Path;
use std::time::Duration;

use a3s_box_core::config::OnUnhealthy;
use a3s_box_core::event::{EventKind, HealthMetrics};
use a3s_box_core::{BoxState, HealthState};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::agent::{Agent, Answer, Failure};
use crate::spec::HealthSpec;

/// First and longest pause between two questions before the first success: an agent that begins to
/// listen is seen within one of them.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// The least that the first answer may take: it includes the connection, and an agent that starts.
const FIRST_TIMEOUT: Duration = Duration::from_secs(2);

/// Results that may wait for the monitor.
const MAX_WAITING_CHECKS: usize = 4;

/// A check that ended.
#[derive(Debug)]
pub(super) struct Check {
    result: Result<Answer, Failure>,
    took: Duration,
}

/// What a check says that was not known before.
#[derive(Debug)]
pub(super) struct Outcome {
    /// It is the first success.
    pub(super) is_first: bool,
    /// The event that tells a change of health.
    pub(super) changed: Option<EventKind>,
    /// The box's health, for people.
    pub(super) health: &'static str,
    /// What the box does, if the agent says something else than in its last answer: an answer that
    /// says the same may be older than what the workload has said since.
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
    /// Starts to ask the agent behind `socket`. The receiver says when an answer of any kind came last.
    pub(super) fn start(socket: &Path, spec: HealthSpec) -> (Self, LastAnswer) {
        let agent = Agent::new(socket);
        let (sender, results) = mpsc::channel(MAX_WAITING_CHECKS);
        let (answered, last_answer) = watch::channel(None);
        tokio::spawn(ask_again_and_again(agent.share(), spec, sender, answered));
        let health = Health::new(spec, Instant::now());
        (Self { agent, results, health, has_succeeded: false, last_state: None }, last_answer)
    }

    /// The next check that ends. May be dropped at any time without losing anything.
    pub(super) async fn next(&mut self) -> Check {
        match self.results.recv().await {
            Some(check) => check,
            // Not while this receiver is there.
            None => std::future::pending().await,
        }
    }

    /// Takes a check in.
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

    /// A client that shares the connection.
    pub(super) fn agent(&self) -> Agent {
        self.agent.share()
    }

    /// The figures; the longest latency begins anew.
    pub(super) fn metrics(&mut self) -> HealthMetrics {
        self.health.metrics()
    }
}

/// When an answer of any kind came last.
pub(super) type LastAnswer = watch::Receiver<Option<Instant>>;

/// Asks until nobody wants to know. Before the first success, failures are told once an interval.
async fn ask_again_and_again(
    mut agent: Agent,
    spec: HealthSpec,
    checks: mpsc::Sender<Check>,
    answered: watch::Sender<Option<Instant>>,
) {
    let (mut pause, mut told, mut has_succeeded) = (FIRST_PAUSE, Instant::now(), false);
    loop {
        let start = Instant::now();
        let limit = if has_succeeded { spec.timeout } else { spec.timeout.max(FIRST_TIMEOUT) };
        let result = agent.check(limit).await;
        if !result.as_ref().is_err_and(Failure::is_silence) {
            answered.send_replace(Some(Instant::now()));
        }
        has_succeeded |= result.is_ok();
        if has_succeeded || told.elapsed() >= spec.interval {
            told = Instant::now();
            if checks.send(Check { result, took: start.elapsed() }).await.is_err() {
                return;
            }
        }
        sleep(if has_succeeded { spec.interval } else { pause }).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What the checks say of a box.
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
    /// That of a box whose workload was started at `start`.
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

    /// Takes a check in; says what it changes.
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

    /// States after each of `checks`: `+` or `-`, one a second from the start on.
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
    fn failures_do_not_count_in_the_start_period_and_then_they_do() {
        use HealthState::{Starting, Unhealthy};
        let states = states("-------------");
        assert_eq!(states[..12], [Starting; 12]);
        assert_eq!(states[12], Unhealthy);
    }

    #[test]
    fn a_success_ends_the_start_period_and_the_count_of_failures() {
        use HealthState::{Healthy, Unhealthy};
        let expected =
            [Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Unhealthy, Unhealthy, Healthy];
        assert_eq!(states("+--+---")[..], expected[..7]);
        assert_eq!(states("+--+----+")[7..], expected[7..]);
    }

    #[test]
    fn a_change_names_its_cause_and_the_number_of_failures() {
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
