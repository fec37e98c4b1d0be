//! Changes that wait for room: of state and of health at most one each.
//!
//! A guest may change its state without end while nobody reads. What came in between is given up,
//! and where it came from and what is now are kept.

use a3s_box_core::event::EventKind;
use jiff::Timestamp;

/// When something happened, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) time: Timestamp,
    pub(super) elapsed_ms: u64,
}

/// At most two changes, the latest last.
#[derive(Debug, Default)]
pub(super) struct Merged(Vec<Change>);

#[derive(Debug)]
struct Change {
    kind: EventKind,
    moment: Moment,
    /// Events that were given up for it.
    given_up: u64,
}

impl Merged {
    /// Whether an event is of a kind that can be merged.
    pub(super) fn takes(kind: &EventKind) -> bool {
        matches!(kind, EventKind::StateChanged { .. } | EventKind::HealthChanged { .. })
    }

    /// Takes a change; says how many events were given up for it.
    pub(super) fn add(&mut self, kind: EventKind, moment: Moment) -> u64 {
        let is_same =
            |other: &Change| std::mem::discriminant(&other.kind) == std::mem::discriminant(&kind);
        let earlier = self.0.iter().position(is_same).map(|at| self.0.remove(at));
        let change = match earlier {
            None => Change { kind, moment, given_up: 0 },
            Some(earlier) => {
                Change { kind: joined(earlier.kind, kind), moment, given_up: earlier.given_up + 1 }
            }
        };
        let given_up = u64::from(change.given_up > 0);
        self.0.push(change);
        given_up
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is to be told, and how many more were given up because they lead back to where they began.
    pub(super) fn take(&mut self) -> (Vec<(EventKind, Moment)>, u64) {
        let (told, void): (Vec<_>, Vec<_>) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|change| change.given_up == 0 || !is_void(&change.kind));
        let told = told.into_iter().map(|change| (change.kind, change.moment)).collect();
        (told, void.len() as u64)
    }
}

/// The second change, as if it had begun where the first did.
fn joined(first: EventKind, second: EventKind) -> EventKind {
    match (first, second) {
        (EventKind::StateChanged { from, .. }, EventKind::StateChanged { to, .. }) => {
            EventKind::StateChanged { from, to }
        }
        (
            EventKind::HealthChanged { from, .. },
            EventKind::HealthChanged { to, cause, message, failures, .. },
        ) => EventKind::HealthChanged { from, to, cause, message, failures },
        (_, second) => second,
    }
}

fn is_void(kind: &EventKind) -> bool {
    match kind {
        EventKind::StateChanged { from, to } => from == to,
        EventKind::HealthChanged { from, to, .. } => from == to,
        _ => false,
    }
}
