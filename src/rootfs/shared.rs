//! A shared root: the layers of an image, mounted below a writable directory of the host.

use std::path::Path;

use a3s_box_core::event::RootMethod;
use a3s_box_oci::{OverlaySpec, Stack};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::error::RootfsError;
use crate::state::dir::StateDir;
use crate::state::disk::Disk;

/// Mounts the root of the layers, with the writable directory on `disk`.
pub(super) fn mount(
    stack: &Stack,
    disk: &Disk,
    state: &StateDir,
) -> Result<RootMethod, RootfsError> {
    let target = state.make_root()?;
    let overlay = OverlaySpec { stack, upper: disk.upper(), work: disk.work(), target };
    Ok(match overlay.mount()? {
        a3s_box_oci::RootMethod::Empty => RootMethod::Empty,
        a3s_box_oci::RootMethod::Overlay => RootMethod::Overlay,
        a3s_box_oci::RootMethod::Reflink => RootMethod::Reflink,
        a3s_box_oci::RootMethod::Copy => RootMethod::Copy,
    })
}

/// Unmounts the root and the disk.
pub(super) fn unmount(state: &StateDir) -> Result<(), RootfsError> {
    // A lazy unmount succeeds even if a file is open, and this process ends soon.
    let unmount = |path: &Path| umount2(path, MntFlags::MNT_DETACH);
    unmount(&state.root()).map_err(|errno| RootfsError::Unmount(errno.into()))?;
    match unmount(&state.disk()) {
        // A disk in the state directory is no mount: its directory is missing (ENOENT), or it is an
        // ordinary directory (EINVAL).
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(RootfsError::Unmount(errno.into())),
    }
}
