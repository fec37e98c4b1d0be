//! A file of the host as a virtio-blk device, and the limits that libkrun does not check.
//!
//! Properties of each device (krun-devices, `src/virtio/block/`):
//!
//! | property | value |
//! |---|---|
//! | sector | 512 bytes, which is also the logical block size that Linux assumes |
//! | queues | one of 256 descriptors; a request has at most 254 segments (`seg_max`) |
//! | threads | one, which completes each request before it takes the next one |
//! | DISCARD, `WRITE_ZEROES` | always offered, one range a request |
//! | FLUSH | offered unless the sync mode is [`SyncMode::None`] |
//! | size | fixed when the VM is entered; bytes after the last whole sector are not visible |
//!
//! A DISCARD of a [`DiskFormat::Raw`] disk punches a hole into the file (`fallocate(2)` with
//! `FALLOC_FL_PUNCH_HOLE`; imago 0.2, `src/file.rs`), so the host gets the space back. A file
//! system without holes is no error, and the space then stays in use.
//!
//! A FLUSH is an `fsync(2)` of the file. Nothing else syncs it: libkrun ends the process with
//! `_exit`, so the `Drop` of its disk, which would sync, never runs (krun-vmm, `src/lib.rs`,
//! `Vmm::stop`). Data that the guest has written is in the host's page cache, and survives the
//! process but not the host.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::KrunError;
use crate::access::Access;

/// Size in bytes of a sector of virtio-blk (virtio 1.2, section 5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Longest id of a disk in bytes: `VIRTIO_BLK_ID_BYTES` of `linux/virtio_blk.h`. libkrun cuts off a
/// longer one without an error (krun-devices, `src/virtio/block/device.rs`, `build_disk_image_id`).
pub const MAX_DISK_ID_BYTES: usize = 20;

/// `KRUN_DISK_FORMAT_RAW` and `KRUN_DISK_FORMAT_VMDK` of `libkrun.h`.
pub(crate) const DISK_FORMAT_RAW: u32 = 0;
pub(crate) const DISK_FORMAT_VMDK: u32 = 2;

/// A file of the host, as a virtio-blk device.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Name by which the guest finds the device, 1 to [`MAX_DISK_ID_BYTES`] bytes. Linux shows it
    /// in `/sys/block/<name>/serial`. No two disks of a machine have the same id.
    pub id: String,
    /// The file, or a block device. The path must be UTF-8.
    ///
    /// libkrun opens it twice when the VM is entered, and keeps only the second fd (krun-devices,
    /// `src/virtio/block/device.rs`, `Block::new`). `/proc/self/fd/N` is therefore a path that
    /// works, if the fd stays open until then and `/proc` is mounted. Opening such a path checks
    /// the permissions of the file again, and does not inherit the access mode of the fd.
    pub file: PathBuf,
    /// Format of the file.
    pub format: DiskFormat,
    /// Whether the guest can write to the disk. With [`Access::ReadOnly`] libkrun opens the file
    /// for reading only.
    pub access: Access,
    /// Whether the guest's flushes reach the file.
    pub sync: SyncMode,
    /// Whether reads and writes bypass the page cache of the host (`O_DIRECT`, open(2)).
    pub direct_io: bool,
}

/// Format of a [`Disk`]. libkrun also reads qcow2, which this crate leaves out because no box has
/// such a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// The bytes of the file are the bytes of the disk.
    Raw,
    /// A text that lists the parts of the disk, each a range of a file or a range of zeros. The
    /// module [`vmdk`](crate::vmdk) writes such a text. libkrun opens each file that it names, so
    /// it must not come from a guest or an image. Only [`Access::ReadOnly`] without direct I/O
    /// works: libkrun opens no VMDK for writing, and opens the files of the parts without
    /// `O_DIRECT` in any case (imago 0.2, `src/vmdk/mod.rs`, `open_image`).
    Vmdk,
}

/// Whether the guest's flushes reach the file. The third mode of libkrun, *relaxed*, is left out
/// because it differs from [`Full`](Self::Full) on macOS only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// The device does not offer FLUSH. Linux then assumes that a write is durable once it has
    /// completed, and sends nothing for an `fsync(2)`.
    None,
    /// The device offers FLUSH, which calls `fsync(2)` on the file.
    Full,
}

impl Disk {
    /// Refuses the values that libkrun changes or ignores without an error.
    fn check(&self) -> Result<(), KrunError> {
        if !(1..=MAX_DISK_ID_BYTES).contains(&self.id.len()) {
            return Err(KrunError::DiskId { id: self.id.clone(), max: MAX_DISK_ID_BYTES });
        }
        if self.format == DiskFormat::Vmdk && (self.access == Access::ReadWrite || self.direct_io) {
            return Err(KrunError::Vmdk { id: self.id.clone() });
        }
        Ok(())
    }

    /// Opens the file as libkrun will, and checks its size. libkrun does so only when the VM is
    /// entered, and returns EINVAL for every failure.
    pub(crate) fn probe(&self) -> Result<(), KrunError> {
        let size_bytes = self.measure().map_err(|source| KrunError::DiskFile {
            id: self.id.clone(),
            path: self.file.clone(),
            source,
        })?;
        // A VMDK is a text of any length. The sizes of its parts are whole sectors.
        let is_whole = size_bytes > 0 && size_bytes.is_multiple_of(SECTOR_BYTES);
        if self.format == DiskFormat::Raw && !is_whole {
            return Err(KrunError::DiskSize { id: self.id.clone(), size_bytes });
        }
        Ok(())
    }

    /// Returns the size of the file in bytes. Seeking also measures a block device, for which the
    /// metadata reports a length of 0.
    fn measure(&self) -> io::Result<u64> {
        let mut options = OpenOptions::new();
        options.read(true).write(self.access == Access::ReadWrite);
        if self.direct_io {
            options.custom_flags(libc::O_DIRECT);
        }
        options.open(&self.file)?.seek(SeekFrom::End(0))
    }
}

/// Checks each disk of a machine, and that no two have the same id.
pub(crate) fn check(disks: &[Disk]) -> Result<(), KrunError> {
    let mut ids = HashSet::new();
    for disk in disks {
        disk.check()?;
        if !ids.insert(disk.id.as_str()) {
            return Err(KrunError::DuplicateDiskId { id: disk.id.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use super::*;

    fn disk(id: &str) -> Disk {
        Disk {
            id: id.into(),
            file: "/dev/null".into(),
            format: DiskFormat::Raw,
            access: Access::ReadOnly,
            sync: SyncMode::None,
            direct_io: false,
        }
    }

    fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn id_has_1_to_20_bytes() {
        check(&[disk("a"), disk(&"b".repeat(20))]).unwrap();
        for (id, expected) in [
            ("", "disk id `` has 0 bytes, expected 1 to 20"),
            ("012345678901234567890", "has 21 bytes, expected 1 to 20"),
        ] {
            let found = check(&[disk(id)]).unwrap_err().to_string();
            assert!(found.contains(expected), "{found} / {expected}");
        }
    }

    #[test]
    fn two_disks_with_one_id_are_refused() {
        let found = check(&[disk("a"), disk("b"), disk("a")]).unwrap_err();
        assert_eq!(found.to_string(), "two disks have the id `a`");
    }

    #[test]
    fn vmdk_is_read_only_and_without_direct_io() {
        let vmdk = Disk { format: DiskFormat::Vmdk, ..disk("a") };
        check(std::slice::from_ref(&vmdk)).unwrap();
        let writable = Disk { access: Access::ReadWrite, ..vmdk.clone() };
        let direct = Disk { direct_io: true, ..vmdk };
        for refused in [writable, direct] {
            let found = check(&[refused]).unwrap_err();
            assert!(matches!(&found, KrunError::Vmdk { id } if id == "a"), "{found:?}");
        }
    }

    #[test]
    fn raw_file_has_at_least_one_sector_and_only_whole_ones() {
        for (length, is_accepted) in [(0, false), (511, false), (512, true), (513, false)] {
            let file = file_of(&vec![1; length]);
            let probed = Disk { file: file.path().into(), ..disk("a") }.probe();
            match probed {
                Ok(()) => assert!(is_accepted, "{length}"),
                Err(KrunError::DiskSize { size_bytes, .. }) => {
                    assert!(!is_accepted, "{length}");
                    assert_eq!(size_bytes, u64::try_from(length).unwrap());
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn text_of_a_vmdk_has_any_length() {
        let file = file_of(b"version=1\n");
        let vmdk = Disk { format: DiskFormat::Vmdk, file: file.path().into(), ..disk("a") };
        vmdk.probe().unwrap();
    }

    #[test]
    fn file_behind_an_fd_is_accepted() {
        let file = file_of(&[1; 512]);
        let open = File::open(file.path()).unwrap();
        // The name is gone, so that only the fd leads to the file.
        drop(file);
        let path = format!("/proc/self/fd/{}", open.as_raw_fd());
        Disk { file: path.into(), ..disk("a") }.probe().unwrap();
    }

    #[test]
    fn file_that_cannot_be_opened_is_named_with_the_cause() {
        let error = Disk { file: "/nowhere/disk".into(), ..disk("a") }.probe().unwrap_err();
        assert_eq!(error.to_string(), "cannot open disk `a` at `/nowhere/disk`");
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.to_string(), "No such file or directory (os error 2)");
    }

    #[test]
    fn writable_disk_is_opened_for_writing() {
        // A directory can be opened for reading, but never for writing (open(2), EISDIR).
        let writable = Disk { access: Access::ReadWrite, file: "/".into(), ..disk("a") };
        let error = writable.probe().unwrap_err();
        let source = match error {
            KrunError::DiskFile { source, .. } => source,
            other => panic!("{other:?}"),
        };
        assert_eq!(source.kind(), io::ErrorKind::IsADirectory);
    }
}
