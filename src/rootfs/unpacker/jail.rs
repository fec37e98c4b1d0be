//! What an unpacker gives up, apart from system calls and its root.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use a3s_box_oci::Task;
use a3s_box_sys::HostError;
use caps::Capability;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, setrlimit};

use crate::host::capabilities::keep_only;

/// The newest ABI whose restrictions are requested. An older kernel applies those that it supports.
const NEWEST: ABI = ABI::V6;

/// The capabilities that a tree needs: for owners, modes and `security.*` attributes of the image's
/// files, and for directories that belong to its users.
///
/// `CAP_SYS_ADMIN` is for `trusted.*` attributes, by which overlayfs of root marks directories. The
/// filter of system calls refuses all else that it permits. No capability is needed for the device
/// of a whiteout.
const KEPT_FOR_TREES: [Capability; 6] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SYS_ADMIN,
];

/// Confines this process to the files of its task.
///
/// Callers must have one thread only, and must have opened all other files.
pub(super) fn confine(task: &Task, files: &[OwnedFd]) -> Result<(), HostError> {
    let kept: &[Capability] = if task.names_files() { &KEPT_FOR_TREES } else { &[] };
    keep_only(kept)
        .map_err(io::Error::other)
        .map_err(HostError::of("drop capabilities of the unpacker"))?;
    set_no_new_privs()
        .and_then(|()| set_dumpable(false))
        .and_then(|()| setrlimit(Resource::RLIMIT_CORE, 0, 0))
        .map_err(HostError::of("confine the unpacker"))?;
    restrict_files(task, files)
        .map_err(io::Error::other)
        .map_err(HostError::of("give up the files of the host"))
}

/// Denies all files but those of a tree, and all networks. Open files stay usable.
fn restrict_files(task: &Task, files: &[OwnedFd]) -> Result<(), RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let forbidden =
        AccessFs::Execute | AccessFs::MakeSock | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let read = BitFlags::from(AccessFs::ReadFile) | AccessFs::ReadDir;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    if let Some(directory) = task.directory().and_then(|i| files.get(i)) {
        let mounts = files.iter().skip(task.mounts());
        for file in [directory].into_iter().chain(mounts) {
            ruleset = ruleset.add_rule(PathBeneath::new(file, all & !forbidden))?;
        }
        // Errors name the ids that are mapped in this process.
        if let Ok(own_process) = PathFd::new(Path::new("/proc/self")) {
            ruleset = ruleset.add_rule(PathBeneath::new(own_process, read))?;
        }
    }
    // The VMM is confined as the config requires, or the box does not start. Landlock is a part of
    // that, so a kernel without it needs no second error here.
    ruleset.restrict_self().map(drop)
}
