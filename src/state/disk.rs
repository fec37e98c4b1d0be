//! Where a box keeps what it writes to its root, and how much that can be.
//!
//! | `resources.disk` | `resources.disk_mib` | `upper/` and `work/` are in |
//! |------------------|----------------------|-----------------------------|
//! | `state_dir`      | absent               | the state directory            |
//! | `state_dir`      | given                | ext4 in the sparse file `disk.img`, mounted at `disk/` |
//! | `memory`         | either               | a tmpfs at `disk/`          |
//!
//! The mounts are in the shim's own mount namespace and end with it, however the process ends; the
//! loop device of the image is one that the kernel frees with its last mount.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use a3s_box_core::box_dir::{UPPER, WORK};
use a3s_box_core::config::DiskPlace;
use a3s_box_core::event::UpperPlace;
use a3s_box_sys::HostError;
use nix::mount::{MsFlags, mount};

use crate::host::command::{self, Ended};
use crate::spec::VmSpec;
use crate::state::dir::StateDir;

/// Inodes for each MiB of memory: a file without content costs about as much memory as one page,
/// which a limit on bytes does not see.
const MEMORY_INODES_PER_MIB: u64 = 256;

/// The place for what a box writes cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(
        "`{program}`, which `resources.disk_mib` needs, was not found: install the package `{package}`"
    )]
    ProgramMissing { program: &'static str, package: &'static str },
    #[error(
        "a limit on what a box writes into the state directory needs root (found: no access to \
         `/dev/loop-control`): set `resources.disk` to `memory`, or leave `resources.disk_mib` out"
    )]
    NeedsRoot(#[source] io::Error),
    #[error("`{program}` failed ({status}): {complaint}")]
    ProgramFailed { program: &'static str, status: ExitStatus, complaint: String },
}

/// The place for what a box writes, ready.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) place: UpperPlace,
    directory: PathBuf,
}

impl Disk {
    /// Makes the place that the config asks for.
    pub(crate) fn make(spec: &VmSpec, state: &StateDir) -> Result<Self, DiskError> {
        let mounted = |place| Self { place, directory: state.disk() };
        match (spec.disk, spec.disk_mib) {
            (DiskPlace::StateDir, None) => {
                Ok(Self { place: UpperPlace::StateDir, directory: state.directory().to_owned() })
            }
            (DiskPlace::StateDir, Some(mib)) => {
                check_loop_devices()?;
                make_image(&state.disk_image(), mib)?;
                mount_image(&state.disk_image(), &make_directory(state)?)?;
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

fn make_directory(state: &StateDir) -> Result<PathBuf, DiskError> {
    let path = state.disk();
    DirBuilder::new().mode(0o700).create(&path).map_err(HostError::at("make", &path))?;
    Ok(path)
}

/// Loop devices are the machine's own, which a user namespace has no power over.
fn check_loop_devices() -> Result<(), DiskError> {
    match OpenOptions::new().write(true).open("/dev/loop-control") {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(DiskError::NeedsRoot(error))
        }
        // Whatever else is wrong, `mount` says it better.
        _ => Ok(()),
    }
}

fn mount_memory(target: &Path, limit_mib: Option<u32>) -> Result<(), DiskError> {
    let mut options = "mode=0700".to_owned();
    if let Some(mib) = limit_mib {
        let inodes = u64::from(mib) * MEMORY_INODES_PER_MIB;
        options += &format!(",size={mib}m,nr_inodes={inodes}");
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(HostError::at("mount a tmpfs at", target))?;
    Ok(())
}

/// Makes a file with an empty ext4: without a journal and with lazy tables, as nothing of it is
/// needed after a crash, and without blocks kept for root, which is who writes.
fn make_image(path: &Path, mib: u32) -> Result<(), DiskError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|file| file.set_len(u64::from(mib) << 20))
        .map_err(HostError::at("make", path))?;
    let mut command = command::new("mkfs.ext4");
    command.args(["-q", "-F", "-m", "0", "-O", "^has_journal"]);
    command.args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"]).arg(path);
    run("mkfs.ext4", "e2fsprogs", command)
}

fn mount_image(image: &Path, target: &Path) -> Result<(), DiskError> {
    let mut command = command::new("mount");
    command.args(["-t", "ext4", "-o", "loop,nosuid,nodev"]).arg(image).arg(target);
    run("mount", "mount", command)
}

fn run(name: &'static str, package: &'static str, command: Command) -> Result<(), DiskError> {
    match command::run(command) {
        Ok(Ended { status, .. }) if status.success() => Ok(()),
        Ok(Ended { status, complaint }) => {
            Err(DiskError::ProgramFailed { program: name, status, complaint })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(DiskError::ProgramMissing { program: name, package })
        }
        Err(error) => Err(HostError::at("run", Path::new(name))(error).into()),
    }
}
