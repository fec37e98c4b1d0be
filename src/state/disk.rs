//! The disk of a shared root: the place and the size limit of the files that a box writes to it.
//! A block root has a disk of the VM instead ([`block_disk`](super::block_disk)).
//!
//! | `resources.disk` | `resources.disk_mib` | `upper/` and `work/` are in |
//! |------------------|----------------------|-----------------------------|
//! | `state_dir`      | absent               | the box directory           |
//! | `state_dir`      | given                | ext4 in a sparse file without a name, mounted at `disk/` |
//! | `memory`         | either               | a tmpfs at `disk/`          |
//!
//! The mounts are in the shim's own mount namespace, so the kernel removes them when the process
//! ends. `mount(8)` sets up the loop device of the image with `LO_FLAGS_AUTOCLEAR`, so the kernel
//! frees the device with its last mount. The device keeps the file after the file has lost its name
//! `disk.img`. Without a name, a VMM that is root of the host cannot write to it, which could attack
//! the host's ext4 driver.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use a3s_box_core::box_dir::{UPPER, WORK};
use a3s_box_core::config::DiskPlace;
use a3s_box_core::event::UpperPlace;
use a3s_box_oci::StoreError;
use a3s_box_sys::HostError;
use nix::mount::{MsFlags, mount};
use rustix::fs::statvfs;

use crate::host::command::{self, Ended};
use crate::spec::VmSpec;
use crate::state::dir::StateDir;

/// Inodes for each MiB of a tmpfs, which is one for each page. An empty file uses kernel memory of
/// about one page, and the limit on the size of the tmpfs does not count it.
const MEMORY_INODES_PER_MIB: u64 = 256;

/// Why the disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("`{program}`, which {needed_by} needs, was not found: install the package `{package}`")]
    ProgramMissing { program: &'static str, needed_by: &'static str, package: &'static str },
    #[error(
        "a limit on what a box writes into the state directory needs root (found: no access to \
         `/dev/loop-control`): set `resources.disk` to `memory`, or leave `resources.disk_mib` out"
    )]
    NeedsRoot(#[source] io::Error),
    #[error("`{program}` failed ({status}): {complaint}")]
    ProgramFailed { program: &'static str, status: ExitStatus, complaint: String },
    #[error(
        "the file system of `{}` has {free_mib} MiB of free space, expected at least {reserve_mib} \
         MiB: make space there, choose another `paths.state_dir`, or lower `resources.disk_reserve_mib`",
        directory.display()
    )]
    NoReserve { directory: PathBuf, free_mib: u64, reserve_mib: u32 },
    #[error(
        "the kept disk `{}` has {found}, expected {expected_mib} MiB: set `resources.disk_mib` to \
         its size, or destroy the box, with which the disk is lost",
        path.display()
    )]
    KeptSize { path: PathBuf, found: String, expected_mib: u32 },
    #[error("`{}` is not a regular file, expected a kept disk: remove it", path.display())]
    NotAFile { path: PathBuf },
    #[error("other users could replace the templates of disks")]
    NotPrivate(#[source] StoreError),
    #[error(
        "another process has held the lock of `{}` for too long while it made a template: end it",
        directory.display()
    )]
    TemplateBusy { directory: PathBuf },
}

impl From<StoreError> for DiskError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Host(error) => Self::Host(error),
            exposed @ StoreError::Exposed { .. } => Self::NotPrivate(exposed),
        }
    }
}

/// A disk that is ready.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) place: UpperPlace,
    directory: PathBuf,
}

impl Disk {
    /// Makes the disk of the config.
    pub(crate) fn make(spec: &VmSpec, state: &StateDir) -> Result<Self, DiskError> {
        let mounted = |place| Self { place, directory: state.disk() };
        if spec.disk == DiskPlace::StateDir {
            free_beyond_reserve_mib(state.directory(), spec.disk_reserve_mib)?;
        }
        match (spec.disk, spec.disk_mib) {
            (DiskPlace::StateDir, None) => {
                Ok(Self { place: UpperPlace::StateDir, directory: state.directory().to_owned() })
            }
            (DiskPlace::StateDir, Some(mib)) => {
                check_loop_devices()?;
                let image = state.disk_image();
                make_image(&image, mib)?;
                mount_image(&image, &make_directory(state)?)?;
                fs::remove_file(&image).map_err(HostError::at("remove", &image))?;
                Ok(mounted(UpperPlace::Image))
            }
            (DiskPlace::Memory, limit_mib) => {
                mount_memory(&make_directory(state)?, limit_mib)?;
                Ok(mounted(UpperPlace::Memory))
            }
        }
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.directory.join(UPPER)
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.directory.join(WORK)
    }
}

/// Returns how much more free space than `reserve_mib` the file system of the box directory has, or
/// an error if it has less.
pub(super) fn free_beyond_reserve_mib(
    directory: &Path,
    reserve_mib: u32,
) -> Result<u64, DiskError> {
    let found =
        statvfs(directory).map_err(HostError::at("look at the file system of", directory))?;
    // A file system without blocks has no size limit, such as a tmpfs with `size=0`.
    if found.f_blocks == 0 {
        return Ok(u64::MAX);
    }
    let free_mib = found.f_bavail.saturating_mul(found.f_frsize) >> 20;
    free_mib.checked_sub(u64::from(reserve_mib)).ok_or_else(|| DiskError::NoReserve {
        directory: directory.to_owned(),
        free_mib,
        reserve_mib,
    })
}

fn make_directory(state: &StateDir) -> Result<PathBuf, DiskError> {
    let path = state.disk();
    DirBuilder::new().mode(0o700).create(&path).map_err(HostError::at("make", &path))?;
    Ok(path)
}

/// Refuses a shim without access to loop devices. They belong to the initial user namespace, so
/// root of another user namespace cannot use them.
fn check_loop_devices() -> Result<(), DiskError> {
    match OpenOptions::new().write(true).open("/dev/loop-control") {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(DiskError::NeedsRoot(error))
        }
        // Other errors, such as a missing device, are reported by mount(8) in more detail.
        _ => Ok(()),
    }
}

/// Mounts a tmpfs at `target`.
fn mount_memory(target: &Path, limit_mib: Option<u32>) -> Result<(), DiskError> {
    let mut options = "mode=0700".to_owned();
    if let Some(mib) = limit_mib {
        let inodes = u64::from(mib) * MEMORY_INODES_PER_MIB;
        options += &format!(",size={mib}m,nr_inodes={inodes}");
    }
    // The guest kernel applies setuid bits and device nodes itself. On the host they must have no
    // effect.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(HostError::at("mount a tmpfs at", target))?;
    Ok(())
}

/// Creates a sparse file with an empty ext4 file system.
///
/// It has no journal, because its content is of no use after a crash, and its inode tables are
/// initialized later, because that would write to the whole file. No blocks are reserved for root,
/// because the shim writes as root.
fn make_image(path: &Path, mib: u32) -> Result<(), DiskError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|file| file.set_len(u64::from(mib) << 20))
        .map_err(HostError::at("make", path))?;
    let mut command = command::new("mkfs.ext4");
    command.args(["-q", "-F", "-m", "0", "-O", "^has_journal"]);
    command.args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"]).arg(path);
    run("mkfs.ext4", "e2fsprogs", "`resources.disk_mib`", command)
}

/// Mounts the image at `target`. mount(8) is used because it also sets up the loop device.
fn mount_image(image: &Path, target: &Path) -> Result<(), DiskError> {
    let mut command = command::new("mount");
    command.args(["-t", "ext4", "-o", "loop,nosuid,nodev"]).arg(image).arg(target);
    run("mount", "mount", "`resources.disk_mib`", command)
}

/// Runs a helper program, and turns its failure into an error that names its package and what needs
/// it.
pub(super) fn run(
    name: &'static str,
    package: &'static str,
    needed_by: &'static str,
    command: Command,
) -> Result<(), DiskError> {
    match command::run(command) {
        Ok(Ended { status, .. }) if status.success() => Ok(()),
        Ok(Ended { status, complaint }) => {
            Err(DiskError::ProgramFailed { program: name, status, complaint })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(DiskError::ProgramMissing { program: name, needed_by, package })
        }
        Err(error) => Err(HostError::at("run", Path::new(name))(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn image_is_sparse() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        make_image(&image, 64).unwrap();
        let found = fs::metadata(&image).unwrap();
        // `st_blocks` has units of 512 bytes (stat(3type)).
        let used_bytes = found.blocks() * 512;
        assert!(found.len() == 64 << 20 && used_bytes < 4 << 20, "{found:?}");
    }
}
