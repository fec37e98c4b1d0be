//! The workload's output: when all of it has arrived, and which part of it is not kept.

use a3s_box_core::event::EventKind;
use a3s_box_proto::control::Drained;
use tokio::time::Instant;

use super::throttle::Throttle;
use crate::console::Truncation;

/// What is known about the output. A flood may discard output without end, so its events are
/// throttled.
#[derive(Debug)]
pub(super) struct Output {
    /// The amount that the guest has sent, until all of it has arrived.
    drained: Option<Drained>,
    throttle: Throttle<Truncation>,
    /// The truncation of the last event.
    emitted: Option<Truncation>,
}

impl Output {
    pub(super) fn new(throttle: Throttle<Truncation>) -> Self {
        Self { drained: None, throttle, emitted: None }
    }

    /// Takes the guest's report that it has sent all output, and how much.
    pub(super) fn drained(&mut self, drained: Drained) {
        self.drained = Some(drained);
    }

    /// Whether the guest has sent all output, and some of it has not arrived yet.
    pub(super) fn is_awaited(&self) -> bool {
        self.drained.is_some()
    }

    /// Returns true once, when all output has arrived. `has_arrived` compares the bytes of standard
    /// output and standard error with those that the console thread has read.
    pub(super) fn is_complete(&mut self, has_arrived: impl Fn(u64, u64) -> bool) -> bool {
        let is_complete = self.drained.is_some_and(|Drained { stdout_bytes, stderr_bytes }| {
            has_arrived(stdout_bytes, stderr_bytes)
        });
        // One acknowledgement is enough, and the console need not be polled any longer.
        if is_complete {
            self.drained = None;
        }
        is_complete
    }

    /// Whether a truncation is held back. Further ones need not be read until its time has come.
    pub(super) fn holds_back(&self) -> bool {
        self.throttle.due().is_some()
    }

    /// Takes a truncation, and returns its event if it is due now.
    pub(super) fn truncated(&mut self, truncation: Truncation, now: Instant) -> Option<EventKind> {
        let truncation = self.throttle.offer(truncation, now)?;
        Some(self.event(truncation))
    }

    /// Returns the event that was held back, if it is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<EventKind> {
        let truncation = self.throttle.take(now)?;
        Some(self.event(truncation))
    }

    /// Returns the event of the `last` truncation, unless it was emitted.
    pub(super) fn take_last(&mut self, last: Option<Truncation>) -> Option<EventKind> {
        let last = last.filter(|last| Some(*last) != self.emitted)?;
        Some(self.event(last))
    }

    /// Returns the time at which an event is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.throttle.due()
    }

    fn event(&mut self, truncation: Truncation) -> EventKind {
        self.emitted = Some(truncation);
        let Truncation { discarded_bytes, cause } = truncation;
        EventKind::ConsoleTruncated { discarded_bytes, cause }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use a3s_box_core::event::TruncationCause;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    fn truncation(discarded_bytes: u64) -> Truncation {
        Truncation { discarded_bytes, cause: TruncationCause::Size }
    }

    fn event(discarded_bytes: u64) -> Option<EventKind> {
        Some(EventKind::ConsoleTruncated { discarded_bytes, cause: TruncationCause::Size })
    }

    #[test]
    fn output_is_complete_once_when_both_streams_have_arrived() {
        let mut output = Output::new(Throttle::new(INTERVAL));
        assert!(!output.is_complete(|_, _| true), "the guest has not sent all of it");
        output.drained(Drained { stdout_bytes: 5, stderr_bytes: 7 });
        assert!(output.is_awaited() && !output.is_complete(|out, err| out <= 5 && err <= 6));
        assert!(output.is_complete(|out, err| out <= 5 && err <= 7));
        assert!(!output.is_awaited() && !output.is_complete(|_, _| true), "only once");
    }

    #[test]
    fn truncations_are_throttled_and_the_last_one_is_emitted_once() {
        let (mut output, now) = (Output::new(Throttle::new(INTERVAL)), Instant::now());
        assert_eq!(output.truncated(truncation(1), now), event(1));
        assert_eq!(output.take_last(Some(truncation(1))), None, "emitted already");
        assert_eq!(output.truncated(truncation(2), now), None);
        assert!(output.holds_back());
        assert_eq!(output.take_due(now + INTERVAL), event(2));
        assert!(!output.holds_back());
        assert_eq!(output.take_last(Some(truncation(3))), event(3));
    }
}
