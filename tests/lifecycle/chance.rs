//! Numbers by chance, the same again for the same seed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The environment variable that repeats a run.
const SEED: &str = "A3S_BOX_TEST_SEED";

/// A generator (`SplitMix64`): its few lines are enough to spread kills over a run.
pub(crate) struct Chance(u64);

impl Chance {
    /// Takes the seed from the environment, or a new one, and prints it.
    pub(crate) fn new() -> Self {
        let seed = match std::env::var(SEED) {
            Ok(seed) => seed.parse().unwrap_or_else(|_| panic!("{SEED}: not a number: `{seed}`")),
            Err(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                u64::from(now.subsec_nanos()) ^ (u64::from(std::process::id()) << 32)
            }
        };
        println!("to repeat: {SEED}={seed}");
        Self(seed)
    }

    /// The same numbers in each run.
    pub(crate) fn fixed(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// A time from zero to `longest`, each as likely as any other.
    pub(crate) fn within(&mut self, longest: Duration) -> Duration {
        // 53 bits are what a float can tell apart.
        let share = f64::from(u32::try_from(self.next() >> 32).unwrap()) / f64::from(u32::MAX);
        longest.mul_f64(share)
    }
}
