//! [`EventRelay`]: passes the events of one shim to the observers, and completes the stream.
//!
//! The relay holds `box.stopped` back until the shim is reaped. An observer of that event therefore
//! finds that the process is gone and the state is Stopped. If the shim ended without
//! `box.stopped`, the relay makes the event, from the `exit.json` of the shim or else from its wait
//! status. The shim puts `exit.json` in place just before it emits `box.stopped`. If it is
//! killed in between, only the record exists.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use a3s_box_core::event::{EVENT_VERSION, EventKind, StopReason};
use a3s_box_core::{BoxState, ErrorCode, ErrorReport, Event, EventEmitter, ExitRecord};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use crate::lines::StreamError;
use crate::status::{FinalStatus, Outcome, Status};

/// Why a shim ended without `box.stopped`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimLost {
    #[error("the shim was ended by signal {number}{name}")]
    Signal { number: i32, name: String },
    #[error("the shim ended with status {0} and without `box.stopped`")]
    Silent(i32),
    #[error("the shim ended, and how is not known")]
    Vanished { source: io::Error },
    #[error("the shim was killed: it does not write events")]
    Protocol { source: StreamError },
    #[error("the shim was killed: it was asked to stop, and did not in time")]
    Overdue,
    #[error("the shim was killed: it closed its standard output and did not end")]
    Lingering,
    #[error("the shim was killed: its `VmManager` was dropped")]
    Abandoned,
}

/// Passes events to the observers, and keeps what the terminal event requires.
#[derive(Debug)]
pub(crate) struct EventRelay {
    emitter: EventEmitter,
    status: watch::Sender<Status>,
    box_id: String,
    /// Time just before the shim was spawned.
    start: Instant,
    /// `seq` of the next event, if this process makes it.
    next_seq: u64,
    /// Content of the last `error` event.
    report: Option<ErrorReport>,
    /// The event `box.stopped`, which is held back, and its outcome.
    terminal: Option<(Event, Outcome)>,
}

impl EventRelay {
    pub(crate) fn new(
        emitter: EventEmitter,
        status: watch::Sender<Status>,
        box_id: String,
        start: Instant,
    ) -> Self {
        Self { emitter, status, box_id, start, next_seq: 0, report: None, terminal: None }
    }

    pub(crate) fn box_id(&self) -> &str {
        &self.box_id
    }

    /// Returns whether the relay has a `box.stopped` event.
    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Passes an event to the observers, and updates the status. Holds `box.stopped` back.
    pub(crate) fn relay(&mut self, event: Event) {
        self.next_seq = event.seq.saturating_add(1);
        match &event.kind {
            EventKind::StateChanged { to, .. } => self.status.send_modify(|status| {
                status.update_state(*to);
                status.was_ready |= *to == BoxState::Ready;
            }),
            EventKind::Error(report) => self.report = Some(report.clone()),
            &EventKind::BoxStopped { reason, exit_code, signal, .. } => {
                self.terminal = Some((event, Outcome { reason, exit_code, signal }));
                return;
            }
            _ => {}
        }
        self.emitter.emit(&event);
    }

    /// Relays the events of an exit record, which the shim could not emit any more.
    ///
    /// The `error` event is left out if the shim has already emitted it.
    pub(crate) fn relay_record(&mut self, record: ExitRecord) {
        let ExitRecord { reason, signal, uptime_ms, stop, error, .. } = record;
        if let Some(report) = error.filter(|report| self.report.as_ref() != Some(report)) {
            let event = self.event(EventKind::Error(report));
            self.relay(event);
        }
        let exit_code = Some(record.exit_code);
        let kind = EventKind::BoxStopped { reason, exit_code, signal, uptime_ms, stop };
        let event = self.event(kind);
        self.relay(event);
    }

    /// Emits `box.stopped` and sets the final status. Callers must have reaped the shim.
    ///
    /// `exit` is the wait status of the shim, and `killed` is the reason if this process killed it.
    /// Both matter only if the shim has not emitted `box.stopped`.
    pub(crate) fn finish(mut self, exit: io::Result<ExitStatus>, killed: Option<ShimLost>) {
        self.status.send_modify(|status| status.state = BoxState::Stopped);
        let (terminal, outcome) = match self.terminal.take() {
            Some(terminal) => terminal,
            None => self.make_terminal(exit, killed),
        };
        // The observers come before the final status, so that `wait` returns only after each of
        // them has got the event.
        self.emitter.emit(&terminal);
        let final_status = FinalStatus { outcome, report: self.report.take() };
        self.status.send_modify(|status| status.final_status = Some(final_status));
    }

    /// Emits the error `shim_lost`, and returns the `box.stopped` event of a shim that was lost.
    fn make_terminal(
        &mut self,
        exit: io::Result<ExitStatus>,
        killed: Option<ShimLost>,
    ) -> (Event, Outcome) {
        let status = exit.as_ref().ok();
        let byte = |number: i32| u8::try_from(number).ok();
        let exit_code = status.and_then(ExitStatus::code).and_then(byte);
        let signal = status.and_then(ExitStatusExt::signal).and_then(byte);
        let outcome = Outcome { reason: StopReason::Killed, exit_code, signal };
        let report = report(&killed.unwrap_or_else(|| loss(exit)));
        let error = self.event(EventKind::Error(report.clone()));
        self.emitter.emit(&error);
        self.report = Some(report);
        let uptime_ms = self.elapsed_ms();
        let reason = outcome.reason;
        let kind = EventKind::BoxStopped { reason, exit_code, signal, uptime_ms, stop: None };
        (self.event(kind), outcome)
    }

    /// Makes an event of this process, which continues the numbers of the shim.
    fn event(&mut self, kind: EventKind) -> Event {
        let seq = self.next_seq;
        self.next_seq = seq.saturating_add(1);
        Event {
            v: EVENT_VERSION,
            seq,
            time: format!("{:.3}", jiff::Timestamp::now()),
            elapsed_ms: self.elapsed_ms(),
            box_id: self.box_id.clone(),
            kind,
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for EventRelay {
    /// Sets a final status if there is none.
    ///
    /// The end of the tokio runtime and a panic of an observer drop the follower before the shim
    /// has ended. The drop kills the shim (`kill_on_drop`). Without a final status,
    /// [`VmManager::wait`](crate::VmManager::wait) would then never return.
    fn drop(&mut self) {
        self.status.send_if_modified(|status| {
            let is_unset = status.final_status.is_none();
            if is_unset {
                let outcome = Outcome { reason: StopReason::Killed, exit_code: None, signal: None };
                let report = Some(report(&ShimLost::Abandoned));
                status.state = BoxState::Stopped;
                status.final_status = Some(FinalStatus { outcome, report });
            }
            is_unset
        });
    }
}

/// Returns the reason for a lost shim that this process did not kill.
fn loss(exit: io::Result<ExitStatus>) -> ShimLost {
    match exit {
        Err(source) => ShimLost::Vanished { source },
        Ok(status) => match status.signal() {
            None => ShimLost::Silent(status.code().unwrap_or_default()),
            Some(number) => {
                let name = Signal::try_from(number);
                let name = name.map_or(String::new(), |signal| format!(" ({signal})"));
                ShimLost::Signal { number, name }
            }
        },
    }
}

fn report(lost: &ShimLost) -> ErrorReport {
    let report = ErrorReport::new(ErrorCode::ShimLost, lost);
    match lost {
        // Another process or the OOM killer killed the shim, so the same config may succeed.
        ShimLost::Signal { .. } => report.retryable(),
        _ => report,
    }
}
