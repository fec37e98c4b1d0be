//! The one loop that watches a running VM and decides.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use a3s_box_core::event::{BootPhases, EventKind, StopCause};
use a3s_box_core::{BoxState, ErrorCode, ErrorReport};
use a3s_box_proto::PROTOCOL_VERSION;
use a3s_box_proto::control::{Acknowledged, Drained, Exited, Kill, Started, exited};
use a3s_box_proto::control::{Stop as StopMessage, guest_message, shim_message};
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::deadlines::{Deadlines, Due};
use super::health::Health;
use super::link::{Link, LinkEvent};
use super::liveness::{self, Probe};
use super::verdict::{Facts, Report, Stop, failure, signal_number};
use super::{Setup, VmNews};
use crate::console::Relay;
use crate::events::EventWriter;
use crate::process::Signals;
use crate::record::ExitFile;
use crate::state_dir;

/// From the workload's end (or the kill) to the end of the VM: the guest kills what is left, drains
/// its output (5 s at most), waits for our word (5 s at most), syncs and reboots.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// From the guest's last word, or the loss of its connection, to the end of the VM.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the console may take for what has left the guest.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often something is looked at that cannot wake us: a slow reader, the console.
const TICK: Duration = Duration::from_millis(5);

/// Everything that can happen.
enum Input {
    Signal(Signal),
    Guest(LinkEvent),
    Healthy,
    Halted,
    Due(Due),
    Vm(VmNews),
    Tick,
}

/// Watches one VM.
#[derive(Debug)]
pub(super) struct Monitor {
    events: Arc<EventWriter>,
    listener: Option<UnixListener>,
    signals: Option<Signals>,
    vm_news: mpsc::UnboundedReceiver<VmNews>,
    console: Relay,
    agent_socket: PathBuf,
    serve_health: bool,
    stop_signal: Signal,
    stop_grace: Duration,
    transient: Vec<PathBuf>,
    exit_file: ExitFile,
    deadlines: Deadlines,
    health: Option<JoinHandle<()>>,
    liveness: Option<JoinHandle<()>>,
    state: BoxState,
    facts: Facts,
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
    ) -> Self {
        let mut deadlines = Deadlines::default();
        deadlines.set(Due::Boot, setup.spec.agent.boot_timeout);
        if let Some(timeout) = setup.spec.timeout {
            deadlines.set(Due::Timeout, timeout.saturating_sub(setup.events.elapsed()));
        }
        let rootfs_ms = setup.events.elapsed_ms().saturating_sub(setup.configured_ms);
        Self {
            listener: Some(listener),
            signals: Some(setup.signals),
            vm_news,
            console: setup.console,
            agent_socket: setup.state.agent_socket(),
            serve_health: setup.spec.agent.health.is_some(),
            stop_signal: setup.guest.stop_signal,
            stop_grace: setup.spec.stop_grace,
            transient: setup.state.transient(),
            exit_file: setup.state.exit_file(),
            deadlines,
            health: None,
            liveness: None,
            state: BoxState::Created,
            facts: Facts::default(),
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
        loop {
            let input = self.next_input(&mut link, &signals).await?;
            if self.handle(input, &mut link) {
                return Ok(());
            }
            self.pending_flush = self.events.flush();
        }
    }

    async fn next_input(
        &mut self,
        link: &mut Link,
        signals: &AsyncFd<Signals>,
    ) -> std::io::Result<Input> {
        let ticking = self.pending_flush || self.drained.is_some();
        tokio::select! {
            biased;
            Some(news) = self.vm_news.recv() => Ok(Input::Vm(news)),
            event = link.next() => Ok(Input::Guest(event)),
            guard = signals.readable() => {
                let mut guard = guard?;
                let signal = guard.get_inner().next();
                guard.clear_ready();
                Ok(signal.map_or(Input::Tick, Input::Signal))
            }
            () = finished(&mut self.health) => Ok(Input::Healthy),
            () = finished(&mut self.liveness) => Ok(Input::Halted),
            due = self.deadlines.next() => Ok(Input::Due(due)),
            () = sleep(TICK), if ticking => Ok(Input::Tick),
        }
    }

    /// Whether the box has ended.
    fn handle(&mut self, input: Input, link: &mut Link) -> bool {
        match input {
            Input::Signal(signal) => return self.on_signal(signal, link),
            Input::Guest(event) => self.on_guest(event, link),
            Input::Healthy => self.on_healthy(),
            Input::Halted => {
                let message = "the guest halted: its CPUs no longer run";
                return self.fail(failure(ErrorCode::GuestLost, message));
            }
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

    fn on_signal(&mut self, signal: Signal, link: &mut Link) -> bool {
        if self.facts.stop.is_some() {
            self.kill(link);
            return false;
        }
        self.stop(Stop::Signal(signal), StopCause::Signal, link)
    }

    /// Asks the guest to end. Whether that is the end already, because there is nobody to ask.
    fn stop(&mut self, stop: Stop, cause: StopCause, link: &mut Link) -> bool {
        if self.facts.report.is_some() {
            return false;
        }
        self.facts.stop = Some(stop);
        self.events.emit(EventKind::StopRequested {
            cause,
            signal: self.stop_signal.as_str().to_owned(),
            grace_ms: u64::try_from(self.stop_grace.as_millis()).unwrap_or(u64::MAX),
        });
        if !self.started {
            return true;
        }
        // From here on the grace period is the only clock.
        self.deadlines = Deadlines::default();
        let signal = u32::from(signal_number(self.stop_signal));
        link.send(shim_message::Message::Stop(StopMessage { signal }));
        self.deadlines.set(Due::Grace, self.stop_grace);
        false
    }

    fn kill(&mut self, link: &mut Link) {
        if self.facts.report.is_some() {
            return;
        }
        self.deadlines.clear(Due::Grace);
        self.events.emit(EventKind::StopKilled {});
        link.send(shim_message::Message::Kill(Kill {}));
        self.deadlines.set(Due::GiveUp, LAST_WORD_TIMEOUT);
    }

    fn on_due(&mut self, due: Due, link: &mut Link) -> bool {
        match due {
            Due::Boot => self.fail(self.boot_timeout()),
            Due::Timeout => self.stop(Stop::Timeout, StopCause::Timeout, link),
            Due::Grace => {
                self.kill(link);
                false
            }
            Due::GiveUp => {
                let message = "the virtual machine did not end by itself and was ended";
                self.fail(failure(ErrorCode::ShutdownTimeout, message))
            }
        }
    }

    fn boot_timeout(&self) -> ErrorReport {
        let BootPhases { config_ms, rootfs_ms, .. } = self.phases;
        let waited_ms = self.events.elapsed_ms().saturating_sub(config_ms + rootfs_ms);
        let said = match (self.guest_version.is_empty(), self.started) {
            (true, _) => "it has not said anything",
            (false, false) => "it was still preparing itself",
            (false, true) => "its agent does not answer",
        };
        let ran_ms = liveness::vcpu_ran().as_millis();
        let message = format!(
            "the guest was not ready {waited_ms} ms after its start (`agent.boot_timeout_ms`)"
        );
        let cause = format!("{said}; its CPUs ran for {ran_ms} ms");
        ErrorReport { causes: vec![cause], ..failure(ErrorCode::BootTimeout, &message) }.retryable()
    }

    fn on_guest(&mut self, event: LinkEvent, link: &mut Link) {
        match event {
            LinkEvent::Said(message) => self.on_message(message, link),
            LinkEvent::Broken(error) => {
                self.facts
                    .failure
                    .get_or_insert(ErrorReport::new(ErrorCode::GuestProtocol, &error));
                self.deadlines.set(Due::GiveUp, LAST_WORD_TIMEOUT);
            }
            // PID 1 is gone: the kernel panics and resets the machine, or the machine is halting.
            LinkEvent::Closed => self.deadlines.set(Due::GiveUp, LAST_WORD_TIMEOUT),
        }
    }

    /// Messages out of order are ignored: a guest that lies harms itself only.
    fn on_message(&mut self, message: guest_message::Message, link: &mut Link) {
        match message {
            guest_message::Message::Hello(hello) => {
                if hello.protocol_version != PROTOCOL_VERSION {
                    let found = hello.protocol_version;
                    let message = format!(
                        "guest speaks control protocol {found}, expected {PROTOCOL_VERSION}"
                    );
                    self.facts.failure = Some(failure(ErrorCode::GuestProtocol, &message));
                    self.deadlines.set(Due::GiveUp, Duration::ZERO);
                }
                self.guest_version = printable(&hello.guest_version);
                self.phases.kernel_ms = self.since_phases();
            }
            guest_message::Message::Started(started) => self.on_started(&started),
            guest_message::Message::StartFailed(failed) if self.facts.report.is_none() => {
                let (reason, message) = (failed.reason(), printable(&failed.message));
                self.report(Report::NotStarted { reason, message });
                // Nothing ran, so there is no output to wait for.
                self.drained = Some(Drained::default());
                self.acknowledge_when_drained(link);
            }
            guest_message::Message::Exited(Exited { status: Some(status) })
                if self.facts.report.is_none() =>
            {
                let byte = |number| u8::try_from(number).unwrap_or(u8::MAX);
                self.report(match status {
                    exited::Status::ExitCode(code) => Report::Exited(byte(code)),
                    exited::Status::Signal(signal) => Report::Signaled(byte(signal)),
                });
            }
            guest_message::Message::Drained(drained) if self.facts.report.is_some() => {
                self.drained = Some(drained);
                self.acknowledge_when_drained(link);
            }
            guest_message::Message::StartFailed(_)
            | guest_message::Message::Exited(_)
            | guest_message::Message::Notified(_)
            | guest_message::Message::Drained(_) => {}
        }
    }

    fn on_started(&mut self, started: &Started) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        self.events.emit(EventKind::GuestStarted {
            guest_version: self.guest_version.clone(),
            workload_pid: Some(started.pid).filter(|pid| *pid != 0),
        });
        let socket = self.agent_socket.clone();
        let probe = if self.serve_health {
            // The agent listens before the workload starts. Asked any earlier it would refuse, and take
            // its time from that start; and a box is not ready before somebody can be told to stop.
            let health = Health::new(&socket);
            self.health = Some(tokio::spawn(health.clone().until_serving()));
            Probe::Agent(health)
        } else {
            self.deadlines.clear(Due::Boot);
            self.change_state(BoxState::Ready);
            Probe::Kernel
        };
        self.liveness =
            Some(tokio::spawn(async move { liveness::until_halted(probe, &socket).await }));
    }

    fn report(&mut self, report: Report) {
        let (exit_code, signal) = match &report {
            Report::Exited(code) => (Some(*code), None),
            Report::Signaled(signal) => (None, Some(*signal)),
            Report::NotStarted { .. } => (None, None),
        };
        if exit_code.is_some() || signal.is_some() {
            self.events.emit(EventKind::GuestExited { exit_code, signal });
        }
        self.facts.report = Some(report);
        self.health = None;
        self.liveness = None;
        self.deadlines = Deadlines::default();
        self.deadlines.set(Due::GiveUp, SHUTDOWN_TIMEOUT);
    }

    fn on_healthy(&mut self) {
        self.deadlines.clear(Due::Boot);
        self.phases.agent_ms = self.since_phases();
        self.phases.total_ms = self.events.elapsed_ms();
        self.events.emit(EventKind::AgentReady { phases: self.phases });
        self.change_state(BoxState::Ready);
    }

    fn change_state(&mut self, to: BoxState) {
        let from = std::mem::replace(&mut self.state, to);
        self.events.emit(EventKind::StateChanged { from, to });
    }

    /// Time that no phase has yet.
    fn since_phases(&self) -> u64 {
        let BootPhases { config_ms, rootfs_ms, vm_ms, kernel_ms, .. } = self.phases;
        self.events.elapsed_ms().saturating_sub(config_ms + rootfs_ms + vm_ms + kernel_ms)
    }

    /// The guest may reboot once all its output is here.
    fn acknowledge_when_drained(&mut self, link: &mut Link) {
        let Some(Drained { stdout_bytes, stderr_bytes }) = self.drained else { return };
        if self.console.has(stdout_bytes, stderr_bytes) {
            self.drained = None;
            link.send(shim_message::Message::Acknowledged(Acknowledged {}));
            self.deadlines.set(Due::GiveUp, LAST_WORD_TIMEOUT);
        }
    }

    /// Writes the last events and ends the process. Nothing else of it runs after that.
    async fn end(mut self) {
        let patience = tokio::time::Instant::now() + CONSOLE_TIMEOUT;
        while !self.console.finish() && tokio::time::Instant::now() < patience {
            sleep(TICK).await;
        }
        let (ending, error) = self.facts.verdict();
        state_dir::remove_transient(&self.transient);
        self.exit_file.publish(&ending, self.events.elapsed(), None, error.as_ref());
        if let Some(error) = error {
            self.events.emit(EventKind::Error(error));
        }
        self.change_state(BoxState::Stopped);
        self.events.emit(ending.into_event(self.events.elapsed()));
        self.events.finish();
        self.exit_file.settle();
        a3s_box_krun::exit::now(ending.exit_code)
    }
}

/// Waits for a task to end, and forgets it; for ever if there is none.
async fn finished(task: &mut Option<JoinHandle<()>>) {
    match task {
        None => std::future::pending().await,
        Some(handle) => {
            // The tasks neither panic (that aborts) nor are cancelled.
            let _done = handle.await;
            *task = None;
        }
    }
}

/// Text of the guest, bounded and without control characters.
fn printable(text: &str) -> String {
    text.chars().take(1024).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
