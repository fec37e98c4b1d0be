//! The state of a box, as `state.changed` reports it.
//!
//! ```text
//!  Created ── ready ──► Ready ◄──► Busy ◄──► Compacting      reported by the agent or the workload
//!     └────────────────────┴──────────┴─────────────┴──► Stopped
//! ```

use a3s_box_core::BoxState;
use a3s_box_core::event::EventKind;
use tokio::time::Instant;

use super::throttle::Throttle;

/// The state of one box. The guest may report states without end, so their events are throttled.
#[derive(Debug)]
pub(super) struct Activity {
    state: BoxState,
    throttle: Throttle<BoxState>,
}

impl Activity {
    /// Describes a box without a guest yet.
    pub(super) fn new(throttle: Throttle<BoxState>) -> Self {
        Self { state: BoxState::Created, throttle }
    }

    /// Returns the event of the box becoming ready, unless it already is, or has stopped.
    pub(super) fn become_ready(&mut self) -> Option<EventKind> {
        (self.state == BoxState::Created).then(|| self.change(BoxState::Ready))
    }

    /// Takes a state that the agent or the workload reports, and returns its event if it is due now.
    /// `has_ended` is true once the guest has reported the end of the workload.
    pub(super) fn reported(
        &mut self,
        state: BoxState,
        has_ended: bool,
        now: Instant,
    ) -> Option<EventKind> {
        let state = self.throttle.offer(state, now)?;
        self.enter(state, has_ended)
    }

    /// Returns the event that was held back, if it is due.
    pub(super) fn take_due(&mut self, has_ended: bool, now: Instant) -> Option<EventKind> {
        let state = self.throttle.take(now)?;
        self.enter(state, has_ended)
    }

    /// Returns the event that was held back, whether it is due or not.
    pub(super) fn take_held_back(&mut self, has_ended: bool) -> Option<EventKind> {
        let state = self.throttle.take_now()?;
        self.enter(state, has_ended)
    }

    /// Returns the time at which an event is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.throttle.due()
    }

    /// Returns the event of the end. No state follows it.
    pub(super) fn stop(&mut self) -> EventKind {
        self.change(BoxState::Stopped)
    }

    fn enter(&mut self, state: BoxState, has_ended: bool) -> Option<EventKind> {
        match self.state {
            // A report that comes before the box is ready is kept until then.
            BoxState::Created => {
                self.throttle.keep(state);
                None
            }
            now => (now != state && !has_ended).then(|| self.change(state)),
        }
    }

    fn change(&mut self, to: BoxState) -> EventKind {
        let from = std::mem::replace(&mut self.state, to);
        EventKind::StateChanged { from, to }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    fn changed(from: BoxState, to: BoxState) -> Option<EventKind> {
        Some(EventKind::StateChanged { from, to })
    }

    #[test]
    fn state_that_is_reported_before_the_box_is_ready_is_emitted_after_ready() {
        let (mut activity, start) = (Activity::new(Throttle::new(INTERVAL)), Instant::now());
        assert_eq!(activity.reported(BoxState::Busy, false, start), None);
        assert_eq!(activity.become_ready(), changed(BoxState::Created, BoxState::Ready));
        assert_eq!(activity.become_ready(), None, "only once");
        let due = activity.due().unwrap();
        assert_eq!(activity.take_due(false, due), changed(BoxState::Ready, BoxState::Busy));
    }

    #[test]
    fn states_are_throttled_and_the_last_one_is_emitted() {
        let (mut activity, start) = (Activity::new(Throttle::new(INTERVAL)), Instant::now());
        activity.become_ready();
        let busy = activity.reported(BoxState::Busy, false, start);
        assert_eq!(busy, changed(BoxState::Ready, BoxState::Busy));
        assert_eq!(activity.reported(BoxState::Ready, false, start), None);
        assert_eq!(activity.reported(BoxState::Compacting, false, start), None);
        assert_eq!(activity.due(), Some(start + INTERVAL));
        let last = activity.take_held_back(false);
        assert_eq!(last, changed(BoxState::Busy, BoxState::Compacting));
    }

    #[test]
    fn no_state_is_emitted_again_or_after_the_end_of_the_workload() {
        let (mut activity, start) = (Activity::new(Throttle::new(Duration::ZERO)), Instant::now());
        activity.become_ready();
        assert_eq!(activity.reported(BoxState::Ready, false, start), None, "the same state");
        assert_eq!(activity.reported(BoxState::Busy, true, start), None, "after the end");
        assert_eq!(Some(activity.stop()), changed(BoxState::Ready, BoxState::Stopped));
    }
}
