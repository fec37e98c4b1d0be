//! The attributes of the process that protect the secrets in its memory.

use a3s_box_sys::environment;
use nix::errno::Errno;
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, setrlimit};

use crate::host::inherited::InheritedFiles;

/// Prefixes of the environment variables that are kept, because the shim reads them later: its own
/// settings, and those of Rust's panic handler.
const KEPT_VARIABLES: [&[u8]; 2] = [b"A3S_BOX_", b"RUST_"];

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
pub(super) fn restrict(inherited: InheritedFiles) -> Result<(), ProcessLayerError> {
    inherited.close();
    let is_kept = |name: &[u8]| KEPT_VARIABLES.iter().any(|prefix| name.starts_with(prefix));
    if !environment::forget(is_kept) {
        return Err(ProcessLayerError::Threads);
    }
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // Without privileges, Landlock and seccomp require this attribute.
    set_no_new_privs()?;
    Ok(set_dumpable(false)?)
}
