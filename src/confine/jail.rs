//! A root of its own: all that can be named by a path once the VM runs.
//!
//! ```text
//! /                            tmpfs, read-only
//! ├── <paths.state_dir>/<id>   the box's directory, at the path that it has outside
//! ├── dev/kvm
//! ├── proc/self                this process's own part of /proc, and no other's
//! └── run/systemd/journal/     socket, where the log is the journal
//! ```
//!
//! Shares hang nowhere: each is a mount that only an fd leads to, and above which there is nothing
//! ([`detach`]). The box's directory is a mount of its own from the start (`StateDir::acquire`), which is
//! moved here, so that what is open in it leads nowhere else either.
//!
//! On no mount a device node is one, nor a set-user-id bit, and no symbolic link is followed.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use a3s_box_krun::Access;
use a3s_box_sys::{HostError, mount_setattr};
use nix::mount::{MntFlags, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::report::log;
use crate::share::PinnedShare;
use crate::state::dir::StateDir;

/// What holds on every mount that the guest's files are on.
const OF_FILES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW);

/// What holds on the others: one of them is a device.
const OF_PIECES: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// What holds on the root itself, which has nothing in it but what mounts hang on.
const OF_ROOT: MountAttrFlags =
    OF_PIECES.union(MountAttrFlags::MOUNT_ATTR_NODEV).union(MountAttrFlags::MOUNT_ATTR_RDONLY);

/// Room for the few directories and files that mounts hang on.
const LIMITS: [(&str, &str); 3] = [("size", "1m"), ("nr_inodes", "512"), ("mode", "0700")];

/// Something of the old root for the new one, whose path stays the same.
struct Piece {
    /// Without the first slash.
    path: PathBuf,
    mount: OwnedFd,
    is_directory: bool,
}

/// Makes the root and enters it. After an error this process is where it was.
pub(super) fn enter(state: &StateDir, shares: &mut [PinnedShare]) -> Result<(), HostError> {
    for share in shares {
        let mount = detach(&share.directory, share.access)
            .map_err(HostError::of("detach a shared directory"))?;
        share.directory.replace(mount);
    }
    let directory = state.directory();
    let parent = directory.parent().unwrap_or(directory);
    let pieces = pieces()?;
    let root = tmpfs().map_err(HostError::of("make a tmpfs"))?;
    let own =
        open_mount(directory, OpenTreeFlags::empty()).map_err(HostError::at("open", directory))?;
    mount_setattr::set(&own, OF_FILES, true).map_err(HostError::at("restrict", directory))?;
    // The new root has to hang somewhere first, and hides what is there.
    let hidden =
        open_mount(parent, OpenTreeFlags::empty()).map_err(HostError::at("open", parent))?;
    attach(&root, parent).map_err(HostError::at("mount a tmpfs on", parent))?;
    let own = Piece { path: relative(directory), mount: own, is_directory: true };
    let entered = fill(&root, &own, &pieces).and_then(|()| change_to(&root));
    if entered.is_err() {
        let id = directory.file_name().unwrap_or_default();
        let _moved_back = attach(&own.mount, &through(&hidden).join(id));
        let _gone = umount2(parent, MntFlags::MNT_DETACH);
    }
    entered
}

/// What is there beside the box's directory. What this host does not have is missing in the new root as
/// well, and whoever needs it says so.
fn pieces() -> Result<Vec<Piece>, HostError> {
    let own_process = PathBuf::from(format!("/proc/{}", std::process::id()));
    let mount = clone(&own_process, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    let mut pieces = vec![Piece { path: "proc/self".into(), mount, is_directory: true }];
    let files = [Some(Path::new("/dev/kvm")), log::journal_socket()];
    for file in files.into_iter().flatten().filter(|file| file.exists()) {
        let mount = clone(file, MountAttrFlags::empty())?;
        pieces.push(Piece { path: relative(file), mount, is_directory: false });
    }
    Ok(pieces)
}

fn fill(root: &OwnedFd, own: &Piece, pieces: &[Piece]) -> Result<(), HostError> {
    [own].into_iter().chain(pieces).try_for_each(|piece| piece.hang(&through(root)))?;
    mount_setattr::set(root, OF_ROOT, false).map_err(HostError::of("restrict the new root"))
}

/// The old root is put on top of the new one, and taken away (`pivot_root(2)`).
fn change_to(root: &OwnedFd) -> Result<(), HostError> {
    fchdir(root).map_err(HostError::of("enter the new root"))?;
    pivot_root(".", ".").map_err(HostError::of("change the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(HostError::of("leave the old root"))?;
    chdir("/").map_err(HostError::of("enter the new root"))
}

impl Piece {
    /// Mounts it in the new root, and makes what it hangs on.
    fn hang(&self, root: &Path) -> Result<(), HostError> {
        let target = root.join(&self.path);
        let directory = if self.is_directory { Some(target.as_path()) } else { target.parent() };
        let make = || {
            DirBuilder::new().recursive(true).mode(0o700).create(directory.unwrap_or(root))?;
            if self.is_directory { Ok(()) } else { File::create(&target).map(drop) }
        };
        make().map_err(HostError::at("make a place for", &self.path))?;
        attach(&self.mount, &target).map_err(HostError::at("mount", &self.path))
    }
}

/// A mount of `directory` and of what is mounted below it, which hangs nowhere.
fn detach(directory: impl AsFd, access: Access) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(directory, "", flags)?;
    let access = match access {
        Access::ReadOnly => MountAttrFlags::MOUNT_ATTR_RDONLY,
        Access::ReadWrite => MountAttrFlags::empty(),
    };
    mount_setattr::set(&mount, OF_FILES | access, true)?;
    Ok(mount)
}

fn tmpfs() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in LIMITS {
        fsconfig_set_string(&context, name, value)?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

fn open_mount(path: &Path, flags: OpenTreeFlags) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, flags | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

/// A mount of `path` that hangs nowhere yet.
fn clone(path: &Path, attributes: MountAttrFlags) -> Result<OwnedFd, HostError> {
    let mount =
        open_mount(path, OpenTreeFlags::OPEN_TREE_CLONE).map_err(HostError::at("clone", path))?;
    let attributes = attributes | OF_PIECES;
    mount_setattr::set(&mount, attributes, false).map_err(HostError::at("restrict", path))?;
    Ok(mount)
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

/// A path to what is open.
fn through(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

fn attach(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    Ok(move_mount(mount, "", CWD, target, flags)?)
}
