//! The workload's own notifications, which PID 1 of the guest forwards.

use a3s_box_core::BoxState;
use a3s_box_core::event::EventKind;
use a3s_box_proto::control::{BoxState as ReportedState, Notified};
use tokio::time::Instant;

use super::throttle::Throttle;
use crate::report::printable::printable;

/// Longest status of a workload in an event.
const MAX_STATUS_CHARS: usize = 256;

/// The notifications so far. The workload may send them without end, so their events are throttled.
#[derive(Debug)]
pub(super) struct Reported {
    last: Notified,
    throttle: Throttle<Notified>,
}

/// The new parts of a notification.
#[derive(Debug, PartialEq)]
pub(super) struct News {
    /// The workload has sent `READY=1`, now or before.
    pub(super) is_ready: bool,
    /// The notification, if more than its state differs from the last one.
    pub(super) changed: Option<Notified>,
    /// Its state, if that differs from the last one.
    pub(super) state: Option<BoxState>,
}

impl Reported {
    pub(super) fn new(throttle: Throttle<Notified>) -> Self {
        Self { last: Notified::default(), throttle }
    }

    /// Takes a notification, and returns what is new in it. The status is made printable and cut,
    /// because the guest is hostile.
    pub(super) fn read(&mut self, mut notified: Notified) -> News {
        let state = match notified.state() {
            ReportedState::Unspecified => None,
            ReportedState::Ready => Some(BoxState::Ready),
            ReportedState::Busy => Some(BoxState::Busy),
            ReportedState::Compacting => Some(BoxState::Compacting),
        };
        notified.status = notified.status.map(|status| printable(&status, MAX_STATUS_CHARS));
        let before = std::mem::replace(&mut self.last, notified.clone());
        let has_new_state = notified.state != before.state;
        // A change of the state alone is no change here, because `state.changed` reports it.
        let has_changed = notified != Notified { state: notified.state, ..before };
        News {
            is_ready: notified.ready,
            changed: has_changed.then_some(notified),
            state: state.filter(|_| has_new_state),
        }
    }

    /// Returns the event of a notification, if it is due now. Otherwise it is held back.
    pub(super) fn offer(&mut self, notified: Notified, now: Instant) -> Option<EventKind> {
        self.throttle.offer(notified, now).map(event)
    }

    /// Returns the event that was held back, if it is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<EventKind> {
        self.throttle.take(now).map(event)
    }

    /// Returns the event that was held back, whether it is due or not.
    pub(super) fn take_held_back(&mut self) -> Option<EventKind> {
        self.throttle.take_now().map(event)
    }

    /// Returns the time at which an event is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.throttle.due()
    }
}

fn event(notified: Notified) -> EventKind {
    let Notified { ready, stopping, status, .. } = notified;
    EventKind::WorkloadNotified { ready, stopping, status }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn busy() -> Notified {
        Notified { state: ReportedState::Busy.into(), ..Notified::default() }
    }

    #[test]
    fn only_the_difference_to_the_last_notification_is_new() {
        let mut reported = Reported::new(Throttle::new(Duration::ZERO));
        let news = reported.read(busy());
        assert_eq!(news, News { is_ready: false, changed: None, state: Some(BoxState::Busy) });
        let ready = Notified { ready: true, ..busy() };
        let news = reported.read(ready.clone());
        let expected = News { is_ready: true, changed: Some(ready.clone()), state: None };
        assert_eq!(news, expected);
        let news = reported.read(ready);
        assert_eq!(news, News { is_ready: true, changed: None, state: None }, "a repetition");
    }

    #[test]
    fn status_is_cut_and_made_printable() {
        let mut reported = Reported::new(Throttle::new(Duration::ZERO));
        let status = format!("\u{1b}[2J{}", "x".repeat(1000));
        let news = reported.read(Notified { status: Some(status), ..Notified::default() });
        let status = news.changed.unwrap().status.unwrap();
        assert!(status.chars().count() <= MAX_STATUS_CHARS, "{status}");
        assert!(!status.contains('\u{1b}'), "{status}");
    }

    #[test]
    fn notifications_are_throttled_and_the_last_one_is_emitted() {
        let interval = Duration::from_millis(100);
        let (mut reported, now) = (Reported::new(Throttle::new(interval)), Instant::now());
        let status = |text: &str| Notified { status: Some(text.into()), ..Notified::default() };
        assert!(reported.offer(status("a"), now).is_some());
        assert_eq!(reported.offer(status("b"), now), None);
        assert_eq!(reported.offer(status("c"), now), None);
        assert_eq!(reported.due(), Some(now + interval));
        assert_eq!(reported.take_due(now), None);
        let last = reported.take_held_back();
        assert_eq!(last, Some(event(status("c"))));
    }
}
