//! Limits the rate of events that the guest can cause without end.

use std::time::Duration;

use tokio::time::Instant;

/// Passes at most one value an interval: the first at once, then the latest at the end of each
/// interval.
#[derive(Debug)]
pub(super) struct Throttle<T> {
    interval: Duration,
    /// Time from which the next value may pass.
    free_at: Option<Instant>,
    pending: Option<T>,
}

impl<T> Throttle<T> {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, free_at: None, pending: None }
    }

    /// Returns `value` if it may pass now. Otherwise it is held back and replaces an earlier one.
    pub(super) fn offer(&mut self, value: T, now: Instant) -> Option<T> {
        self.pending = Some(value);
        self.take(now)
    }

    /// Holds `value` back until [`Self::take`] is called.
    pub(super) fn keep(&mut self, value: T) {
        self.pending = Some(value);
    }

    /// Returns the value that is held back if it is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<T> {
        if self.free_at.is_some_and(|free_at| now < free_at) {
            return None;
        }
        let value = self.pending.take()?;
        self.free_at = Some(now + self.interval);
        Some(value)
    }

    /// Returns the value that is held back, due or not.
    pub(super) fn take_now(&mut self) -> Option<T> {
        self.pending.take()
    }

    /// Returns the time at which the value that is held back is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pending.as_ref().and(self.free_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_value_passes_at_once_and_later_only_the_latest_of_an_interval() {
        let (mut throttle, start) = (Throttle::new(Duration::from_millis(100)), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(throttle.offer(1, at(0)), Some(1));
        assert_eq!(throttle.due(), None);
        assert_eq!(throttle.offer(2, at(10)), None);
        assert_eq!(throttle.offer(3, at(20)), None);
        assert_eq!(throttle.due(), Some(at(100)));
        assert_eq!(throttle.take(at(99)), None);
        assert_eq!(throttle.take(at(100)), Some(3));
        assert_eq!(throttle.take(at(500)), None);
        assert_eq!(throttle.offer(4, at(501)), Some(4));
    }
}
