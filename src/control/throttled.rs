//! The three kinds of events that the guest can cause without end, at most ten a second of each.

use std::time::Duration;

use a3s_box_core::event::EventKind;
use tokio::time::Instant;

use super::activity::Activity;
use super::output::Output;
use super::reported::Reported;
use super::throttle::Throttle;
use crate::console::Truncation;

/// Least time between two events about the guest's state, or about its notifications.
const GUEST_INTERVAL: Duration = Duration::from_millis(100);

/// Least time between two events about discarded output.
const TRUNCATION_INTERVAL: Duration = Duration::from_secs(1);

/// The parts whose events are throttled.
#[derive(Debug)]
pub(super) struct Throttled {
    pub(super) activity: Activity,
    pub(super) reported: Reported,
    pub(super) output: Output,
}

impl Throttled {
    pub(super) fn new() -> Self {
        Self {
            activity: Activity::new(Throttle::new(GUEST_INTERVAL)),
            reported: Reported::new(Throttle::new(GUEST_INTERVAL)),
            output: Output::new(Throttle::new(TRUNCATION_INTERVAL)),
        }
    }

    /// Returns the time at which the first event that is held back is due.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.activity.due(), self.reported.due(), self.output.due()].into_iter().flatten().min()
    }

    /// Returns the events that were held back and are due. `has_ended` is true once the guest has
    /// reported the end of the workload.
    pub(super) fn take_due(&mut self, has_ended: bool, now: Instant) -> Vec<EventKind> {
        let events = [
            self.activity.take_due(has_ended, now),
            self.reported.take_due(now),
            self.output.take_due(now),
        ];
        events.into_iter().flatten().collect()
    }

    /// Returns all events that were held back, due or not, and that of the `last` truncation.
    pub(super) fn take_all(&mut self, has_ended: bool, last: Option<Truncation>) -> Vec<EventKind> {
        let events = [
            self.activity.take_held_back(has_ended),
            self.reported.take_held_back(),
            self.output.take_last(last),
        ];
        events.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use a3s_box_core::BoxState;
    use a3s_box_core::event::TruncationCause;
    use a3s_box_proto::control::Notified;

    use super::*;

    #[test]
    fn end_emits_the_held_back_state_before_the_workload_is_known_to_have_ended() {
        for (has_ended, expected) in [(false, 1), (true, 0)] {
            let (mut throttled, now) = (Throttled::new(), Instant::now());
            throttled.activity.become_ready();
            throttled.activity.reported(BoxState::Busy, false, now);
            throttled.activity.reported(BoxState::Ready, false, now);
            assert!(throttled.due().is_some());
            assert_eq!(throttled.take_all(has_ended, None).len(), expected);
        }
    }

    #[test]
    fn each_kind_is_held_back_on_its_own() {
        let (mut throttled, now) = (Throttled::new(), Instant::now());
        let truncation = Truncation { discarded_bytes: 1, cause: TruncationCause::Size };
        let later = Truncation { discarded_bytes: 2, ..truncation };
        let ready = Notified { ready: true, ..Notified::default() };
        assert!(throttled.output.truncated(truncation, now).is_some());
        assert!(throttled.reported.offer(ready.clone(), now).is_some());
        throttled.output.truncated(later, now);
        throttled.reported.offer(ready, now);
        assert_eq!(throttled.due(), Some(now + GUEST_INTERVAL));
        assert_eq!(throttled.take_due(false, now + GUEST_INTERVAL).len(), 1);
        assert_eq!(throttled.due(), Some(now + TRUNCATION_INTERVAL));
        assert_eq!(throttled.take_all(false, Some(later)).len(), 1);
    }
}
