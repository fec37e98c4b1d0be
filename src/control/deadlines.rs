//! The points in time at which something must have happened, or is to be done.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What a deadline is for. In this order if two are due at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The guest has not come up.
    Boot,
    /// `resources.timeout_ms` ran out.
    Timeout,
    /// The grace period of a stop ran out.
    Grace,
    /// The VM has not ended, though everything was done for it.
    GiveUp,
    /// The supervisor wants to hear that this thread lives.
    Watchdog,
    /// The next figures.
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
    /// Sets the deadline `due`, replacing an earlier one.
    pub(super) fn set(&mut self, due: Due, after: Duration) {
        self.at[due as usize] = Some(Instant::now() + after);
    }

    /// Takes deadlines away.
    pub(super) fn clear(&mut self, dues: &[Due]) {
        for due in dues {
            self.at[*due as usize] = None;
        }
    }

    /// Waits for the next deadline, and takes it away. For ever if there is none.
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
