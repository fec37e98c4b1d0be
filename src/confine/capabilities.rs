//! The capabilities that are left: what libkrun's virtio-fs server needs to give files the owners and
//! modes that the guest's kernel says.

use caps::errors::CapsError;
use caps::{CapSet, Capability};

/// What is kept. `CAP_SETUID` and `CAP_SETGID` are there because the server acts as the owner of each
/// request (`passthrough.rs`, libkrun 1.19.7). Not kept: `CAP_MKNOD`, as the guest's devices are not the
/// host's, and `CAP_DAC_READ_SEARCH`, which opens files by handle, past every directory.
const KEPT: [Capability; 7] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
];

/// Drops all others, for good.
pub(super) fn drop_all_but_files() -> Result<(), CapsError> {
    // The bounding set first: dropping from it is a capability of its own.
    for capability in caps::runtime::thread_all_supported() {
        if !KEPT.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    let held = caps::read(None, CapSet::Permitted)?;
    let kept = KEPT.into_iter().filter(|capability| held.contains(capability)).collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}
