//! The stop of a box, step by step, and its ending.

use a3s_box_core::event::{EventKind, StopReport};

use super::model::{Bar, BarKind, RunOutcome, wire_name};
use super::plain::PlainText;
use super::span::{self, Span};

/// Most characters of a signal's name. The longest name is `SIGRTMAX-14`.
const SIGNAL_CHARS: usize = 16;

/// What the events of a run report about its stop and ending.
#[derive(Debug, Default)]
pub(crate) struct StopTimeline {
    requested_ms: Option<u64>,
    /// Description of the stop request.
    request: String,
    killed_ms: Option<u64>,
    exited_ms: Option<u64>,
    /// Description of the workload's exit.
    exit: String,
    /// Whether the box has reported its ending.
    is_stopped: bool,
    ending: Option<RunOutcome>,
}

impl StopTimeline {
    /// Records an event at `ms`, if it belongs to the stop.
    pub(crate) fn record(&mut self, ms: u64, kind: &EventKind) {
        match kind {
            EventKind::StopRequested { cause, signal, grace_ms } => {
                // A second stop request does not restart the stop.
                self.requested_ms.get_or_insert(ms);
                let signal = PlainText::new(signal, SIGNAL_CHARS);
                let (cause, grace) = (wire_name(cause), span::duration(*grace_ms));
                self.request = format!("{signal} · cause: {cause} · grace {grace}");
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
                self.is_stopped = true;
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

    /// Replaces the times of the events by the times in the report. The report has the times at
    /// which the steps happened. The events were emitted a little later.
    fn correct(&mut self, report: &StopReport) {
        self.requested_ms = Some(report.requested_ms);
        self.killed_ms = report.killed_ms.or(self.killed_ms);
        self.exited_ms = report.exited_ms.or(self.exited_ms);
    }

    /// Returns when the stop began: with the stop request or with the workload's exit.
    pub(crate) fn begin_ms(&self) -> Option<u64> {
        [self.requested_ms, self.exited_ms].into_iter().flatten().min()
    }

    pub(crate) fn ending(&self) -> RunOutcome {
        self.ending.unwrap_or(RunOutcome::Open)
    }

    /// Returns the bars of the steps that happened. Each lasts until the next one, and the last one
    /// until `end_ms`.
    pub(crate) fn bars(&self, end_ms: u64) -> Vec<Bar> {
        // The steps have a fixed order. A box whose workload ends by itself has only the last one.
        let steps = [
            (BarKind::Grace, "stopping", &self.request, self.requested_ms),
            (BarKind::Kill, "killing", &String::new(), self.killed_ms),
            (BarKind::Shutdown, "shutting down", &self.exit, self.exited_ms),
        ];
        let mut bars: Vec<Bar> = Vec::new();
        for (kind, label, detail, from_ms) in steps {
            // The times of a report come from the file and are not checked against its end.
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
                is_finished: self.is_stopped,
            });
        }
        bars
    }
}
