//! Which files can be reached: the box's own folder, its shares, `/dev/kvm` and the process's own part
//! of `/proc`. Whatever is open already stays open.

use std::path::Path;

use a3s_box_core::event::LayerStatus;
use a3s_box_krun::Access;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::spec::{MountSource, NetworkSpec, VmSpec};
use crate::state_dir::StateDir;

/// The newest that is asked for; an older kernel gives what it has (`landlock(7)`): ABI 2 rename between
/// folders, 3 truncation, 4 TCP, 5 ioctl, 6 signals and abstract sockets.
const NEWEST: ABI = ABI::V6;

/// Restricts this thread, and those that it starts. Says how much of it the kernel knows; nothing if it
/// has no Landlock.
pub(super) fn restrict(
    spec: &VmSpec,
    state: &StateDir,
) -> Result<Option<LayerStatus>, RulesetError> {
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
    let mut places: Vec<(&Path, BitFlags<AccessFs>)> = vec![
        (state.folder(), write),
        (Path::new("/dev/kvm"), device),
        (Path::new("/proc/self"), read),
    ];
    for mount in &spec.mounts {
        if let MountSource::Virtiofs { folder, access, .. } = &mount.source {
            places.push((&folder.path, if *access == Access::ReadOnly { read } else { write }));
        }
    }
    for (path, access) in places {
        // One that is not there is not to be reached either: without KVM there is no VM.
        if let Ok(fd) = PathFd::new(path) {
            ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
        }
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Some(LayerStatus::Applied),
        RulesetStatus::PartiallyEnforced => Some(LayerStatus::Partial),
        RulesetStatus::NotEnforced => None,
    })
}
