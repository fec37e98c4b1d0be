//! What the unpacker gives up, apart from system calls.

use std::io;

use a3s_box_sys::HostError;
use caps::Capability;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use nix::sys::prctl::{set_dumpable, set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;

use super::message::Job;
use crate::host::capabilities::keep_only;

/// The newest ABI whose restrictions are requested. An older kernel applies those that it supports.
const NEWEST: ABI = ABI::V6;

/// The capabilities that unpacking a tree needs: for owners, modes, devices and `security.*`
/// attributes of the image's files, and for directories that belong to its users.
///
/// `CAP_DAC_READ_SEARCH` is for a layout of another user, whose blobs root can read.
/// `CAP_SYS_ADMIN` is for `trusted.*` attributes, by which overlayfs of root marks directories. The
/// filter of system calls refuses all else that it permits.
const KEPT: [Capability; 8] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_MKNOD,
    Capability::CAP_SETFCAP,
    Capability::CAP_SYS_ADMIN,
];

/// Confines this process to the layout and the cache of `job`.
///
/// Callers must have one thread only, and must have opened all other files.
pub(super) fn confine(job: &Job) -> Result<(), HostError> {
    keep_only(&KEPT)
        .map_err(io::Error::other)
        .map_err(HostError::of("drop capabilities of the unpacker"))?;
    set_no_new_privs()
        .and_then(|()| set_dumpable(false))
        .and_then(|()| setrlimit(Resource::RLIMIT_CORE, 0, 0))
        .and_then(|()| set_pdeathsig(Signal::SIGKILL))
        .map_err(HostError::of("confine the unpacker"))?;
    restrict_files(job)
        .map_err(io::Error::other)
        .map_err(HostError::of("give up the files of the host"))
}

/// Denies all files but those of the layout and the cache, and all networks.
fn restrict_files(job: &Job) -> Result<(), RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let forbidden = AccessFs::Execute | AccessFs::MakeSock | AccessFs::IoctlDev;
    let read = BitFlags::from(AccessFs::ReadFile) | AccessFs::ReadDir;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    // Unpacking reads the id maps of this process.
    let rules = [
        (job.cache_dir.as_path(), all & !forbidden),
        (job.layout.as_path(), read),
        ("/proc/self".as_ref(), read),
    ];
    for (path, access) in rules {
        // A path that cannot be opened needs no rule. Unpacking then fails and reports the reason.
        if let Ok(fd) = PathFd::new(path) {
            ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
        }
    }
    // The VMM is confined as the config requires, or the box does not start. Landlock is a part of
    // that, so a kernel without it needs no second error here.
    ruleset.restrict_self().map(drop)
}
