//! The end of a box, step by step.

use a3s_box_core::event::{EventKind, StopReport};

use super::model::{Bar, BarKind, RunOutcome, wire_name};
use super::plain::Plain;
use super::span::{self, Span};

/// Longest name of a signal is `SIGRTMAX-14`.
const SIGNAL_CHARS: usize = 16;

/// What events say about the end.
#[derive(Debug, Default)]
pub(crate) struct StopTimeline {
    requested_ms: Option<u64>,
    asked: String,
    killed_ms: Option<u64>,
    exited_ms: Option<u64>,
    exit: String,
    is_done: bool,
    ending: Option<RunOutcome>,
}

impl StopTimeline {
    /// Takes what `kind` says about the end.
    pub(crate) fn record(&mut self, ms: u64, kind: &EventKind) {
        match kind {
            EventKind::StopRequested { cause, signal, grace_ms } => {
                self.requested_ms.get_or_insert(ms);
                let signal = Plain::new(signal, SIGNAL_CHARS);
                let (cause, grace) = (wire_name(cause), span::duration(*grace_ms));
                self.asked = format!("{signal} · cause: {cause} · grace {grace}");
            }
            EventKind::StopKilled {} => {
                self.killed_ms.get_or_insert(ms);
            }
            EventKind::GuestExited { exit_code, signal } => {
                self.exited_ms.get_or_insert(ms);
                self.exit = match (exit_code, signal) {
                    (_, Some(signal)) => format!("workload ended by signal {signal}"),
                    (Some(code), None) => format!("workload exited with {code}"),
                    (None, None) => String::new(),
                };
            }
            EventKind::BoxStopped { reason, exit_code, signal, stop, .. } => {
                self.is_done = true;
                self.ending = Some(RunOutcome::Stopped {
                    reason: *reason,
                    exit_code: *exit_code,
                    signal: *signal,
                });
                if let Some(report) = stop {
                    self.correct(report);
                }
            }
            EventKind::PrepareDone {}
            | EventKind::CacheCollected { .. }
            | EventKind::CacheVerified { .. } => self.ending = Some(RunOutcome::Done),
            _ => {}
        }
    }

    /// The report has the times at which things happened; events come a little later.
    fn correct(&mut self, report: &StopReport) {
        self.requested_ms = Some(report.requested_ms);
        self.killed_ms = report.killed_ms.or(self.killed_ms);
        self.exited_ms = report.exited_ms.or(self.exited_ms);
    }

    /// When it began.
    pub(crate) fn begin_ms(&self) -> Option<u64> {
        [self.requested_ms, self.exited_ms].into_iter().flatten().min()
    }

    pub(crate) fn ending(&self) -> RunOutcome {
        self.ending.unwrap_or(RunOutcome::Open)
    }

    /// The steps that were needed, the last of them up to `end_ms`.
    pub(crate) fn bars(&self, end_ms: u64) -> Vec<Bar> {
        let steps = [
            (BarKind::Grace, "stopping", &self.asked, self.requested_ms),
            (BarKind::Kill, "killing", &String::new(), self.killed_ms),
            (BarKind::Shutdown, "shutting down", &self.exit, self.exited_ms),
        ];
        let mut bars: Vec<Bar> = Vec::new();
        for (kind, label, detail, from_ms) in steps {
            let Some(from_ms) = from_ms.map(|from_ms| from_ms.min(end_ms)) else { continue };
            if let Some(last) = bars.last_mut() {
                last.span = Span::new(last.span.from_ms, from_ms);
                last.took_ms = last.span.ms();
                last.is_finished = true;
            }
            bars.push(Bar {
                kind,
                label: label.to_owned(),
                detail: detail.clone(),
                span: Span::new(from_ms, end_ms),
                took_ms: Span::new(from_ms, end_ms).ms(),
                is_finished: self.is_done,
            });
        }
        bars
    }
}
