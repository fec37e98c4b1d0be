//! The end of a wait for a lock that another process holds.
//!
//! The kernel releases the lock of a process that dies, so a wait is long only if the other process
//! has much work or hangs. The two cannot be told apart from outside. A long wait is therefore logged
//! with the pid of the other process, and a very long one is an error.

use std::time::{Duration, Instant};

use super::error::Holder;

/// The times of a wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitLimits {
    /// Time after which the wait is logged. Most layers are unpacked before.
    pub(super) report_after: Duration,
    /// Time for which one process may hold the lock. A slow disk takes 10 MiB a second, so that a
    /// layer of 36 GiB is unpacked in this time. `resources.timeout_ms` of a box can end its wait
    /// before.
    pub(super) end_after: Duration,
}

impl Default for WaitLimits {
    fn default() -> Self {
        Self { report_after: Duration::from_secs(10), end_after: Duration::from_secs(3600) }
    }
}

/// A wait for a lock, or the preparation for one.
#[derive(Debug)]
pub(crate) struct Wait {
    /// The name of the lock.
    lock: String,
    /// The first failed attempt, or the moment at which another holder was found.
    began: Option<Instant>,
    /// The holder that the log has.
    reported: Option<Holder>,
}

impl Wait {
    pub(crate) fn for_lock(name: &str) -> Self {
        Self { lock: name.to_owned(), began: None, reported: None }
    }

    /// Returns the name of the lock.
    pub(super) fn lock(&self) -> &str {
        &self.lock
    }

    /// Counts an attempt that has failed. Once one process has held the lock for too long, returns that
    /// process and the time.
    pub(super) fn go_on(
        &mut self,
        limits: &WaitLimits,
        holder: impl FnOnce() -> Holder,
    ) -> Option<(Holder, Duration)> {
        let waited = self.began.get_or_insert_with(Instant::now).elapsed();
        let limit = self.reported.map_or(limits.report_after, |_| limits.end_after);
        if waited < limit {
            return None;
        }
        let holder = holder();
        match self.reported.replace(holder) {
            Some(before) if before == holder => return Some((holder, waited)),
            // The first process has failed, and another one has begun to make the same content.
            Some(_) => self.began = Some(Instant::now()),
            None => {}
        }
        tracing::warn!(lock = self.lock.as_str(), %holder, seconds = waited.as_secs(), "waiting for a lock");
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Holder = Holder { pid: None };
    const FIRST: Holder = Holder { pid: Some(1) };
    const SECOND: Holder = Holder { pid: Some(2) };
    const HOUR: Duration = Duration::from_secs(3600);

    /// Limits after which each step of a wait comes at once.
    const PASSED: WaitLimits =
        WaitLimits { report_after: Duration::ZERO, end_after: Duration::ZERO };

    #[test]
    fn wait_ends_after_a_report_and_only_for_the_same_holder() {
        for (holders, expected) in [
            (vec![FIRST, FIRST], Some(FIRST)),
            (vec![NONE, NONE], Some(NONE)),
            (vec![FIRST], None),
            (vec![FIRST, SECOND], None),
            (vec![FIRST, SECOND, FIRST], None),
            (vec![FIRST, SECOND, SECOND], Some(SECOND)),
        ] {
            let mut wait = Wait::for_lock("layer");
            let ended = holders.iter().map(|holder| wait.go_on(&PASSED, || *holder)).last();
            assert_eq!(ended.flatten().map(|(holder, _)| holder), expected, "{holders:?}");
        }
    }

    #[test]
    fn holder_is_asked_for_only_when_a_time_has_passed() {
        let mut wait = Wait::for_lock("layer");
        let never = || panic!("the holder was asked for");
        let late = WaitLimits { report_after: HOUR, end_after: HOUR };
        assert!(wait.go_on(&late, never).is_none());
        let report = WaitLimits { report_after: Duration::ZERO, end_after: HOUR };
        assert!(wait.go_on(&report, || FIRST).is_none());
        assert!(wait.go_on(&report, never).is_none());
    }
}
