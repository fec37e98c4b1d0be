//! The writable disk of a block root: a sparse file with an ext4 file system, in the box directory.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use a3s_box_sys::HostError;

use crate::host::command;
use crate::spec::VmSpec;
use crate::state::dir::StateDir;
use crate::state::disk::{self, DiskError};

/// Size of a disk without `resources.disk_mib`.
const DEFAULT_DISK_MIB: u32 = 10 * 1024;

/// The writable disk of a box.
#[derive(Debug)]
pub(crate) struct BlockDisk {
    /// The file, in the box directory.
    pub(crate) file: PathBuf,
    /// Whether the next start of the same id continues with the disk.
    pub(crate) is_kept: bool,
    pub(crate) mib: u32,
}

impl BlockDisk {
    /// Makes the disk of a box with `resources.disk` `state_dir`, or finds the one that an earlier
    /// start has kept.
    pub(crate) fn make(spec: &VmSpec, state: &StateDir) -> Result<Self, DiskError> {
        let mib = spec.disk_mib.unwrap_or(DEFAULT_DISK_MIB);
        let file = if spec.disk_keep { state.kept_disk() } else { state.disk_image() };
        make_file_system(&file, mib)?;
        Ok(Self { file, is_kept: spec.disk_keep, mib })
    }
}

fn make_file_system(path: &Path, mib: u32) -> Result<(), DiskError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|file| file.set_len(u64::from(mib) << 20))
        .map_err(HostError::at("make", path))?;
    let mut command = command::new("mkfs.ext4");
    command.args(["-q", "-F", "-m", "0", "-E", "nodiscard,root_owner=0:0"]).arg(path);
    disk::run("mkfs.ext4", "e2fsprogs", command)
}
