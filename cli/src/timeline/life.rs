//! The run of a box between its boot and its end: states, health, measurements, marks and notes.

use std::net::SocketAddr;

use a3s_box_core::event::{EventKind, Metrics};
use a3s_box_core::{BoxState, ErrorReport, Event, HealthState};

use super::grid::{Activity, Grid, Health, MarkKind};
use super::model::{Note, Totals, Weight, wire_name};
use super::plain::PlainText;
use super::span::{self, Span};

/// Most notes of one kind that are shown. Further ones are only counted, which bounds memory and
/// keeps the list readable.
const MAX_NOTES: usize = 6;

/// Most marks whose exact times are kept. A boot has fewer. The grid counts all marks.
const MAX_MARKS: usize = 64;

/// Most characters of a message, cause or status: two lines of a picture.
const TEXT_CHARS: usize = 200;

/// Characters of a wall clock time: `2026-01-31T09:00:00.123Z`.
const TIME_CHARS: usize = 24;

/// What the events of a run report about the time between its boot and its end.
#[derive(Debug)]
pub(crate) struct Life {
    activity: Option<Activity>,
    activity_since_ms: u64,
    health: Option<Health>,
    health_since_ms: u64,
    /// When the CPU time was last read, and the CPU time since the start, both in milliseconds.
    cpu: Option<(u64, u64)>,
    grid: Grid,
    totals: Totals,
    marks: Vec<(u64, MarkKind)>,
    errors: Notes,
    healths: Notes,
    truncated: Repeated,
    dropped: Repeated,
    notified: Repeated,
    refused: Repeated,
}

/// Notes of one kind: the first ones, and the number of the others.
#[derive(Debug, Default)]
struct Notes {
    kept: Vec<Note>,
    more: u64,
    last: Option<(u64, PlainText)>,
}

/// Events of one kind that share a single note.
#[derive(Debug, Default)]
struct Repeated {
    count: u64,
    /// Total amount, in the unit of its kind: bytes, events or packets.
    amount: u64,
    text: PlainText,
    last: Option<(u64, PlainText)>,
}

impl Life {
    /// Starts a record at `begin_ms`. The box is booting if that is 0. Otherwise its activity is
    /// unknown until an event reports it.
    pub(crate) fn new(begin_ms: u64) -> Self {
        Self {
            activity: (begin_ms == 0).then_some(Activity::Booting),
            activity_since_ms: begin_ms,
            health: None,
            health_since_ms: begin_ms,
            cpu: None,
            grid: Grid::new(begin_ms),
            totals: Totals::default(),
            marks: Vec::new(),
            errors: Notes::default(),
            healths: Notes::default(),
            truncated: Repeated::default(),
            dropped: Repeated::default(),
            notified: Repeated::default(),
            refused: Repeated::default(),
        }
    }

    /// Records an event at `ms`, if it belongs to the time after the boot.
    pub(crate) fn record(&mut self, ms: u64, event: &Event) {
        let at = (ms, PlainText::new(&event.time, TIME_CHARS));
        match &event.kind {
            EventKind::StateChanged { from, to } => self.change_state(ms, *from, *to),
            // A workload that ends by itself also begins the stop of its box.
            EventKind::StopRequested { .. } | EventKind::GuestExited { .. } => {
                self.enter(ms, Activity::Stopping);
            }
            EventKind::HealthChanged { from, to, .. } => {
                self.change_health(ms, *from, *to);
                self.note_health(at, &event.kind);
            }
            EventKind::Error(report) => {
                self.mark(ms, MarkKind::Error);
                self.errors.add(at, Weight::Bad, || error_text(report));
            }
            EventKind::ConsoleTruncated { discarded_bytes, cause } => {
                self.mark(ms, MarkKind::Truncated);
                self.truncated.add(at, &wire_name(cause));
                // The event reports the total since the start.
                self.truncated.amount = *discarded_bytes;
            }
            EventKind::EventsDropped { count } => {
                self.mark(ms, MarkKind::Dropped);
                self.dropped.add(at, "");
                // Unlike the bytes above, the event reports only the events since the last one.
                self.dropped.amount = self.dropped.amount.saturating_add(*count);
            }
            EventKind::WorkloadNotified { ready, stopping, status } => {
                self.mark(ms, MarkKind::Notified);
                // Without a status, the note names the newer flag. `ready` stays set once it is
                // set, so that is `stopping`.
                let message = if *stopping {
                    "STOPPING=1"
                } else if *ready {
                    "READY=1"
                } else {
                    ""
                };
                self.notified.add(at, status.as_deref().unwrap_or(message));
            }
            EventKind::NetworkRefused { protocol, address, port, name, count } => {
                let to = port.map_or_else(
                    || address.to_string(),
                    // An IPv6 address gets brackets.
                    |port| SocketAddr::new(*address, port).to_string(),
                );
                let name = name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
                self.refused.add(at, &format!("{} {to}{name}", wire_name(protocol)));
                self.refused.amount = self.refused.amount.saturating_add(*count);
            }
            EventKind::Metrics(metrics) => self.measure(ms, metrics),
            // The other events belong to the boot or to the stop.
            _ => {}
        }
    }

    fn change_state(&mut self, ms: u64, from: BoxState, to: BoxState) {
        // During a stop the agent may still report states. The box stays in `stopping`.
        if self.activity == Some(Activity::Stopping) {
            return;
        }
        // If the file begins after the boot, `from` is the state since the first event.
        self.activity = self.activity.or(Some(activity(from)));
        self.enter(ms, activity(to));
    }

    fn enter(&mut self, ms: u64, next: Activity) {
        self.close_activity(ms);
        self.activity = Some(next);
    }

    /// Adds the time since the last change to the current activity.
    fn close_activity(&mut self, ms: u64) {
        let span = Span::new(self.activity_since_ms, ms);
        self.activity_since_ms = ms;
        if let Some(activity) = self.activity {
            self.totals.activity_ms[activity as usize] += span.ms();
            self.grid
                .spread(span, |cell, overlap_ms| cell.activity_ms[activity as usize] += overlap_ms);
        }
    }

    fn change_health(&mut self, ms: u64, from: HealthState, to: HealthState) {
        // The health before the first change is known from that change only.
        self.health = self.health.or(Some(health(from)));
        self.close_health(ms);
        self.health = Some(health(to));
    }

    /// Adds the time since the last change to the current health.
    fn close_health(&mut self, ms: u64) {
        let span = Span::new(self.health_since_ms, ms);
        self.health_since_ms = ms;
        if let Some(health) = self.health {
            self.totals.health_ms[health as usize] += span.ms();
            self.grid
                .spread(span, |cell, overlap_ms| cell.health_ms[health as usize] += overlap_ms);
        }
    }

    fn note_health(&mut self, at: (u64, PlainText), kind: &EventKind) {
        let EventKind::HealthChanged { from, to, cause, message, failures } = kind else { return };
        // The first change from `starting` to `healthy` is expected, so it gets no note.
        match (from, to) {
            (_, HealthState::Unhealthy) => self.healths.add(at, Weight::Bad, || {
                let cause = cause.map(|cause| wire_name(&cause)).unwrap_or_default();
                let message = PlainText::new(message.as_deref().unwrap_or_default(), TEXT_CHARS);
                let s = if *failures == 1 { "" } else { "s" };
                let parts = [cause, format!("{failures} failure{s}"), message.to_string()];
                let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                format!("unhealthy: {}", parts.join(", "))
            }),
            (HealthState::Unhealthy, HealthState::Healthy) => {
                self.healths.add(at, Weight::Good, || "healthy again".to_owned());
            }
            _ => {}
        }
    }

    fn mark(&mut self, ms: u64, kind: MarkKind) {
        // Later marks are in the grid only.
        if self.marks.len() < MAX_MARKS {
            self.marks.push((ms, kind));
        }
        if let Some(cell) = self.grid.cell_at(ms) {
            cell.marks[kind as usize] = cell.marks[kind as usize].saturating_add(1);
        }
    }

    /// Records memory and CPU time of a metrics event.
    fn measure(&mut self, ms: u64, metrics: &Metrics) {
        let process = &metrics.process;
        if let Some(cell) = self.grid.cell_at(ms) {
            cell.memory_kib = cell.memory_kib.max(process.pss_kib);
        }
        let used_ms = process.cpu_user_ms.saturating_add(process.cpu_system_ms);
        // CPU time is a counter. The first value is only the base of the first difference, and each
        // difference is spread evenly over the time since the previous event.
        if let Some((since_ms, before_ms)) = self.cpu.replace((ms, used_ms)) {
            let span = Span::new(since_ms, ms);
            let rate = used_ms.saturating_sub(before_ms) as f64 / span.ms().max(1) as f64;
            self.grid.spread(span, |cell, overlap_ms| {
                cell.cpu_ms += rate * overlap_ms;
                cell.cpu_over_ms += overlap_ms;
            });
        }
    }

    /// Ends the record at `end_ms`. Returns its grid, totals, marks and notes, the notes by time.
    pub(crate) fn finish(mut self, end_ms: u64) -> (Grid, Totals, Vec<(u64, MarkKind)>, Vec<Note>) {
        self.close_activity(end_ms);
        self.close_health(end_ms);
        let mut notes = self.errors.finish("errors");
        notes.append(&mut self.healths.finish("changes of health"));
        notes.extend(self.truncated.note(Weight::Bad, |truncated| {
            let lost = span::bytes(truncated.amount);
            format!("{lost} of the workload's output were lost ({})", truncated.text)
        }));
        notes.extend(self.dropped.note(Weight::Neutral, |dropped| {
            format!("{} events were dropped, as a reader was slow", dropped.amount)
        }));
        notes.extend(self.notified.note(Weight::Neutral, |notified| match notified.count {
            1 => format!("the workload said: {}", notified.text),
            count => format!("the workload said, {count} times in all: {}", notified.text),
        }));
        notes.extend(self.refused.note(Weight::Bad, |refused| {
            let packets = refused.amount;
            format!("{packets} packets were refused, the last ones to {}", refused.text)
        }));
        notes.sort_by_key(|note| note.at_ms);
        (self.grid, self.totals, self.marks, notes)
    }
}

impl Notes {
    fn add(&mut self, at: (u64, PlainText), weight: Weight, text: impl FnOnce() -> String) {
        if self.kept.len() < MAX_NOTES {
            let (at_ms, time) = at;
            self.kept.push(Note { at_ms, time, weight, text: text() });
            return;
        }
        self.more += 1;
        self.last = Some(at);
    }

    /// Returns the notes. One more note gives the number of the others, which are called `what`.
    fn finish(mut self, what: &str) -> Vec<Note> {
        if let Some((at_ms, time)) = self.last {
            let text = format!("{} more {what}, the last now", self.more);
            self.kept.push(Note { at_ms, time, weight: Weight::Neutral, text });
        }
        self.kept
    }
}

impl Repeated {
    fn add(&mut self, at: (u64, PlainText), text: &str) {
        self.count += 1;
        self.text = PlainText::new(text, TEXT_CHARS);
        self.last = Some(at);
    }

    fn note(&self, weight: Weight, text: impl FnOnce(&Self) -> String) -> Option<Note> {
        let (at_ms, time) = self.last.clone()?;
        Some(Note { at_ms, time, weight, text: text(self) })
    }
}

fn activity(state: BoxState) -> Activity {
    match state {
        BoxState::Created => Activity::Booting,
        BoxState::Ready => Activity::Ready,
        BoxState::Busy => Activity::Busy,
        BoxState::Compacting => Activity::Compacting,
        BoxState::Stopped => Activity::Stopping,
    }
}

fn health(state: HealthState) -> Health {
    match state {
        HealthState::Starting => Health::Starting,
        HealthState::Healthy => Health::Healthy,
        HealthState::Unhealthy => Health::Unhealthy,
    }
}

/// Formats an error report in one line: code, message, causes, and the hint in parentheses.
fn error_text(report: &ErrorReport) -> String {
    let mut text =
        format!("{}: {}", wire_name(&report.code), PlainText::new(&report.message, TEXT_CHARS));
    let causes = report.causes.iter().take(MAX_NOTES);
    for cause in causes {
        text.push_str(&format!(": {}", PlainText::new(cause, TEXT_CHARS)));
    }
    if let Some(hint) = &report.hint {
        text.push_str(&format!(" ({})", PlainText::new(hint, TEXT_CHARS)));
    }
    // Each part is bounded, but their sum is too long for a note.
    PlainText::new(&text, 2 * TEXT_CHARS).to_string()
}
