//! The life of a box, from the boot of its guest to the end of its workload.
//!
//! This part passes each message, check and deadline to the parts that own the matter, and joins
//! their decisions in one list. What the guest sends is hostile: a guest that lies harms only
//! itself.

use std::time::Duration;

use a3s_box_core::config::Readiness as Condition;
use a3s_box_core::{BoxState, ErrorCode, ErrorReport};
use a3s_box_proto::PROTOCOL_VERSION;
use a3s_box_proto::control::guest_message::Message;
use a3s_box_proto::control::{Hello, Notified};
use tokio::time::Instant;

use super::deadlines::Due;
use super::decision::Decision;
use super::health::Check;
use super::link::LinkEvent;
use super::liveness;
use super::readiness::Readiness;
use super::setup::VmNews;
use super::stopping::{LAST_WORD_TIMEOUT, Stopping};
use super::throttled::Throttled;
use super::verdict::{Report, StopTrigger, failure};
use super::watch::Watch;
use crate::host::process::StopRequest;
use crate::report::log::Phase;
use crate::report::printable::{MESSAGE_CHARS, printable};

/// The parts that follow one box through its life.
#[derive(Debug)]
pub(super) struct Lifecycle {
    pub(super) readiness: Readiness,
    pub(super) throttled: Throttled,
    pub(super) watch: Watch,
    pub(super) stopping: Stopping,
}

impl Lifecycle {
    /// Handles a stop request.
    pub(super) fn on_request(&mut self, request: StopRequest, now_ms: u64) -> Vec<Decision> {
        self.stopping.requested(request, self.readiness.has_started(), now_ms)
    }

    /// Handles news of the main thread.
    pub(super) fn on_vm_news(&mut self, news: VmNews, now_ms: u64) -> Vec<Decision> {
        match news {
            VmNews::Exited(code) => self.stopping.vm_exited(code),
            VmNews::Refused(report) => self.stopping.failed(report),
            VmNews::Entering => {
                self.readiness.vm_entered(now_ms);
                Vec::new()
            }
        }
    }

    /// Handles a guest whose CPUs no longer run.
    pub(super) fn on_halted(&mut self) -> Vec<Decision> {
        let message = "the guest halted: its CPUs no longer run";
        self.stopping.failed(failure(ErrorCode::GuestLost, message))
    }

    /// Handles a deadline of the box.
    pub(super) fn on_due(&mut self, due: Due, now_ms: u64) -> Vec<Decision> {
        match due {
            Due::Boot => {
                let error = self.readiness.timeout(now_ms, liveness::vcpu_ran());
                self.stopping.failed(error)
            }
            Due::Timeout => self.trigger(StopTrigger::Timeout, now_ms),
            Due::Grace => self.stopping.kill(now_ms),
            Due::GiveUp => self.stopping.give_up(),
            Due::Metrics => vec![Decision::GatherMetrics],
            Due::Watchdog => vec![Decision::ResetWatchdog],
        }
    }

    /// Handles an event of the control connection.
    pub(super) fn on_guest(&mut self, event: LinkEvent, now_ms: u64) -> Vec<Decision> {
        match event {
            LinkEvent::Received(message) => return self.on_message(message, now_ms),
            LinkEvent::Broken(error) => {
                self.stopping.note(ErrorReport::new(ErrorCode::GuestProtocol, &error));
            }
            // PID 1 has ended. Its kernel panics and resets the machine, or the machine is halting.
            LinkEvent::Closed => {}
        }
        // No further message can come, so the VM has a short time to end by itself.
        vec![Decision::Arm(Due::GiveUp, LAST_WORD_TIMEOUT)]
    }

    /// Handles a message of the guest's PID 1. Messages out of order are ignored.
    pub(super) fn on_message(&mut self, message: Message, now_ms: u64) -> Vec<Decision> {
        match message {
            Message::Hello(hello) => self.on_hello(&hello, now_ms),
            Message::Started(started) => {
                let Some(event) = self.readiness.workload_started(&started) else {
                    return Vec::new();
                };
                self.watch.start();
                let mut decisions = vec![Decision::Emit(event)];
                decisions.extend(self.reach(Condition::Started));
                decisions
            }
            Message::Notified(notified) => self.on_notified(notified),
            Message::StartFailed(_) | Message::Exited(_) => {
                let report = Report::from_guest(message);
                report.map_or_else(Vec::new, |report| self.stopping.reported(report, now_ms))
            }
            Message::Drained(drained) if self.stopping.has_report() => {
                vec![Decision::AwaitOutput(drained)]
            }
            // An acknowledgement before the report would let PID 1 reboot without one.
            Message::Drained(_) => Vec::new(),
        }
    }

    fn on_hello(&mut self, hello: &Hello, now_ms: u64) -> Vec<Decision> {
        let version = printable(&hello.guest_version, MESSAGE_CHARS);
        self.readiness.guest_connected(version, now_ms);
        let mut decisions = vec![Decision::Enter(Phase::Agent)];
        let found = hello.protocol_version;
        if found != PROTOCOL_VERSION {
            let message =
                format!("guest speaks control protocol {found}, expected {PROTOCOL_VERSION}");
            self.stopping.replace_error(failure(ErrorCode::GuestProtocol, &message));
            // A guest of another protocol may not understand a stop, so its VM is ended at once.
            decisions.push(Decision::Arm(Due::GiveUp, Duration::ZERO));
        }
        decisions
    }

    fn on_notified(&mut self, notified: Notified) -> Vec<Decision> {
        // Notifications come from the workload. Without a running one they are out of order.
        if !self.readiness.has_started() || self.stopping.has_report() {
            return Vec::new();
        }
        let news = self.throttled.reported.read(notified);
        let mut decisions = Vec::new();
        if news.is_ready {
            decisions.extend(self.reach(Condition::Notify));
        }
        if let Some(changed) = news.changed {
            let event = self.throttled.reported.offer(changed, Instant::now());
            decisions.extend(event.map(Decision::Emit));
        }
        decisions.extend(self.on_state(news.state));
        decisions
    }

    /// Handles a health check that has ended.
    pub(super) fn on_check(&mut self, check: &Check, now_ms: u64) -> Vec<Decision> {
        let Some((outcome, must_stop)) = self.watch.take(check) else { return Vec::new() };
        // The order of the events is part of the contract: `agent.ready`, `health.changed`, then
        // the state that they cause.
        let mut decisions = Vec::new();
        if outcome.is_first {
            decisions.push(Decision::Emit(self.readiness.agent_answered(now_ms)));
        }
        if let Some(changed) = outcome.changed {
            decisions.push(Decision::ReportStatus(outcome.health));
            decisions.push(Decision::Emit(changed));
        }
        if outcome.is_first {
            decisions.extend(self.reach(Condition::Health));
        }
        decisions.extend(self.on_state(outcome.state));
        if must_stop {
            decisions.extend(self.trigger(StopTrigger::Unhealthy, now_ms));
        }
        decisions
    }

    fn trigger(&mut self, trigger: StopTrigger, now_ms: u64) -> Vec<Decision> {
        self.stopping.trigger(trigger, self.readiness.has_started(), now_ms)
    }

    /// Makes the box ready, if `milestone` does and it is not.
    fn reach(&mut self, milestone: Condition) -> Vec<Decision> {
        if !self.readiness.is_met_by(milestone) {
            return Vec::new();
        }
        let Some(ready) = self.throttled.activity.become_ready() else { return Vec::new() };
        let mut decisions = vec![
            Decision::Disarm(&[Due::Boot]),
            Decision::Enter(Phase::Running),
            Decision::Emit(ready),
            Decision::ReportReady,
        ];
        // A state that was reported before the box was ready has been held back until now.
        decisions.extend(self.on_throttled());
        decisions.push(Decision::GatherMetrics);
        decisions
    }

    /// Handles a state that the agent or the workload reports.
    fn on_state(&mut self, state: Option<BoxState>) -> Option<Decision> {
        let has_ended = self.stopping.has_report();
        let event = self.throttled.activity.reported(state?, has_ended, Instant::now());
        event.map(Decision::Emit)
    }

    /// Emits the events that were held back and are due.
    pub(super) fn on_throttled(&mut self) -> Vec<Decision> {
        let events = self.throttled.take_due(self.stopping.has_report(), Instant::now());
        events.into_iter().map(Decision::Emit).collect()
    }
}

#[cfg(test)]
mod tests {
    use a3s_box_core::event::EventKind;
    use a3s_box_proto::control::{BoxState as ReportedState, Exited, Started, exited};
    use nix::sys::signal::Signal;

    use super::*;

    fn lifecycle(condition: Condition) -> Lifecycle {
        Lifecycle {
            readiness: Readiness::new(condition, 1, 2),
            throttled: Throttled::new(),
            watch: Watch::new("/nonexistent".into(), None),
            stopping: Stopping::new(Signal::SIGTERM.into(), Duration::from_secs(10)),
        }
    }

    fn hello() -> Message {
        let protocol_version = PROTOCOL_VERSION;
        Message::Hello(Hello { protocol_version, guest_version: "1".into() })
    }

    fn ready() -> Decision {
        let (from, to) = (BoxState::Created, BoxState::Ready);
        Decision::Emit(EventKind::StateChanged { from, to })
    }

    #[tokio::test(flavor = "current_thread")]
    async fn box_is_ready_when_its_workload_says_so_and_then_shows_its_state() {
        let mut lifecycle = lifecycle(Condition::Notify);
        assert_eq!(lifecycle.on_message(hello(), 10), [Decision::Enter(Phase::Agent)]);
        let early = Notified { ready: true, ..Notified::default() };
        assert_eq!(lifecycle.on_message(Message::Notified(early), 11), [], "it has not started");
        let started = lifecycle.on_message(Message::Started(Started { pid: 7 }), 12);
        assert_eq!(started.len(), 1, "only the start is reported: {started:?}");
        let state = ReportedState::Busy.into();
        let busy = Notified { state, ..Notified::default() };
        assert_eq!(lifecycle.on_message(Message::Notified(busy.clone()), 13), []);
        let decisions =
            lifecycle.on_message(Message::Notified(Notified { ready: true, ..busy }), 14);
        assert!(decisions.contains(&ready()), "{decisions:?}");
        assert!(decisions.contains(&Decision::ReportReady), "{decisions:?}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn guest_of_another_protocol_is_given_up_at_once() {
        let mut lifecycle = lifecycle(Condition::Started);
        let hello = Hello { protocol_version: 99, guest_version: String::new() };
        let decisions = lifecycle.on_message(Message::Hello(hello), 1);
        assert_eq!(decisions.last(), Some(&Decision::Arm(Due::GiveUp, Duration::ZERO)));
        let (_, error, _) = lifecycle.stopping.verdict();
        assert_eq!(error.unwrap().code, ErrorCode::GuestProtocol);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn nothing_of_the_workload_counts_after_its_end() {
        let mut lifecycle = lifecycle(Condition::Started);
        let started = lifecycle.on_message(Message::Started(Started { pid: 7 }), 1);
        assert!(started.contains(&ready()), "{started:?}");
        let status = Some(exited::Status::ExitCode(3));
        let decisions = lifecycle.on_message(Message::Exited(Exited { status }), 2);
        assert!(decisions.contains(&Decision::EndWatch), "{decisions:?}");
        let notified = Notified { stopping: true, ..Notified::default() };
        assert_eq!(lifecycle.on_message(Message::Notified(notified), 3), []);
        assert_eq!(lifecycle.on_due(Due::Timeout, 4), []);
    }

    #[test]
    fn closed_connection_leaves_the_guest_a_bounded_time() {
        let decisions = lifecycle(Condition::Started).on_guest(LinkEvent::Closed, 1);
        assert_eq!(decisions, [Decision::Arm(Due::GiveUp, LAST_WORD_TIMEOUT)]);
    }
}
