//! The root layer: a file system root with everything that a path can name once the VM runs.
//!
//! ```text
//! /                            tmpfs, read-only
//! ├── <paths.state_dir>/<id>   the box's directory, at the same path as outside
//! ├── dev/kvm                  a device node of the root, or without CAP_MKNOD the host's
//! ├── proc/self                this process's own directory of /proc
//! └── run/systemd/journal/     socket, if the log goes to the journal
//! ```
//!
//! Shares are not attached anywhere in it. Each is a detached mount that only an fd refers to, so
//! that `..` at its top leads nowhere ([`detach`]). The box's directory is a mount of its own from
//! the start (`StateDir::acquire`) and is moved here. Fds that were opened in it before therefore
//! cannot leave it either.
//!
//! All mounts are nosuid. The root and the mounts from the host are read-only. The box's directory
//! and the shares, which contain files of the guest, are nodev and nosymfollow.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use a3s_box_krun::Access;
use a3s_box_sys::{HostError, mount_setattr};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, SFlag, mknod, stat, umask};
use nix::unistd::{chdir, fchdir, pivot_root};
use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::host::detached_tmpfs;
use crate::report::log;
use crate::share::PinnedShare;
use crate::state::dir::StateDir;

/// Attributes of each mount that contains files of the guest. The guest can create set-user-id
/// files, device nodes and symbolic links there, and the host must not act on them.
const FILES_ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW);

/// Attributes of the root itself, which contains mount points and `/dev/kvm`, and of the mounts from
/// the host. They are not nodev, because they have that device. Nobody can make another one there.
const HOST_ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR_RDONLY);

/// The device with which libkrun makes a VM.
const KVM: &str = "/dev/kvm";

/// Options of the root's tmpfs. The limits are generous for a few mount points.
const TMPFS_OPTIONS: [(&str, &str); 3] = [("size", "1m"), ("nr_inodes", "512"), ("mode", "0755")];

/// A detached mount with its path in the new root, which is the same as in the old one.
struct Entry {
    /// Path without the leading slash.
    path: PathBuf,
    mount: OwnedFd,
    is_directory: bool,
}

/// Makes the root and enters it. After an error, this process is in its old root, as before.
pub(super) fn enter(state: &StateDir, shares: &mut [PinnedShare]) -> Result<(), HostError> {
    // Clones are made before the old root is gone, because `open_tree` clones only mounts of the
    // current mount namespace.
    for share in shares {
        let mount = detach(share)?;
        share.directory.replace(mount);
    }
    let directory = state.directory();
    let parent = directory.parent().unwrap_or(directory);
    let entries = host_entries()?;
    let root = detached_tmpfs::make(&TMPFS_OPTIONS).map_err(HostError::of("make a tmpfs"))?;
    let own =
        open_mount(directory, OpenTreeFlags::empty()).map_err(HostError::at("open", directory))?;
    mount_setattr::set(&own, FILES_ATTRIBUTES, true)
        .map_err(HostError::at("restrict", directory))?;
    // pivot_root(2) requires the new root to be attached. The state directory serves as its mount
    // point. It is then hidden below the new root, and is reachable only through this fd.
    let hidden =
        open_mount(parent, OpenTreeFlags::empty()).map_err(HostError::at("open", parent))?;
    attach(&root, parent).map_err(HostError::at("mount a tmpfs on", parent))?;
    let own = Entry { path: relative(directory), mount: own, is_directory: true };
    let entered = fill(&root, &own, &entries).and_then(|()| change_to(&root));
    if entered.is_err() {
        // The box's directory may have been moved into the new root. It must be back in its place,
        // because the shim goes on without this layer if `confinement.level` is `best_effort`.
        let id = directory.file_name().unwrap_or_default();
        let _moved_back = attach(&own.mount, &fd_path(&hidden).join(id));
        let _unmounted = umount2(parent, MntFlags::MNT_DETACH);
    }
    entered
}

/// Clones the mounts of everything in the new root except for the box's directory.
///
/// A file that the host lacks is left out. The code that needs it fails later and reports it.
fn host_entries() -> Result<Vec<Entry>, HostError> {
    let own_process = PathBuf::from(format!("/proc/{}", std::process::id()));
    let mut entries = vec![Entry::of_host(&own_process, "proc/self".into(), true)?];
    let files = [Some(Path::new(KVM)), log::journal_socket()];
    for file in files.into_iter().flatten().filter(|file| file.exists()) {
        entries.push(Entry::of_host(file, relative(file), false)?);
    }
    Ok(entries)
}

fn fill(root: &OwnedFd, own: &Entry, entries: &[Entry]) -> Result<(), HostError> {
    let directory = fd_path(root);
    // Others can pass through the directories of the root: the VMM, once it has become another user.
    let umask_before = umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let filled = fill_in(&directory, own, entries);
    umask(umask_before);
    filled?;
    // The root becomes read-only only now, because mount points had to be made in it.
    mount_setattr::set(root, HOST_ATTRIBUTES, false).map_err(HostError::of("restrict the new root"))
}

fn fill_in(directory: &Path, own: &Entry, entries: &[Entry]) -> Result<(), HostError> {
    let has_device = make_kvm(directory).map_err(HostError::at("make", Path::new(KVM)))?;
    let is_left = |entry: &&Entry| !(has_device && entry.path == relative(Path::new(KVM)));
    let entries = [own].into_iter().chain(entries.iter().filter(is_left));
    entries.into_iter().try_for_each(|entry| entry.attach_in(directory))
}

/// Makes a `/dev/kvm` of the new root's own, which a VMM that is no user of the host can open,
/// whatever the mode of the host's is. Returns whether that was possible: it needs `CAP_MKNOD` over
/// the host, and the host must have the device.
fn make_kvm(root: &Path) -> io::Result<bool> {
    let device = match stat(KVM) {
        Ok(found) if found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits() => found.st_rdev,
        _ => return Ok(false),
    };
    let path = root.join(relative(Path::new(KVM)));
    DirBuilder::new().recursive(true).mode(0o755).create(path.parent().unwrap_or(root))?;
    match mknod(&path, SFlag::S_IFCHR, Mode::empty(), device) {
        Err(Errno::EPERM) => return Ok(false),
        made => made?,
    }
    // The umask does not apply to this call.
    fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    Ok(true)
}

/// Makes `root` the root of this process. `pivot_root(".", ".")` stacks the old root on top of the
/// new one, so that the unmount of `.` removes the old root and needs no directory for it
/// (`pivot_root(2)`).
fn change_to(root: &OwnedFd) -> Result<(), HostError> {
    fchdir(root).map_err(HostError::of("enter the new root"))?;
    pivot_root(".", ".").map_err(HostError::of("change the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(HostError::of("leave the old root"))?;
    chdir("/").map_err(HostError::of("enter the new root"))
}

impl Entry {
    /// Returns a file or directory of the host with its path in the new root. Its mount is
    /// read-only, so that its mode, owner and attributes cannot be changed. That does not apply to
    /// what is written to a device or sent to a socket.
    fn of_host(file: &Path, path: PathBuf, is_directory: bool) -> Result<Self, HostError> {
        let mount = open_mount(file, OpenTreeFlags::OPEN_TREE_CLONE)
            .map_err(HostError::at("clone", file))?;
        mount_setattr::set(&mount, HOST_ATTRIBUTES, false)
            .map_err(HostError::at("restrict", file))?;
        Ok(Self { path, mount, is_directory })
    }

    /// Makes the mount point below `root` and attaches the mount to it.
    fn attach_in(&self, root: &Path) -> Result<(), HostError> {
        let target = root.join(&self.path);
        let directory = if self.is_directory { Some(target.as_path()) } else { target.parent() };
        let make = || {
            DirBuilder::new().recursive(true).mode(0o755).create(directory.unwrap_or(root))?;
            // The mount point of a file must be a file.
            if self.is_directory { Ok(()) } else { File::create(&target).map(drop) }
        };
        make().map_err(HostError::at("make a place for", &self.path))?;
        attach(&self.mount, &target).map_err(HostError::at("mount", &self.path))
    }
}

/// Returns a detached mount of a share's directory and of all mounts below it.
pub(super) fn detach(share: &PinnedShare) -> Result<OwnedFd, HostError> {
    let PinnedShare { tag, directory, access, .. } = share;
    let share = Path::new(tag);
    let flags = OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount =
        open_tree(directory, "", flags).map_err(HostError::at("detach the share", share))?;
    let access = match access {
        Access::ReadOnly => MountAttrFlags::MOUNT_ATTR_RDONLY,
        Access::ReadWrite => MountAttrFlags::empty(),
    };
    mount_setattr::set(&mount, FILES_ATTRIBUTES | access, true)
        .map_err(HostError::at("restrict the share", share))?;
    Ok(mount)
}

fn open_mount(path: &Path, flags: OpenTreeFlags) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, flags | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

/// Returns a path to the file that `fd` refers to.
fn fd_path(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

fn attach(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    // MOVE_MOUNT_T_SYMLINKS follows the magic link of `fd_path`.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    Ok(move_mount(mount, "", CWD, target, flags)?)
}
