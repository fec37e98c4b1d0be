//! The loop of the control thread.
//!
//! The loop waits for an input, passes it to the part that owns the matter, and carries out the
//! decisions of that part. It decides nothing itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use a3s_box_core::event::{EventKind, GuestMetrics, Metrics as Figures, ProcessMetrics};
use a3s_box_core::{ErrorCode, ErrorReport};
use a3s_box_proto::control::{Acknowledged, shim_message};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use super::deadlines::{Deadlines, Due};
use super::decision::Decision;
use super::inputs::{Input, Inputs, Sources, TICK, Wakeups};
use super::lifecycle::Lifecycle;
use super::link::{Link, LinkEvent};
use super::metrics::Metrics;
use super::process_end::ProcessEnd;
use super::stopping::LAST_WORD_TIMEOUT;
use crate::console::Relay;
use crate::network;
use crate::report::events::EventWriter;
use crate::report::log::{self, Phase};
use crate::report::service_manager::ServiceManager;

/// Messages of the guest in a row after which the loop yields to the runtime: as many as the
/// guest's PID 1 reads from the workload in a row.
const GUEST_TURN: u32 = 64;

/// Messages that are read after the VM has ended. An honest guest has sent two at most.
const MAX_LAST_WORDS: usize = 16;

/// How long one of these messages may take to arrive. They are in the socket already.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(5);

/// How long the console may take to write the output that has left the guest.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Watches one VM.
#[derive(Debug)]
pub(super) struct Monitor {
    pub(super) events: Arc<EventWriter>,
    pub(super) service_manager: ServiceManager,
    pub(super) console: Relay,
    pub(super) deadlines: Deadlines,
    pub(super) lifecycle: Lifecycle,
    pub(super) metrics: Metrics,
    pub(super) end: ProcessEnd,
}

impl Monitor {
    /// Runs until the end of the box, then ends the process.
    pub(super) async fn run(mut self, sources: Sources) {
        if let Err(error) = self.watch(sources).await {
            self.lifecycle.stopping.note(ErrorReport::new(ErrorCode::Internal, &error));
        }
        // The last events must come after the output that they are about.
        let give_up_at = Instant::now() + CONSOLE_TIMEOUT;
        while !self.console.finish() && Instant::now() < give_up_at {
            sleep(TICK).await;
        }
        log::enter(Phase::Stopping);
        self.service_manager.stopping();
        self.emit_held_back(self.lifecycle.stopping.has_report());
        let stopped = self.lifecycle.throttled.activity.stop();
        self.end.run(self.lifecycle.stopping.verdict(), stopped, &self.events)
    }

    async fn watch(&mut self, sources: Sources) -> io::Result<()> {
        let mut inputs = Inputs::new(sources)?;
        let (mut guest_messages, mut has_waiting_events) = (0, false);
        loop {
            let input = inputs.next(self.wakeups(has_waiting_events)).await?;
            guest_messages = if matches!(input, Input::Guest(_)) { guest_messages + 1 } else { 0 };
            if guest_messages >= GUEST_TURN {
                // The runtime polls signals and timers only while this task waits, and a task that
                // finds hundreds of messages in its socket does not wait.
                guest_messages = 0;
                yield_now().await;
            }
            let decisions = self.handle(input, &mut inputs.link);
            if self.carry_out(decisions, &mut inputs.link) {
                self.read_last_words(&mut inputs.link).await;
                return Ok(());
            }
            has_waiting_events = self.events.flush();
        }
    }

    fn wakeups(&mut self, has_waiting_events: bool) -> Wakeups<'_> {
        let throttled = &self.lifecycle.throttled;
        Wakeups {
            throttled: throttled.due(),
            holds_truncation: throttled.output.holds_back(),
            is_ticking: has_waiting_events || throttled.output.is_awaited(),
            deadlines: &mut self.deadlines,
            watch: &mut self.lifecycle.watch,
            metrics: &mut self.metrics,
        }
    }

    fn handle(&mut self, input: Input, link: &mut Link) -> Vec<Decision> {
        let now_ms = self.events.elapsed_ms();
        match input {
            Input::Stop(request) => return self.lifecycle.on_request(request, now_ms),
            Input::Guest(event) => return self.lifecycle.on_guest(event, now_ms),
            Input::Checked(check) => return self.lifecycle.on_check(&check, now_ms),
            Input::Halted => return self.lifecycle.on_halted(),
            Input::Due(due) => return self.lifecycle.on_due(due, now_ms),
            Input::Vm(news) => return self.lifecycle.on_vm_news(news, now_ms),
            Input::Throttled => return self.lifecycle.on_throttled(),
            Input::Figures(process, guest) => self.emit_metrics(process, guest),
            Input::Truncated(truncation) => {
                let output = &mut self.lifecycle.throttled.output;
                let event = output.truncated(truncation, Instant::now());
                event.into_iter().for_each(|event| self.events.emit(event));
            }
            Input::NetworkLost(last_words) => self.events.emit(network::lost(&last_words)),
            Input::Refused(event) => self.events.emit(event),
            Input::Tick => self.acknowledge_complete_output(link),
        }
        Vec::new()
    }

    /// Carries the decisions out, in their order. Returns whether the box has ended.
    fn carry_out(&mut self, decisions: Vec<Decision>, link: &mut Link) -> bool {
        let mut has_ended = false;
        for decision in decisions {
            match decision {
                Decision::Emit(event) => self.events.emit(event),
                // The end of the workload is known already, and its event follows these.
                Decision::EmitHeldBack => self.emit_held_back(false),
                Decision::Send(message) => link.send(message),
                Decision::Arm(due, after) => self.deadlines.set(due, after),
                Decision::Disarm(dues) => self.deadlines.clear(dues),
                Decision::Enter(phase) => log::enter(phase),
                Decision::ReportReady => self.service_manager.ready("the box is ready"),
                Decision::ReportStatus(status) => self.service_manager.status(status),
                Decision::ResetWatchdog => self.reset_watchdog(),
                Decision::GatherMetrics if self.metrics.interval().is_some() => {
                    self.metrics.gather(self.lifecycle.watch.agent());
                }
                Decision::GatherMetrics => {}
                Decision::AnnounceStop(timeout) => {
                    log::enter(Phase::Stopping);
                    self.service_manager.stopping();
                    self.service_manager.extend_timeout(timeout);
                }
                Decision::AwaitOutput(drained) => {
                    self.lifecycle.throttled.output.drained(drained);
                    // All of the output may have arrived before this report.
                    self.acknowledge_complete_output(link);
                }
                Decision::EndWatch => self.lifecycle.watch.end(),
                Decision::End => has_ended = true,
            }
        }
        has_ended
    }

    /// Reads the messages that the guest has sent before its machine ended. Its report counts
    /// whether it was read before or after that.
    async fn read_last_words(&mut self, link: &mut Link) {
        for _ in 0..MAX_LAST_WORDS {
            let Ok(LinkEvent::Received(message)) = timeout(LAST_WORDS_TIMEOUT, link.next()).await
            else {
                return;
            };
            let decisions = self.lifecycle.on_message(message, self.events.elapsed_ms());
            // The box has ended already, so a decision that ends it adds nothing.
            let _has_ended = self.carry_out(decisions, link);
        }
    }

    fn reset_watchdog(&mut self) {
        self.service_manager.watchdog();
        if let Some(interval) = self.service_manager.watchdog_interval() {
            self.deadlines.set(Due::Watchdog, interval);
        }
    }

    /// Emits all events that were held back, due or not.
    fn emit_held_back(&mut self, has_ended: bool) {
        let last = *self.console.truncation().borrow();
        let events = self.lifecycle.throttled.take_all(has_ended, last);
        events.into_iter().for_each(|event| self.events.emit(event));
    }

    fn emit_metrics(&mut self, process: ProcessMetrics, guest: Option<GuestMetrics>) {
        self.events.emit(EventKind::Metrics(Box::new(Figures {
            uptime_ms: self.events.elapsed_ms(),
            boot: self.lifecycle.readiness.phases(),
            process,
            guest,
            console: self.console.metrics(),
            events: self.events.metrics(),
            health: self.lifecycle.watch.metrics(),
        })));
        // The interval begins after a set was gathered, so that a slow agent delays the next set.
        if let Some(interval) = self.metrics.interval() {
            self.deadlines.set(Due::Metrics, interval);
        }
    }

    /// Lets the guest reboot once all its output has arrived.
    fn acknowledge_complete_output(&mut self, link: &mut Link) {
        let has_arrived = |stdout, stderr| self.console.has(stdout, stderr);
        if self.lifecycle.throttled.output.is_complete(has_arrived) {
            link.send(shim_message::Message::Acknowledged(Acknowledged {}));
            // The guest reboots at once after the acknowledgement.
            self.deadlines.set(Due::GiveUp, LAST_WORD_TIMEOUT);
        }
    }
}
