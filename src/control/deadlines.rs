//! The deadlines of a box: points in time at which the control loop acts.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Purpose of a deadline. If two are due at once, the earlier one in this list comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The box must be ready.
    Boot,
    /// The end of `resources.timeout_ms`, at which the box is stopped.
    Timeout,
    /// The end of the grace period of a stop, at which the workload is killed.
    Grace,
    /// The VM must have ended. The shim ends without it otherwise.
    GiveUp,
    /// The next `WATCHDOG=1` for the service manager (`sd_notify(3)`).
    Watchdog,
    /// The next metrics.
    Metrics,
}

const ALL: [Due; 6] =
    [Due::Boot, Due::Timeout, Due::Grace, Due::GiveUp, Due::Watchdog, Due::Metrics];

/// At most one deadline of each kind.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    at: [Option<Instant>; ALL.len()],
}

impl Deadlines {
    /// Sets the deadline `due`, and replaces an earlier one of the same purpose.
    pub(super) fn set(&mut self, due: Due, after: Duration) {
        self.at[due as usize] = Some(Instant::now() + after);
    }

    /// Removes deadlines.
    pub(super) fn clear(&mut self, dues: &[Due]) {
        for due in dues {
            self.at[*due as usize] = None;
        }
    }

    /// Waits for the next deadline and removes it. Waits forever if there is none.
    pub(super) async fn next(&mut self) -> Due {
        let next = ALL.into_iter().filter_map(|due| Some((self.at[due as usize]?, due)));
        match next.min_by_key(|(at, due)| (*at, *due as usize)) {
            None => std::future::pending().await,
            Some((at, due)) => {
                sleep_until(at).await;
                self.clear(&[due]);
                due
            }
        }
    }
}
