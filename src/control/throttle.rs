//! Keeps what the guest may say without end from becoming as many events.

use std::time::Duration;

use tokio::time::Instant;

/// Lets one value through each interval: the first at once, of those that follow the last.
#[derive(Debug)]
pub(super) struct Throttle<T> {
    interval: Duration,
    /// When the next value may pass.
    free_at: Option<Instant>,
    pending: Option<T>,
}

impl<T> Throttle<T> {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, free_at: None, pending: None }
    }

    /// Gives `value` back if it may pass now, and keeps it for later if not.
    pub(super) fn offer(&mut self, value: T, now: Instant) -> Option<T> {
        self.pending = Some(value);
        self.take(now)
    }

    /// Keeps `value` for a later look.
    pub(super) fn keep(&mut self, value: T) {
        self.pending = Some(value);
    }

    /// The value that waits, if its time has come.
    pub(super) fn take(&mut self, now: Instant) -> Option<T> {
        if self.free_at.is_some_and(|free_at| now < free_at) {
            return None;
        }
        let value = self.pending.take()?;
        self.free_at = Some(now + self.interval);
        Some(value)
    }

    /// The value that waits, whether its time has come or not.
    pub(super) fn take_now(&mut self) -> Option<T> {
        self.pending.take()
    }

    /// When there is something to take; never if nothing waits.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pending.as_ref().and(self.free_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_value_passes_at_once_and_of_the_others_the_last_one_in_time() {
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
