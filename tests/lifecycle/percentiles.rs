//! Percentiles of measured times.

use std::fmt;
use std::time::Duration;

/// Number of measurements, of which one must keep its limit. Other processes on the machine make
/// times longer and never shorter, so one good measurement proves that the shim is fast enough.
pub(crate) const ATTEMPTS: usize = 3;

/// The times that 50, 99 and 100 percent of a set of times do not exceed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Percentiles {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
}

impl Percentiles {
    /// Returns the percentiles by the nearest-rank method. Panics if there are no times.
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
        Self { p50: at(50), p99: at(99), max: at(100) }
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.1?}, p99 {:.1?}, max {:.1?}", self.p50, self.p99, self.max)
    }
}
