//! The user namespace layer of a shim that root started: the VMM becomes a user that the host does
//! not have.
//!
//! ```text
//!  host                     first id of the box …                       … + 65,535
//!                           │                                           │
//!  box's user namespace     0: the VMM   1 … 65,534: users of shares    65,535: gate and passt
//! ```
//!
//! The namespace owns no mount and no device, so the VMM's capabilities in it reach the files of
//! the shares only. These are mounts that map owners ([`mount_setattr::map_owners`]): a file of the
//! host's user 1000 belongs to user 1000 of the guest, and the VMM can change it as if it were root.
//! Every other open file still belongs to the host's root, whatever the VMM may do through its fd:
//! it can change neither mode, owner nor attributes of it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use a3s_box_sys::{HostError, mount_setattr, user_namespace};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::jail;
use crate::host::box_ids::BoxIds;
use crate::host::process::{self, Signals};
use crate::share::PinnedShare;
use crate::state::dir::StateDir;

/// The user namespace of a box, before this process enters it.
#[derive(Debug)]
pub(super) struct Namespace {
    fd: OwnedFd,
    /// Id of the host that its user 0 has.
    vmm: u32,
}

/// Makes the namespace, and tries whether the owners of the shares' files can be mapped. Nothing
/// changes for this process.
pub(super) fn prepare(ids: &BoxIds, shares: &[PinnedShare]) -> Result<Namespace, HostError> {
    let fd = user_namespace::make(ids.map()).map_err(HostError::of("make a user namespace"))?;
    for share in shares {
        map_owners(&jail::detach(share)?, share, &fd)?;
    }
    Ok(Namespace { fd, vmm: ids.vmm() })
}

/// Enters the namespace as its user 0. Before that, it maps the owners of the shares, which must be
/// detached mounts, and gives the VMM the files in the box directory.
pub(super) fn enter(
    Namespace { fd, vmm }: &Namespace,
    state: &StateDir,
    shares: &[PinnedShare],
    signals: &Signals,
) -> Result<(), HostError> {
    for share in shares {
        map_owners(&share.directory, share, fd)?;
    }
    state.hand_over(*vmm)?;
    setns(fd, CloneFlags::CLONE_NEWUSER).map_err(HostError::of("enter the user namespace"))?;
    // The kernel has reset the bits of the thread that keep its capabilities.
    process::keep_capabilities()?;
    // The user id comes last, as the kernel checks the calls before it with that of this thread.
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])
        .and_then(|()| setresgid(group, group, group))
        .and_then(|()| setresuid(user, user, user))
        .map_err(HostError::of("become a user of the box"))?;
    signals.watch_parent_again()
}

fn map_owners(mount: impl AsFd, share: &PinnedShare, namespace: &OwnedFd) -> Result<(), HostError> {
    // EINVAL is the error of a file system that cannot do it.
    mount_setattr::map_owners(mount, namespace)
        .map_err(HostError::at("map the owners of the files of the share", Path::new(&share.tag)))
}
