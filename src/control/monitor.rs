//! The one loop that watches a running VM and decides.
//!
//! | module | what it owns |
//! |---|---|
//! | this one | the loop, readiness, health, states, figures |
//! | `guest` | what the guest says |
//! | `ending` | the way from a request to stop to the end of the process |

mod ending;
mod guest;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Duration;

use a3s_box_core::config::{OnUnhealthy, Readiness};
use a3s_box_core::event::{BootPhases, EventKind, GuestMetrics, Metrics, ProcessMetrics};
use a3s_box_core::{BoxState, ErrorCode, ErrorReport};
use a3s_box_proto::control::{Drained, Notified};
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, sleep, sleep_until};

use super::agent::Agent;
use super::deadlines::{Deadlines, Due};
use super::health::{Check, Checks};
use super::link::{Link, LinkEvent};
use super::liveness::{self, Probe};
use super::stopping::Stopping;
use super::throttle::Throttle;
use super::verdict::{Facts, Stop, failure};
use super::{Setup, VmNews, usage};
use crate::console::{Relay, Truncation};
use crate::host::process::{Signals, StopRequest};
use crate::network::{self, Carrier};
use crate::report::events::EventWriter;
use crate::report::log::{self, Phase};

use crate::report::service_manager::ServiceManager;
use crate::spec::AgentSpec;
use crate::state::dir::BoxCleanup;

/// How often something is looked at that cannot wake us: a slow reader, the console.
const TICK: Duration = Duration::from_millis(5);

/// Least time between two events about what the guest may say without end.
const GUEST_INTERVAL: Duration = Duration::from_millis(100);

/// Messages of the guest in a row before others get their turn, as many as its own PID 1 takes from
/// the workload.
const GUEST_TURN: u32 = 64;

/// Least time between two events about output that is not kept: it may be all of a flood.
const TRUNCATION_INTERVAL: Duration = Duration::from_secs(1);

/// How long the agent may take for its figures: they are not worth a wait.
const METRICS_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything that can happen.
enum Input {
    Stop(StopRequest),
    Guest(LinkEvent),
    Checked(Check),
    Halted,
    Figures(ProcessMetrics, Option<GuestMetrics>),
    Truncated(Truncation),
    Throttled,
    Due(Due),
    Vm(VmNews),
    NetworkLost(String),
    Tick,
}

/// Watches one VM.
#[derive(Debug)]
pub(super) struct Monitor {
    events: Arc<EventWriter>,
    listener: Option<UnixListener>,
    signals: Option<Signals>,
    supervisor: ServiceManager,
    vm_news: mpsc::UnboundedReceiver<VmNews>,
    /// What the `_exit` hook ends the process with, should this thread take too long.
    exit_status: Arc<AtomicU8>,
    console: Relay,
    carrier: Option<Carrier>,
    /// Ends with the guest's network.
    network: Option<JoinHandle<String>>,
    agent_socket: PathBuf,
    agent: AgentSpec,
    stop_signal: Signal,
    stop_grace: Duration,
    metrics_interval: Option<Duration>,
    box_end: BoxCleanup,
    deadlines: Deadlines,
    checks: Option<Checks>,
    liveness: Option<JoinHandle<()>>,
    figures: Option<JoinHandle<(ProcessMetrics, Option<GuestMetrics>)>>,
    state: BoxState,
    /// What the workload or the agent says that the box does.
    activity: Throttle<BoxState>,
    notified: Throttle<Notified>,
    truncation: Throttle<Truncation>,
    told_truncation: Option<Truncation>,
    /// What the workload has said so far.
    last_notified: Notified,
    facts: Facts,
    stopping: Option<Stopping>,
    guest_version: String,
    started: bool,
    drained: Option<Drained>,
    pending_flush: bool,
    phases: BootPhases,
}

impl Monitor {
    pub(super) fn new(
        setup: Setup<'_>,
        listener: UnixListener,
        vm_news: mpsc::UnboundedReceiver<VmNews>,
        exit_status: Arc<AtomicU8>,
    ) -> Self {
        let mut deadlines = Deadlines::default();
        deadlines.set(Due::Boot, setup.spec.agent.boot_timeout);
        if let Some(timeout) = setup.spec.timeout {
            deadlines.set(Due::Timeout, timeout.saturating_sub(setup.events.elapsed()));
        }
        if let Some(interval) = setup.supervisor.watchdog_interval() {
            deadlines.set(Due::Watchdog, interval);
        }
        let rootfs_ms = setup.events.elapsed_ms().saturating_sub(setup.configured_ms);
        Self {
            listener: Some(listener),
            signals: Some(setup.signals),
            supervisor: setup.supervisor,
            vm_news,
            exit_status,
            console: setup.console,
            carrier: setup.carrier,
            network: None,
            agent_socket: setup.state.agent_socket(),
            agent: setup.spec.agent.clone(),
            stop_signal: setup.guest.stop_signal,
            stop_grace: setup.spec.stop_grace,
            metrics_interval: setup.spec.events.metrics_interval,
            box_end: setup.state.cleanup(),
            deadlines,
            checks: None,
            liveness: None,
            figures: None,
            state: BoxState::Created,
            activity: Throttle::new(GUEST_INTERVAL),
            notified: Throttle::new(GUEST_INTERVAL),
            truncation: Throttle::new(TRUNCATION_INTERVAL),
            told_truncation: None,
            last_notified: Notified::default(),
            facts: Facts::default(),
            stopping: None,
            guest_version: String::new(),
            started: false,
            drained: None,
            pending_flush: false,
            phases: BootPhases {
                config_ms: setup.configured_ms,
                rootfs_ms,
                ..BootPhases::default()
            },
            events: setup.events,
        }
    }

    /// Runs until the end of the box, then ends the process.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.watch().await {
            let report = ErrorReport::new(ErrorCode::Internal, &error);
            self.facts.failure.get_or_insert(report);
        }
        self.end().await;
    }

    async fn watch(&mut self) -> std::io::Result<()> {
        let (Some(listener), Some(signals)) = (self.listener.take(), self.signals.take()) else {
            return Ok(());
        };
        let mut link = Link::listen(listener)?;
        #[expect(
            deprecated,
            reason = "`register` is unsafe; `Signals` owns its fd, as `new` needs"
        )]
        let signals = AsyncFd::new(signals)?;
        self.network = self.carrier.take().map(|carrier| tokio::spawn(carrier.end()));
        let mut truncated = self.console.truncation();
        let mut said = 0;
        loop {
            let input = self.next_input(&mut link, &signals, &mut truncated).await?;
            said = if matches!(input, Input::Guest(_)) { said + 1 } else { 0 };
            if said >= GUEST_TURN {
                // Signals and timers are seen when this task waits, and one that has read hundreds of
                // messages at once has nothing to wait for.
                said = 0;
                yield_now().await;
            }
            if self.handle(input, &mut link) {
                self.hear_last_words(&mut link).await;
                return Ok(());
            }
            self.pending_flush = self.events.flush();
        }
    }

    /// What the guest may say without end comes last, so that it delays nothing else.
    async fn next_input(
        &mut self,
        link: &mut Link,
        signals: &AsyncFd<Signals>,
        truncated: &mut watch::Receiver<Option<Truncation>>,
    ) -> std::io::Result<Input> {
        let ticking = self.pending_flush || self.drained.is_some();
        let dues = [self.activity.due(), self.notified.due(), self.truncation.due()];
        let throttled = dues.into_iter().flatten().min();
        tokio::select! {
            biased;
            Some(news) = self.vm_news.recv() => Ok(Input::Vm(news)),
            guard = signals.readable() => {
                let mut guard = guard?;
                let request = guard.get_inner().next();
                // Several may wait; the next look finds them.
                if request.is_none() {
                    guard.clear_ready();
                }
                Ok(request.map_or(Input::Tick, Input::Stop))
            }
            due = self.deadlines.next() => Ok(Input::Due(due)),
            _halted = finished(&mut self.liveness) => Ok(Input::Halted),
            Some((process, guest)) = finished(&mut self.figures) => {
                Ok(Input::Figures(process, guest))
            }
            Some(words) = finished(&mut self.network) => Ok(Input::NetworkLost(words)),
            () = reached(throttled) => Ok(Input::Throttled),
            () = sleep(TICK), if ticking => Ok(Input::Tick),
            check = next_check(&mut self.checks) => Ok(Input::Checked(check)),
            // While one waits to be told, later ones can wait, too.
            Ok(()) = truncated.changed(), if self.truncation.due().is_none() => {
                let truncation = *truncated.borrow_and_update();
                Ok(truncation.map_or(Input::Tick, Input::Truncated))
            }
            event = link.next() => Ok(Input::Guest(event)),
        }
    }

    /// Whether the box has ended.
    fn handle(&mut self, input: Input, link: &mut Link) -> bool {
        match input {
            Input::Stop(request) => return self.on_request(request, link),
            Input::Guest(event) => self.on_guest(event, link),
            Input::Checked(check) => return self.on_check(&check, link),
            Input::Halted => {
                let message = "the guest halted: its CPUs no longer run";
                return self.fail(failure(ErrorCode::GuestLost, message));
            }
            Input::Figures(process, guest) => self.tell_figures(process, guest),
            Input::Truncated(truncation) => {
                if let Some(truncation) = self.truncation.offer(truncation, Instant::now()) {
                    self.tell_truncation(truncation);
                }
            }
            Input::NetworkLost(words) => self.events.emit(network::lost(&words)),
            Input::Throttled => self.tell_throttled(),
            Input::Due(due) => return self.on_due(due, link),
            Input::Vm(VmNews::Entering) => self.phases.vm_ms = self.since_phases(),
            Input::Vm(VmNews::Exited(code)) => {
                self.facts.libkrun = Some(code);
                return true;
            }
            Input::Vm(VmNews::Refused(report)) => return self.fail(report),
            Input::Tick => self.acknowledge_when_drained(link),
        }
        false
    }

    fn fail(&mut self, report: ErrorReport) -> bool {
        self.facts.failure.get_or_insert(report);
        true
    }

    fn on_due(&mut self, due: Due, link: &mut Link) -> bool {
        match due {
            Due::Boot => return self.fail(self.boot_timeout()),
            Due::Timeout => return self.stop(Stop::Timeout, link),
            Due::Grace => self.kill(link),
            Due::GiveUp => return self.give_up(),
            Due::Metrics => self.gather_figures(),
            Due::Watchdog => {
                self.supervisor.watchdog();
                if let Some(interval) = self.supervisor.watchdog_interval() {
                    self.deadlines.set(Due::Watchdog, interval);
                }
            }
        }
        false
    }

    fn boot_timeout(&self) -> ErrorReport {
        let BootPhases { config_ms, rootfs_ms, .. } = self.phases;
        let waited_ms = self.events.elapsed_ms().saturating_sub(config_ms + rootfs_ms);
        let said = match (self.guest_version.is_empty(), self.started, self.agent.readiness) {
            (true, ..) => "it has not said anything",
            (false, false, _) => "it was still preparing itself",
            (false, true, Readiness::Notify) => "its workload has not sent `READY=1`",
            (false, true, _) => "its agent does not answer",
        };
        let ran_ms = liveness::vcpu_ran().as_millis();
        let message = format!(
            "the guest was not ready {waited_ms} ms after its start (`agent.boot_timeout_ms`)"
        );
        let cause = format!("{said}; its CPUs ran for {ran_ms} ms");
        ErrorReport { causes: vec![cause], ..failure(ErrorCode::BootTimeout, &message) }.retryable()
    }

    /// Begins to watch a guest whose workload was started.
    fn watch_guest(&mut self) {
        let socket = self.agent_socket.clone();
        let probe = match self.agent.health {
            None => Probe::Kernel,
            Some(spec) => {
                // The agent of the guest's own program listens before the workload starts. Asked any
                // earlier it would refuse, and take its time from that start; and a box is not ready
                // before somebody can be told to stop.
                let (checks, last_answer) = Checks::start(&socket, spec);
                self.checks = Some(checks);
                Probe::Agent(Agent::new(&socket), last_answer)
            }
        };
        self.liveness =
            Some(tokio::spawn(async move { liveness::until_halted(probe, &socket).await }));
        if self.agent.readiness == Readiness::Started {
            self.become_ready();
        }
    }

    /// Whether the box has ended by a check.
    fn on_check(&mut self, check: &Check, link: &mut Link) -> bool {
        let Some(checks) = &mut self.checks else { return false };
        let said = checks.take(check);
        let stops = checks.is_unhealthy() && checks.on_unhealthy() == OnUnhealthy::Stop;
        if said.is_first {
            self.phases.agent_ms = self.since_phases();
            self.phases.total_ms = self.events.elapsed_ms();
            self.events.emit(EventKind::AgentReady { phases: self.phases });
        }
        if let Some(changed) = said.changed {
            self.supervisor.status(said.health);
            self.events.emit(changed);
        }
        if said.is_first && self.agent.readiness == Readiness::Health {
            self.become_ready();
        }
        if let Some(state) = said.state {
            self.hear_activity(state);
        }
        stops && self.stop(Stop::Unhealthy, link)
    }

    fn become_ready(&mut self) {
        if self.state != BoxState::Created {
            return;
        }
        self.deadlines.clear(&[Due::Boot]);
        log::enter(Phase::Running);
        self.change_state(BoxState::Ready);
        self.supervisor.ready("the box is ready");
        self.tell_throttled();
        if self.metrics_interval.is_some() {
            self.gather_figures();
        }
    }

    /// Takes in what the box does, as the agent or the workload says it.
    fn hear_activity(&mut self, state: BoxState) {
        if let Some(state) = self.activity.offer(state, Instant::now()) {
            self.do_activity(state);
        }
    }

    /// Before the box is ready, what it does is kept for then.
    fn do_activity(&mut self, state: BoxState) {
        match self.state {
            BoxState::Created => self.activity.keep(state),
            now if now != state && self.facts.report.is_none() => self.change_state(state),
            _ => {}
        }
    }

    fn tell_throttled(&mut self) {
        let now = Instant::now();
        if let Some(state) = self.activity.take(now) {
            self.do_activity(state);
        }
        if let Some(notified) = self.notified.take(now) {
            self.tell_notified(notified);
        }
        if let Some(truncation) = self.truncation.take(now) {
            self.tell_truncation(truncation);
        }
    }

    /// Tells what waits, whether its time has come or not: the end is next.
    fn tell_held_back(&mut self) {
        if let Some(state) = self.activity.take_now() {
            self.do_activity(state);
        }
        if let Some(notified) = self.notified.take_now() {
            self.tell_notified(notified);
        }
        let last = *self.console.truncation().borrow();
        if let Some(truncation) = last.filter(|last| Some(*last) != self.told_truncation) {
            self.tell_truncation(truncation);
        }
    }

    fn tell_truncation(&mut self, truncation: Truncation) {
        self.told_truncation = Some(truncation);
        let Truncation { discarded_bytes, cause } = truncation;
        self.events.emit(EventKind::ConsoleTruncated { discarded_bytes, cause });
    }

    fn change_state(&mut self, to: BoxState) {
        let from = std::mem::replace(&mut self.state, to);
        self.events.emit(EventKind::StateChanged { from, to });
    }

    /// Reads the figures in the background: the kernel takes its time for a large guest, the agent for
    /// a busy one.
    fn gather_figures(&mut self) {
        let agent = self.checks.as_ref().map(Checks::agent);
        self.figures.get_or_insert_with(|| {
            tokio::spawn(async move {
                let guest = async {
                    match &agent {
                        Some(agent) => agent.metrics(METRICS_TIMEOUT).await,
                        None => None,
                    }
                };
                let (process, guest) =
                    tokio::join!(tokio::task::spawn_blocking(usage::read), guest);
                // A thread that cannot be had costs these figures.
                (process.unwrap_or_default(), guest)
            })
        });
    }

    fn tell_figures(&mut self, process: ProcessMetrics, guest: Option<GuestMetrics>) {
        self.events.emit(EventKind::Metrics(Box::new(Metrics {
            uptime_ms: self.events.elapsed_ms(),
            boot: self.phases,
            process,
            guest,
            console: self.console.metrics(),
            events: self.events.metrics(),
            health: self.checks.as_mut().map(Checks::metrics),
        })));
        if let Some(interval) = self.metrics_interval {
            self.deadlines.set(Due::Metrics, interval);
        }
    }

    /// Time that no phase has yet.
    fn since_phases(&self) -> u64 {
        let BootPhases { config_ms, rootfs_ms, vm_ms, kernel_ms, .. } = self.phases;
        self.events.elapsed_ms().saturating_sub(config_ms + rootfs_ms + vm_ms + kernel_ms)
    }
}

/// Waits for a task to end, and forgets it; for ever if there is none. Nothing if it was cancelled.
async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> Option<T> {
    match task {
        None => std::future::pending().await,
        Some(handle) => {
            // The tasks neither panic (that aborts) nor are cancelled.
            let done = handle.await.ok();
            *task = None;
            done
        }
    }
}

async fn next_check(checks: &mut Option<Checks>) -> Check {
    match checks {
        None => std::future::pending().await,
        Some(checks) => checks.next().await,
    }
}

async fn reached(at: Option<Instant>) {
    match at {
        None => std::future::pending().await,
        Some(at) => sleep_until(at).await,
    }
}
