//! The budget of names that are looked up on the way to the entries of a layer.
//!
//! The path of an entry can lead through 40 symbolic links, and the target of each can have two
//! thousand names. An archive of a few kilobytes would otherwise take hours, because each of its
//! entries can lead through the same links.

use serde::{Deserialize, Serialize};

/// Limits on the names that are looked up for a layer. A name counts once for each time that it is
/// looked up, whether it is from the path of an entry or from the target of a symbolic link.
///
/// Paths of real images have about ten names, of which links add two or three. With a hard link, which
/// has two paths, an entry takes about 40 steps. No real image is known to take a quarter of these
/// limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLimits {
    /// Steps for one entry. It bounds the time of an entry to some tens of milliseconds, after which
    /// a stop request is heard. A path has at most 2048 names (`PATH_MAX`), and an entry at most two
    /// paths.
    pub entry: u64,
    /// Steps for each entry of a layer, on average.
    pub average: u64,
    /// Steps that a layer may take in addition, so that a small layer may have unusual paths. They
    /// take a few seconds.
    pub floor: u64,
}

impl Default for StepLimits {
    fn default() -> Self {
        Self { entry: 4096, average: 64, floor: 1 << 18 }
    }
}

/// Too many names are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepsError {
    /// For this entry alone.
    #[error(
        "the way to the entry has too many names: expected at most {limit}, with those of symbolic links"
    )]
    Entry {
        /// The limit.
        limit: u64,
    },
    /// For the entries of the layer so far.
    #[error(
        "the ways to the entries of the layer have too many names: expected at most {limit} up to this entry, with those of symbolic links"
    )]
    Layer {
        /// The limit.
        limit: u64,
    },
}

/// Counts the steps of a layer.
#[derive(Debug)]
pub(crate) struct Steps {
    limits: StepLimits,
    entries: u64,
    of_entry: u64,
    of_layer: u64,
}

impl Steps {
    pub(crate) fn new(limits: StepLimits) -> Self {
        Self { limits, entries: 0, of_entry: 0, of_layer: 0 }
    }

    /// Starts the next entry of the layer.
    pub(crate) fn next_entry(&mut self) {
        self.entries += 1;
        self.of_entry = 0;
    }

    /// Starts the next layer.
    pub(crate) fn next_layer(&mut self) {
        *self = Self::new(self.limits);
    }

    /// Counts names that are looked up now or later. They are counted as soon as they are known,
    /// because keeping a list of them takes time, too.
    pub(crate) fn take(&mut self, names: usize) -> Result<(), StepsError> {
        let names = names as u64;
        self.of_entry = self.of_entry.saturating_add(names);
        self.of_layer = self.of_layer.saturating_add(names);
        let StepLimits { entry, average, floor } = self.limits;
        if self.of_entry > entry {
            return Err(StepsError::Entry { limit: entry });
        }
        let limit = self.entries.saturating_mul(average).saturating_add(floor);
        if self.of_layer > limit { Err(StepsError::Layer { limit }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_and_layer_have_a_limit_of_steps() {
        let limits = StepLimits { entry: 10, average: 2, floor: 15 };
        let mut steps = Steps::new(limits);
        steps.next_entry();
        steps.take(10).unwrap();
        assert_eq!(steps.take(1), Err(StepsError::Entry { limit: 10 }));
        steps.next_layer();
        steps.next_entry();
        steps.take(10).unwrap();
        steps.next_entry();
        steps.take(9).unwrap();
        assert_eq!(steps.take(1), Err(StepsError::Layer { limit: 19 }));
        steps.next_layer();
        steps.take(10).unwrap();
        assert_eq!(steps.take(usize::MAX), Err(StepsError::Entry { limit: 10 }));
    }
}
