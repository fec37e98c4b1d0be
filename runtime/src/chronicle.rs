//! The story of one box: passes the shim's events on, and tells the end.
//!
//! `box.stopped` is held back until the shim was reaped, so that whoever sees it finds the process
//! gone and the state Stopped. When the shim could not write it, this module does: as the shim's
//! `exit.json` says, which it writes just before, else as its wait status does.

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

/// How a shim came to end without `box.stopped`.
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

/// Passes events on and remembers what the end needs.
#[derive(Debug)]
pub(crate) struct Chronicle {
    emitter: EventEmitter,
    status: watch::Sender<Status>,
    box_id: String,
    /// Just before the shim was started.
    start: Instant,
    next_seq: u64,
    /// The last `error` event.
    report: Option<ErrorReport>,
    /// `box.stopped`, held back.
    terminal: Option<(Event, Outcome)>,
}

impl Chronicle {
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

    /// Whether the shim told the end.
    pub(crate) fn is_told(&self) -> bool {
        self.terminal.is_some()
    }

    /// Passes an event of the shim on.
    pub(crate) fn tell(&mut self, event: Event) {
        self.next_seq = event.seq.saturating_add(1);
        match &event.kind {
            EventKind::StateChanged { to, .. } => self.status.send_modify(|status| {
                status.hear(*to);
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

    /// Takes over the end that the shim recorded and could not tell any more.
    pub(crate) fn recall(&mut self, record: ExitRecord) {
        let ExitRecord { reason, signal, uptime_ms, stop, error, .. } = record;
        if let Some(report) = error.filter(|report| self.report.as_ref() != Some(report)) {
            let event = self.event(EventKind::Error(report));
            self.tell(event);
        }
        let exit_code = Some(record.exit_code);
        let kind = EventKind::BoxStopped { reason, exit_code, signal, uptime_ms, stop };
        let event = self.event(kind);
        self.tell(event);
    }

    /// Tells the end, after the shim was reaped: as the shim told it, else as its status says.
    /// `killed` is why it was killed, if this side did that.
    pub(crate) fn finish(mut self, exit: io::Result<ExitStatus>, killed: Option<ShimLost>) {
        self.status.send_modify(|status| status.state = BoxState::Stopped);
        let (terminal, outcome) = match self.terminal.take() {
            Some(told) => told,
            None => self.make_terminal(exit, killed),
        };
        self.emitter.emit(&terminal);
        let final_status = FinalStatus { outcome, report: self.report.take() };
        self.status.send_modify(|status| status.final_status = Some(final_status));
    }

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

impl Drop for Chronicle {
    /// The follower was dropped midway, by the end of its runtime or a panic of an observer: its
    /// child is killed with it, and nobody may wait for an end that is not told.
    fn drop(&mut self) {
        self.status.send_if_modified(|status| {
            let is_untold = status.final_status.is_none();
            if is_untold {
                let outcome = Outcome { reason: StopReason::Killed, exit_code: None, signal: None };
                let report = Some(report(&ShimLost::Abandoned));
                status.state = BoxState::Stopped;
                status.final_status = Some(FinalStatus { outcome, report });
            }
            is_untold
        });
    }
}

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
        // Somebody, or the kernel for want of memory, killed it: the config is not to blame.
        ShimLost::Signal { .. } => report.retryable(),
        _ => report,
    }
}
