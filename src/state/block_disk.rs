//! The writable disk of a block root: a sparse file with an ext4 file system, in the box directory.
//!
//! | `resources.disk_keep` | file            | exists until           |
//! |-----------------------|-----------------|------------------------|
//! | false                 | `disk.img`      | the box ends           |
//! | true                  | `kept-disk.img` | the box is destroyed   |
//!
//! Each file is a copy of a template, so that a start does not wait for `mkfs.ext4`.
//!
//! A workload that has synced its files relies on them. A new kept disk is therefore written to the
//! host's disk before it gets its name, and the directories that lead to it are synced before the
//! guest starts. Afterwards, each flush of the guest syncs the file.
//!
//! A start without `disk_keep` neither uses nor removes a disk that an earlier start has kept.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use a3s_box_core::BoxDir;
use a3s_box_oci::copy_contents;
use a3s_box_sys::HostError;
use nix::fcntl::OFlag;

use crate::spec::VmSpec;
use crate::state::dir::StateDir;
use crate::state::disk::{DiskError, free_beyond_reserve_mib};
use crate::state::disk_template;

/// Size of a disk without `resources.disk_mib`, on a file system that has the space. Such a disk is
/// sparse, so a large one costs little until the box writes.
const DEFAULT_DISK_MIB: u32 = 10 * 1024;

/// Size of a disk without `resources.disk_mib` on a file system that has no space for a larger one.
/// Smaller ones hold few files beside their journal.
const LEAST_DEFAULT_MIB: u32 = 64;

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
    /// start has kept. The caller holds the lock of the box.
    pub(crate) fn make(spec: &VmSpec, state: &StateDir) -> Result<Self, DiskError> {
        Self::make_in(spec, state.box_dir())
    }

    fn make_in(spec: &VmSpec, directory: &BoxDir) -> Result<Self, DiskError> {
        let free_mib = free_beyond_reserve_mib(directory.path(), spec.disk_reserve_mib)?;
        let new_mib = spec.disk_mib.unwrap_or_else(|| default_mib(free_mib));
        let cache_dir = &spec.paths.cache_dir;
        if !spec.disk_keep {
            let file = directory.disk_image();
            copy_template(cache_dir, &file, new_mib)?;
            return Ok(Self { file, is_kept: false, mib: new_mib });
        }
        let file = directory.kept_disk();
        let kept_mib = kept_mib(&file, spec.disk_mib)?;
        if kept_mib.is_none() {
            keep_new(cache_dir, directory, new_mib)?;
        }
        // An earlier shim may have been killed before it synced the directories.
        sync_directories(directory)?;
        Ok(Self { file, is_kept: true, mib: kept_mib.unwrap_or(new_mib) })
    }
}

/// Returns the size of a disk without `resources.disk_mib`: at most half of the free space, so that a
/// box cannot fill a small file system, such as `/run`, which other services of the host need.
///
/// Below [`DEFAULT_DISK_MIB`] it is a power of two, because the cache has a template for each size.
fn default_mib(free_mib: u64) -> u32 {
    let half = u32::try_from(free_mib / 2).unwrap_or(u32::MAX);
    if half >= DEFAULT_DISK_MIB {
        return DEFAULT_DISK_MIB;
    }
    half.checked_ilog2().map_or(0, |exponent| 1 << exponent).max(LEAST_DEFAULT_MIB)
}

/// Returns the size of the disk that an earlier start has kept, if there is one. If the config has
/// another size, that is an error, because the guest would have another limit than the config says.
fn kept_mib(path: &Path, expected_mib: Option<u32>) -> Result<Option<u32>, DiskError> {
    // The VMM opens the disk for writing as well, so this finds a disk that it could not use. With
    // O_NONBLOCK, open(2) does not wait if the file is a FIFO.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(HostError::at("open the kept disk", path))?,
    };
    let found = file.metadata().map_err(HostError::at("look at", path))?;
    if !found.is_file() {
        return Err(DiskError::NotAFile { path: path.to_owned() });
    }
    let mib = u32::try_from(found.len() >> 20).unwrap_or(u32::MAX);
    let is_whole = mib > 0 && found.len() == u64::from(mib) << 20;
    let expected_mib = expected_mib.unwrap_or(if is_whole { mib } else { DEFAULT_DISK_MIB });
    if is_whole && mib == expected_mib {
        return Ok(Some(mib));
    }
    let path = path.to_owned();
    Err(DiskError::KeptSize { path, found: size_text(found.len()), expected_mib })
}

/// Returns a size as text: in MiB, which is the unit of the config, if that is exact.
fn size_text(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{bytes} bytes")
    }
}

/// Makes a disk that is kept. It gets its name once its content is on the host's disk, so that a
/// shim that is killed or a host that goes down leaves a complete disk or none.
fn keep_new(cache_dir: &Path, directory: &BoxDir, mib: u32) -> Result<(), DiskError> {
    // The draft of a killed shim was removed with the other transient files.
    let (draft, kept) = (directory.kept_disk_draft(), directory.kept_disk());
    let file = copy_template(cache_dir, &draft, mib)?;
    file.sync_all().map_err(HostError::at("sync", &draft))?;
    fs::rename(&draft, &kept).map_err(HostError::at("rename to", &kept))?;
    Ok(())
}

/// Makes the file `path` as a copy of the template.
fn copy_template(cache_dir: &Path, path: &Path, mib: u32) -> Result<File, DiskError> {
    let template = disk_template::open(cache_dir, mib)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(HostError::at("make", path))?;
    copy_contents(template.as_fd(), file.as_fd(), u64::from(mib) << 20)
        .map_err(HostError::at("write", path))?;
    Ok(file)
}

/// Writes the entry of the kept disk to the host's disk, and those of the directories that lead to
/// it, because this start may have made them. It ends at the mount that they are in, and at a
/// directory that this user cannot read and has therefore not made.
fn sync_directories(directory: &BoxDir) -> Result<(), DiskError> {
    let mut device = None;
    for path in directory.path().ancestors() {
        let opened = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            opened => opened.map_err(HostError::at("open", path))?,
        };
        let found = opened.metadata().map_err(HostError::at("look at", path))?.dev();
        if *device.get_or_insert(found) != found {
            break;
        }
        match opened.sync_all() {
            // The file system cannot sync directories, so it does not need that.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            synced => synced.map_err(HostError::at("sync", path))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
