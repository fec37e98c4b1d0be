//! The attributes of the process that protect the secrets in its memory, and its own limits.

use a3s_box_sys::environment;
use nix::errno::Errno;
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::host::inherited::InheritedFiles;

/// Prefixes of the environment variables that are kept, because the shim reads them later: its own
/// settings, and those of Rust's panic handler.
const KEPT_VARIABLES: [&[u8]; 2] = [b"A3S_BOX_", b"RUST_"];

/// Memory that the VMM may take beyond that of the guest (`RLIMIT_DATA`). Buffers and stacks of a box
/// take some tens of MiB.
const OWN_MEMORY_BYTES: u64 = 1 << 30;

/// Threads that the VMM may have (`RLIMIT_NPROC`). A box has one for each CPU of the guest and a few
/// for each device.
const MAX_THREADS: u64 = 512;

/// What the limits of the process depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limited {
    pub(super) guest_memory_mib: u32,
    /// Whether the VMM has a user of its own.
    pub(super) has_own_user: bool,
}

/// Why the layer cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessLayerError {
    #[error("the environment is in use by another thread")]
    Threads,
    #[error(transparent)]
    System(#[from] Errno),
}

/// Applies the layer.
///
/// A core file would contain the guest's memory and the shim's secrets. Other processes of the same
/// user can neither trace a process that is not dumpable nor read most of its files in `/proc`. The
/// supervisor's environment and open files are removed, because they may be secret and a guest that
/// has taken over the VMM could read them.
pub(super) fn restrict(
    inherited: InheritedFiles,
    limited: Limited,
) -> Result<(), ProcessLayerError> {
    inherited.close();
    let is_kept = |name: &[u8]| KEPT_VARIABLES.iter().any(|prefix| name.starts_with(prefix));
    if !environment::forget(is_kept) {
        return Err(ProcessLayerError::Threads);
    }
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    limit_use(limited)?;
    // Without privileges, Landlock and seccomp require this attribute.
    set_no_new_privs()?;
    Ok(set_dumpable(false)?)
}

/// Bounds the memory and the threads that a VMM can take from the host without `resources.cgroup`.
///
/// The kernel counts the guest's memory in `RLIMIT_DATA`, because it is a private mapping.
fn limit_use(limited: Limited) -> Result<(), Errno> {
    let bytes = (u64::from(limited.guest_memory_mib) << 20) + OWN_MEMORY_BYTES;
    lower(Resource::RLIMIT_DATA, bytes)?;
    // `RLIMIT_NPROC` counts all processes of a user. It holds for this box alone if its user does.
    if limited.has_own_user { lower(Resource::RLIMIT_NPROC, MAX_THREADS) } else { Ok(()) }
}

/// Sets both limits of a resource, but no higher than the hard limit is.
fn lower(resource: Resource, limit: u64) -> Result<(), Errno> {
    let (_, hard) = getrlimit(resource)?;
    let limit = limit.min(hard);
    setrlimit(resource, limit, limit)
}
