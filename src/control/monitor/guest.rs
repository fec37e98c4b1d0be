//! What PID 1 of the guest says. It is hostile: a guest that lies harms itself only.

use a3s_box_core::config::Readiness;
use a3s_box_core::event::EventKind;
use a3s_box_core::{BoxState, ErrorCode, ErrorReport};
use a3s_box_proto::PROTOCOL_VERSION;
use a3s_box_proto::control::guest_message::Message;
use a3s_box_proto::control::{
    Acknowledged, BoxState as SaidState, Drained, Exited, Hello, Notified, Started, exited,
    shim_message,
};
use tokio::time::{Duration, Instant, timeout};

use super::super::deadlines::Due;
use super::super::link::{Link, LinkEvent};
use super::super::verdict::{Report, failure};
use super::Monitor;
use super::ending::{LAST_WORD_TIMEOUT, SHUTDOWN_TIMEOUT};
use crate::report::log::{self, Phase};
use crate::report::printable::{MESSAGE_CHARS, printable};

/// Longest status of a workload that is told.
const MAX_STATUS_CHARS: usize = 256;

/// Messages of a guest that is gone that are still heard: an honest one has two left at most.
const MAX_LAST_WORDS: usize = 16;

/// How long the last of them may take: they are in the socket already.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(5);

impl Monitor {
    pub(super) fn on_guest(&mut self, event: LinkEvent, link: &mut Link) {
        match event {
            LinkEvent::Said(message) => self.on_message(message, link),
            LinkEvent::Broken(error) => {
                let report = ErrorReport::new(ErrorCode::GuestProtocol, &error);
                self.facts.failure.get_or_insert(report);
                self.deadlines.set(Due::GiveUp, LAST_WORD_TIMEOUT);
            }
            // PID 1 is gone: the kernel panics and resets the machine, or the machine is halting.
            LinkEvent::Closed => self.deadlines.set(Due::GiveUp, LAST_WORD_TIMEOUT),
        }
    }

    /// Takes in what the guest had said before its machine ended: its report counts whether it
    /// was heard before or after that.
    pub(super) async fn hear_last_words(&mut self, link: &mut Link) {
        for _ in 0..MAX_LAST_WORDS {
            match timeout(LAST_WORDS_TIMEOUT, link.next()).await {
                Ok(LinkEvent::Said(message)) => self.on_message(message, link),
                Ok(LinkEvent::Broken(_) | LinkEvent::Closed) | Err(_) => return,
            }
        }
    }

    /// Messages out of order are ignored.
    fn on_message(&mut self, message: Message, link: &mut Link) {
        match message {
            Message::Hello(hello) => self.on_hello(&hello),
            Message::Started(started) => self.on_started(&started),
            Message::Notified(notified) => self.on_notified(notified),
            Message::StartFailed(failed) if self.facts.report.is_none() => {
                let (reason, message) =
                    (failed.reason(), printable(&failed.message, MESSAGE_CHARS));
                self.report(Report::NotStarted { reason, message });
                // Nothing ran, so there is no output to wait for.
                self.drained = Some(Drained::default());
                self.acknowledge_when_drained(link);
            }
            Message::Exited(Exited { status: Some(status) }) if self.facts.report.is_none() => {
                let byte = |number| u8::try_from(number).unwrap_or(u8::MAX);
                self.report(match status {
                    exited::Status::ExitCode(code) => Report::Exited(byte(code)),
                    exited::Status::Signal(signal) => Report::Signaled(byte(signal)),
                });
            }
            Message::Drained(drained) if self.facts.report.is_some() => {
                self.drained = Some(drained);
                self.acknowledge_when_drained(link);
            }
            Message::StartFailed(_) | Message::Exited(_) | Message::Drained(_) => {}
        }
    }

    fn on_hello(&mut self, hello: &Hello) {
        if hello.protocol_version != PROTOCOL_VERSION {
            let found = hello.protocol_version;
            let message =
                format!("guest speaks control protocol {found}, expected {PROTOCOL_VERSION}");
            self.facts.failure = Some(failure(ErrorCode::GuestProtocol, &message));
            self.deadlines.set(Due::GiveUp, Duration::ZERO);
        }
        self.guest_version = printable(&hello.guest_version, MESSAGE_CHARS);
        log::enter(Phase::Agent);
        if self.phases.kernel_ms == 0 {
            self.phases.kernel_ms = self.since_phases();
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
        self.watch_guest();
    }

    fn on_notified(&mut self, mut notified: Notified) {
        if !self.started || self.facts.report.is_some() {
            return;
        }
        let state = match notified.state() {
            SaidState::Unspecified => None,
            SaidState::Ready => Some(BoxState::Ready),
            SaidState::Busy => Some(BoxState::Busy),
            SaidState::Compacting => Some(BoxState::Compacting),
        };
        notified.status = notified.status.map(|status| printable(&status, MAX_STATUS_CHARS));
        let before = std::mem::replace(&mut self.last_notified, notified.clone());
        let has_new_state = notified.state != before.state;
        let has_changed = notified != Notified { state: notified.state, ..before };
        if notified.ready && self.agent.readiness == Readiness::Notify {
            self.become_ready();
        }
        if has_changed && let Some(notified) = self.notified.offer(notified, Instant::now()) {
            self.tell_notified(notified);
        }
        if has_new_state && let Some(state) = state {
            self.hear_activity(state);
        }
    }

    pub(super) fn tell_notified(&mut self, notified: Notified) {
        let Notified { ready, stopping, status, .. } = notified;
        self.events.emit(EventKind::WorkloadNotified { ready, stopping, status });
    }

    fn report(&mut self, report: Report) {
        let (exit_code, signal) = match &report {
            Report::Exited(code) => (Some(*code), None),
            Report::Signaled(signal) => (None, Some(*signal)),
            Report::NotStarted { .. } => (None, None),
        };
        if exit_code.is_some() || signal.is_some() {
            self.tell_held_back();
            self.events.emit(EventKind::GuestExited { exit_code, signal });
        }
        if let Some(stopping) = &mut self.stopping {
            stopping.exited(self.events.elapsed_ms());
        }
        self.facts.report = Some(report);
        self.checks = None;
        self.liveness = None;
        self.deadlines.clear(&[Due::Boot, Due::Timeout, Due::Grace, Due::Metrics]);
        self.deadlines.set(Due::GiveUp, SHUTDOWN_TIMEOUT);
    }

    /// The guest may reboot once all its output is here.
    pub(super) fn acknowledge_when_drained(&mut self, link: &mut Link) {
        let Some(Drained { stdout_bytes, stderr_bytes }) = self.drained else { return };
        if self.console.has(stdout_bytes, stderr_bytes) {
            self.drained = None;
            link.send(shim_message::Message::Acknowledged(Acknowledged {}));
            self.deadlines.set(Due::GiveUp, LAST_WORD_TIMEOUT);
        }
    }
}
