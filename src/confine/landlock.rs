//! Which files can be reached: the box's own directory, its shares, `/dev/kvm` and the process's own part
//! of `/proc`. Whatever is open already stays open.

use std::path::Path;

use a3s_box_krun::Access;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::held::Held;
use crate::share::PinnedShare;
use crate::spec::{NetworkSpec, VmSpec};
use crate::state::dir::StateDir;

/// The newest that is asked for; an older kernel gives what it has (`landlock(7)`): ABI 2 rename between
/// directories, 3 truncation, 4 TCP, 5 ioctl, 6 signals and abstract sockets.
const NEWEST: ABI = ABI::V6;

/// The kernel does not restrict.
#[derive(Debug, thiserror::Error)]
pub(super) enum LandlockError {
    #[error("this kernel has no Landlock (Linux 5.13, with `landlock` among its security modules)")]
    Missing,
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
}

/// Restricts this thread, and those that it starts.
pub(super) fn restrict(
    spec: &VmSpec,
    state: &StateDir,
    shares: &[PinnedShare],
) -> Result<Held, LandlockError> {
    let all = AccessFs::from_all(NEWEST);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::from_all(NEWEST))?;
    if spec.network != NetworkSpec::Tsi {
        ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
    }
    let mut ruleset = ruleset.create()?;
    // No program is run from anywhere.
    let write = all & !BitFlags::from(AccessFs::Execute);
    let read = AccessFs::from_read(NEWEST) & !BitFlags::from(AccessFs::Execute);
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let places = [
        (state.directory(), write),
        (Path::new("/dev/kvm"), device),
        (Path::new("/proc/self"), read),
    ];
    for (path, access) in places {
        // One that is not there is not to be reached either: without KVM there is no VM.
        if let Ok(fd) = PathFd::new(path) {
            ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
        }
    }
    for PinnedShare { directory, access, .. } in shares {
        let access = if *access == Access::ReadOnly { read } else { write };
        ruleset = ruleset.add_rule(PathBeneath::new(directory, access))?;
    }
    match ruleset.restrict_self().map_err(LandlockError::from)?.ruleset {
        RulesetStatus::FullyEnforced => Ok(Held::Whole),
        RulesetStatus::PartiallyEnforced => {
            Ok(Held::Part("this kernel's Landlock is older than ABI 6 (Linux 6.12)"))
        }
        RulesetStatus::NotEnforced => Err(LandlockError::Missing),
    }
}
