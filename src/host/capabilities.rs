//! Capabilities of this process (`capabilities(7)`).

use caps::errors::CapsError;
use caps::{CapSet, Capability};

/// Drops all capabilities but these from all sets. They cannot be regained.
///
/// Callers must have one thread only, because each thread has its own sets.
pub(crate) fn keep_only(kept: &[Capability]) -> Result<(), CapsError> {
    // The bounding set comes first, because dropping from it requires CAP_SETPCAP.
    for capability in caps::runtime::thread_all_supported() {
        if !kept.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    // The kernel refuses to add a capability to the permitted set, so only those that are held
    // stay.
    let held = caps::read(None, CapSet::Permitted)?;
    let kept = held.into_iter().filter(|held| kept.contains(held)).collect();
    // The effective set must stay within the permitted set at any time.
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}
