//! Changes of state and of health that wait until the event stream has space: at most one of each.
//!
//! A guest can change its state without limit while the supervisor reads nothing. A merged change
//! keeps the first and the last state, and drops the states in between.

use a3s_box_core::event::EventKind;
use jiff::Timestamp;

/// A point in time on both clocks.
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
    /// Number of earlier changes that were merged into this one.
    replaced: u64,
}

impl Merged {
    /// Returns whether events of this kind can be merged.
    pub(super) fn takes(kind: &EventKind) -> bool {
        matches!(kind, EventKind::StateChanged { .. } | EventKind::HealthChanged { .. })
    }

    /// Adds a change, and returns how many events were dropped: 1 if it was merged with an earlier
    /// one.
    pub(super) fn add(&mut self, kind: EventKind, moment: Moment) -> u64 {
        let is_same =
            |other: &Change| std::mem::discriminant(&other.kind) == std::mem::discriminant(&kind);
        let earlier = self.0.iter().position(is_same).map(|at| self.0.remove(at));
        // Cause and message are the ones of the later change, because they explain the present
        // state.
        let change = match earlier {
            None => Change { kind, moment, replaced: 0 },
            Some(earlier) => {
                Change { kind: joined(earlier.kind, kind), moment, replaced: earlier.replaced + 1 }
            }
        };
        let replaced = u64::from(change.replaced > 0);
        // The latest change goes to the end, so that the order is the one of the latest changes.
        self.0.push(change);
        replaced
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the changes out, in order. Merged changes that end where they began are dropped, and
    /// their number is returned as well.
    pub(super) fn take(&mut self) -> (Vec<(EventKind, Moment)>, u64) {
        let (kept, dropped): (Vec<_>, Vec<_>) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|change| change.replaced == 0 || !is_without_effect(&change.kind));
        let kept = kept.into_iter().map(|change| (change.kind, change.moment)).collect();
        (kept, dropped.len() as u64)
    }
}

/// Joins two successive changes: the second one, with the start of the first.
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

fn is_without_effect(kind: &EventKind) -> bool {
    match kind {
        EventKind::StateChanged { from, to } => from == to,
        EventKind::HealthChanged { from, to, .. } => from == to,
        _ => false,
    }
}
