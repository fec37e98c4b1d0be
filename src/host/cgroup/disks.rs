//! The disks of the host that hold the files of a box, as `io.max` names them.
//!
//! `io.max` takes the number of a whole disk: the kernel refuses a partition (`blkg_conf_open_bdev`,
//! ENODEV). File systems in memory have no disk. Other file systems without a device of their own,
//! such as btrfs, overlayfs and network file systems, do not tell their disks by stat(2), so a limit
//! for them is refused.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use a3s_box_sys::HostError;
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

/// Type of a ramfs (statfs(2)), which nix does not name.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// The block devices of the kernel, each as a link to its directory in `/sys/devices`.
const DEVICES: &str = "/sys/dev/block";

/// Why the disk of a file is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("`{}` is in a file system that does not tell its disk", path.display())]
    NoDisk { path: PathBuf },
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A whole disk of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Disk {
    major: u64,
    minor: u64,
}

impl Disk {
    /// Returns the disks that hold `paths`. A path may not exist yet: it is then made in the file
    /// system of its closest ancestor that exists.
    pub(super) fn of<'a>(
        paths: impl IntoIterator<Item = &'a Path>,
    ) -> Result<BTreeSet<Self>, DiskError> {
        let mut disks = BTreeSet::new();
        for path in paths {
            disks.extend(Self::of_path(path, Path::new(DEVICES))?);
        }
        Ok(disks)
    }

    fn of_path(path: &Path, devices: &Path) -> Result<Option<Self>, DiskError> {
        let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
        let failed = HostError::at("look at", existing);
        let device = fs::metadata(existing).map_err(failed)?.dev();
        if major(device) != 0 {
            let partition = Self { major: major(device), minor: minor(device) };
            return partition.whole(devices).map(Some);
        }
        let kind = statfs(existing).map_err(HostError::at("look at", existing))?.filesystem_type();
        if matches!(kind, TMPFS_MAGIC | RAMFS_MAGIC) {
            return Ok(None);
        }
        Err(DiskError::NoDisk { path: existing.to_owned() })
    }

    /// Returns the disk that a partition is on, or the disk itself.
    fn whole(self, devices: &Path) -> Result<Self, DiskError> {
        let directory = devices.join(self.to_string());
        if !directory.join("partition").exists() {
            return Ok(self);
        }
        // The directory of a partition is in the directory of its disk.
        let resolved = directory.canonicalize().map_err(HostError::at("resolve", &directory))?;
        let disk = resolved.parent().unwrap_or(&resolved).join("dev");
        let number = fs::read_to_string(&disk).map_err(HostError::at("read", &disk))?;
        Self::parse(&number).ok_or_else(|| {
            let error = io::Error::new(io::ErrorKind::InvalidData, "no number of a device");
            HostError::at("read", &disk)(error).into()
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim_end().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn partition_counts_as_its_disk() {
        // The same form as `/sys/devices`: vda with the partition vda1, and a disk without any.
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/vda");
        fs::create_dir_all(disk.join("vda1")).unwrap();
        fs::write(disk.join("dev"), "254:0\n").unwrap();
        fs::write(disk.join("vda1/dev"), "254:1\n").unwrap();
        fs::write(disk.join("vda1/partition"), "1\n").unwrap();
        let devices = sys.path().join("block");
        fs::create_dir(&devices).unwrap();
        symlink("../devices/vda", devices.join("254:0")).unwrap();
        symlink("../devices/vda/vda1", devices.join("254:1")).unwrap();
        for minor in [0, 1] {
            let found = Disk { major: 254, minor }.whole(&devices).unwrap();
            assert_eq!(found.to_string(), "254:0");
        }
        // A device that /sys does not list is used as it is, and the kernel refuses it if it must.
        assert_eq!(Disk { major: 7, minor: 3 }.whole(&devices).unwrap().to_string(), "7:3");
        fs::write(disk.join("dev"), "vda\n").unwrap();
        let error = Disk { major: 254, minor: 1 }.whole(&devices).unwrap_err();
        assert!(matches!(error, DiskError::Host(_)), "{error}");
    }

    #[test]
    fn file_system_in_memory_has_no_disk_and_others_without_one_are_refused() {
        let of = |path: &str| Disk::of_path(Path::new(path), Path::new(DEVICES));
        assert_eq!(of("/dev/shm/missing/file").unwrap(), None);
        let error = of("/proc/self/missing").unwrap_err();
        assert!(error.to_string().starts_with("`/proc/self` "), "{error}");
    }
}
