//! Random numbers that a seed reproduces.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Environment variable with the seed of the run to repeat.
const SEED: &str = "A3S_BOX_TEST_SEED";

/// The generator `SplitMix64`. It is no source of secrets, but it spreads kills evenly over a start
/// and needs no dependency.
pub(crate) struct Random(u64);

impl Random {
    /// Takes the seed from the environment, or makes a new one from the time and the process id,
    /// and prints it.
    pub(crate) fn new() -> Self {
        let seed = match std::env::var(SEED) {
            Ok(seed) => seed.parse().unwrap_or_else(|_| panic!("{SEED}: not a number: `{seed}`")),
            Err(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                u64::from(now.subsec_nanos()) ^ (u64::from(std::process::id()) << 32)
            }
        };
        println!("to repeat this run, set {SEED}={seed}");
        Self(seed)
    }

    /// Makes a generator that returns the same numbers in every run.
    pub(crate) fn fixed(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number. The constants are those of `SplitMix64`.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        // The remainder prefers small numbers by a share of bound / 2^64, which no test can notice.
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// Returns a duration from zero to `longest`, uniformly distributed.
    pub(crate) fn up_to(&mut self, longest: Duration) -> Duration {
        // 32 bits convert to a float without loss, and are fine enough for any start.
        let share = f64::from(u32::try_from(self.next() >> 32).unwrap()) / f64::from(u32::MAX);
        longest.mul_f64(share)
    }
}
