//! The root of an unpacker that makes a tree: nothing but its own staging directory.
//!
//! ```text
//! /              tmpfs, read-only
//! ├── layer      the staging directory, without devices and set-user-id programs
//! └── proc/self  this process's own directory of /proc, read-only
//! ```
//!
//! Landlock limits what a process opens, makes and removes. It does not limit mode, owner, times and
//! extended attributes, and a tree needs the calls that change them. Only a root without other files
//! keeps an unpacker that root has started from making a set-user-id program on the host.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use a3s_box_sys::{HostError, mount_setattr};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{chdir, fchdir, pivot_root};
use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::host::detached_tmpfs;

/// Place of the staging directory in the root.
const LAYER: &str = "layer";

/// Place of the directory that `/proc/self` leads to elsewhere.
const OWN_PROCESS: &str = "proc/self";

/// Options of the tmpfs, which only has mount points.
const TMPFS_OPTIONS: [(&str, &str); 3] = [("size", "64k"), ("nr_inodes", "16"), ("mode", "0755")];

/// Attributes of the mount of the staging directory. Nobody runs or opens what is in it here.
const LAYER_ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Attributes of all other mounts.
const READ_ONLY: MountAttrFlags = LAYER_ATTRIBUTES.union(MountAttrFlags::MOUNT_ATTR_RDONLY);

/// Makes the root and enters it. Returns the staging directory as an fd that does not lead out of it.
pub(super) fn enter(staging: &OwnedFd) -> Result<OwnedFd, HostError> {
    // Detached mounts are made before this process leaves the mount namespace of the shim: the kernel
    // clones only mounts of the current one.
    let own_process = format!("/proc/{}", std::process::id());
    let own_process =
        clone(CWD, &own_process, READ_ONLY).map_err(HostError::of("clone /proc/self"))?;
    let layer = clone(staging, "", LAYER_ATTRIBUTES)
        .map_err(HostError::of("clone the staging directory"))?;
    let root = detached_tmpfs::make(&TMPFS_OPTIONS).map_err(HostError::of("make a tmpfs"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(HostError::of("make a mount namespace"))?;
    // The kernel would otherwise propagate the mounts below to the shim.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(HostError::of("make all mounts private"))?;
    // pivot_root(2) requires the new root to be attached.
    attach(&root, CWD, "/").map_err(HostError::of("mount a tmpfs"))?;
    for (mount, place) in [(&layer, LAYER), (&own_process, OWN_PROCESS)] {
        make_directories(&root, Path::new(place))
            .and_then(|()| attach(mount, &root, place))
            .map_err(HostError::of("fill the root of the unpacker"))?;
    }
    mount_setattr::set(&root, READ_ONLY, false)
        .map_err(HostError::of("restrict the root of the unpacker"))?;
    // `pivot_root(".", ".")` stacks the old root on top of the new one, so that the unmount of `.`
    // removes the old root and needs no directory for it (`pivot_root(2)`).
    fchdir(&root)
        .and_then(|()| pivot_root(".", "."))
        .and_then(|()| umount2(".", MntFlags::MNT_DETACH))
        .and_then(|()| chdir("/"))
        .map_err(HostError::of("change the root of the unpacker"))?;
    // The fd that came from the shim leads out of this root.
    let inside = File::open(Path::new("/").join(LAYER));
    inside.map(OwnedFd::from).map_err(HostError::of("open the staging directory"))
}

/// Returns a detached mount of a directory, with more attributes.
fn clone(directory: impl AsFd, path: &str, more: MountAttrFlags) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(directory, path, flags | OpenTreeFlags::AT_EMPTY_PATH)?;
    mount_setattr::set(&mount, more, false)?;
    Ok(mount)
}

fn make_directories(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let mut ancestors: Vec<&Path> = path.ancestors().collect();
    ancestors.pop();
    ancestors.iter().rev().try_for_each(|ancestor| Ok(mkdirat(root, *ancestor, Mode::S_IRWXU)?))
}

fn attach(mount: &OwnedFd, directory: impl AsFd, target: &str) -> io::Result<()> {
    Ok(move_mount(mount, "", directory, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}
