//! The Landlock layer (`landlock(7)`): which files the shim can open.
//!
//! They are the box's own directory, the files of its image's disk, its shares, `/dev/kvm`, and this
//! process's directory in `/proc`. Landlock does not restrict fds that are already open.

use std::path::Path;

use a3s_box_krun::Access;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::extent::Extent;
use crate::rootfs::block::Disks;
use crate::share::PinnedShare;
use crate::spec::{NetworkSpec, VmSpec};
use crate::state::dir::StateDir;

/// The newest ABI whose restrictions are requested.
///
/// An older host kernel applies those that it supports: ABI 2 adds renames between directories, 3
/// truncation, 4 TCP, 5 ioctl on devices, 6 signals and abstract Unix sockets.
const NEWEST: ABI = ABI::V6;

/// Why the layer cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum LandlockError {
    #[error("this kernel has no Landlock (Linux 5.13, with `landlock` among its security modules)")]
    Missing,
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
}

/// Restricts this thread and the threads that it starts later.
pub(super) fn restrict(
    spec: &VmSpec,
    state: &StateDir,
    disks: Option<&Disks>,
    shares: &[PinnedShare],
) -> Result<Extent, LandlockError> {
    let all = AccessFs::from_all(NEWEST);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::from_all(NEWEST))?;
    // A ruleset denies each access that it handles and no rule allows. With TSI, the shim binds and
    // connects the guest's TCP sockets, so TCP is not handled.
    if spec.network != NetworkSpec::Tsi {
        ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
    }
    let mut ruleset = ruleset.create()?;
    // No rule contains `Execute`: the shim runs no executable after this point.
    let write = all & !BitFlags::from(AccessFs::Execute);
    let read = AccessFs::from_read(NEWEST) & !BitFlags::from(AccessFs::Execute);
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let rules = [
        (state.directory(), write),
        (Path::new("/dev/kvm"), device),
        (Path::new("/proc/self"), read),
    ];
    for (path, access) in rules {
        // A path that cannot be opened needs no rule. Without `/dev/kvm`, libkrun fails later and
        // reports the reason.
        if let Ok(fd) = PathFd::new(path) {
            ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
        }
    }
    // libkrun opens the files of the image's disk again, by their fds. Landlock allows that for
    // files in memory, and accepts no rule for them.
    for file in disks.into_iter().flat_map(Disks::cached_files) {
        ruleset = ruleset.add_rule(PathBeneath::new(file, AccessFs::ReadFile))?;
    }
    for PinnedShare { directory, access, .. } in shares {
        let access = if *access == Access::ReadOnly { read } else { write };
        ruleset = ruleset.add_rule(PathBeneath::new(directory, access))?;
    }
    match ruleset.restrict_self().map_err(LandlockError::from)?.ruleset {
        RulesetStatus::FullyEnforced => Ok(Extent::Full),
        RulesetStatus::PartiallyEnforced => {
            Ok(Extent::Partial("this kernel's Landlock is older than ABI 6 (Linux 6.12)"))
        }
        RulesetStatus::NotEnforced => Err(LandlockError::Missing),
    }
}
