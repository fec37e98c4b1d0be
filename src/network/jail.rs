//! What the gate and the connector give up, apart from system calls.

use std::io;

use a3s_box_sys::HostError;
use caps::CapSet;
use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use nix::sys::prctl::{set_dumpable, set_no_new_privs, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// Gives up the user, all capabilities and all files, except for the fds that are open. With `user`,
/// this process is root, and becomes this user and group.
///
/// passt is already running when the gate calls this, so none of it applies to passt, which confines
/// itself (passt(1)).
pub(super) fn confine(user: Option<u32>) -> Result<(), HostError> {
    if let Some(id) = user {
        let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
        // The user id comes last: without it, setgroups(2) and setresgid(2) are not permitted.
        setgroups(&[])
            .and_then(|()| setresgid(group, group, group))
            .and_then(|()| setresuid(user, user, user))
            .map_err(HostError::of("become a user without rights"))?;
    }
    // Without root, this process has all capabilities in the shim's user namespace.
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)
            .map_err(io::Error::other)
            .map_err(HostError::of("drop capabilities"))?;
    }
    set_no_new_privs()
        .and_then(|()| set_dumpable(false))
        // The kernel clears the parent-death signal when the user changes, so it is set after that.
        // The signal is only a second way to end. The kernel checks it like a kill(2) by the dying
        // parent, and a confined parent may lack the permission. The end of the socket to the parent
        // covers that case.
        .and_then(|()| set_pdeathsig(Signal::SIGKILL))
        .map_err(HostError::of("confine the process"))?;
    // A Landlock ruleset without any rule denies every access that it handles.
    let deny_files = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .create()?
            .restrict_self()
    };
    deny_files().map(drop).map_err(io::Error::other).map_err(HostError::of("give up all files"))
}
