//! A block root: the disks of a box.
//!
//! ```text
//!  layer cache                                          box directory
//!  metadata image ─┐                                    disk.img, ext4 ───► vdb
//!  layer file ─────┼─ one after the other: the text of ─────────────────► vda
//!  layer file ─────┘  a VMDK, in memory
//! ```
//!
//! The VM gets the files of the cache as fds, so that the VMM needs no directory of the cache. All
//! of them are open for reading only.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use a3s_box_core::event::UpperPlace;
use a3s_box_krun::vmdk::{Descriptor, VmdkError};
use a3s_box_krun::{Access, BlockRoot, Disk, DiskFormat, SyncMode};
use a3s_box_oci::DiskPart;
use a3s_box_proto::control;
use a3s_box_sys::HostError;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::state::block_disk::BlockDisk;

/// The only directory that the guest program needs before it has mounted the disks.
const MOUNT_POINT: &str = "dev";

/// Names of the disks in the guest kernel. It numbers them in the order in which libkrun adds them.
const IMAGE_DEVICE: &str = "vda";
const WRITES_DEVICE: &str = "vdb";

/// Readahead of the image's disk in KiB. A request of virtio-blk costs far more than the copy of
/// its data, and libkrun takes 1 MiB in one request. The kernel's default is 128.
const READ_AHEAD_KIB: u32 = 1024;

/// The kernel prefetches no more than this of the metadata, so that a huge image does not delay the
/// first reads of a workload. An entry takes about 100 bytes.
const MAX_PREFETCH_BYTES: u64 = 4 << 20;

/// Why the disks cannot be described.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DisksError {
    #[error("cannot describe the disk of the image")]
    Vmdk(#[from] VmdkError),
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The disks of a box. All fds stay open for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Disks {
    /// The parts of the image's disk.
    parts: Vec<DiskPart>,
    /// Whether the parts are files of the cache. A box without an image has one part, in memory.
    is_cached: bool,
    /// The text that lists the parts.
    descriptor: File,
    writes: Writes,
}

/// The place of the files that the box writes.
#[derive(Debug)]
pub(crate) enum Writes {
    /// An ext4 in a file of the box directory.
    Disk(BlockDisk),
    /// A tmpfs of the guest. Without a limit, it has half of the guest's memory.
    Memory { limit_mib: Option<u32> },
}

impl Disks {
    /// Makes the disks of these parts.
    pub(super) fn new(
        parts: Vec<DiskPart>,
        is_cached: bool,
        writes: Writes,
    ) -> Result<Self, DisksError> {
        let mut text = Descriptor::new();
        for part in &parts {
            text.append_file(&fd_path(&part.file), 0, part.bytes)?;
        }
        let write = || -> io::Result<File> {
            let mut file = File::from(memfd_create(c"disk of the image", MFdFlags::MFD_CLOEXEC)?);
            file.write_all(text.as_str().as_bytes())?;
            Ok(file)
        };
        let descriptor = write().map_err(HostError::of("write the list of the disk's parts"))?;
        Ok(Self { parts, is_cached, descriptor, writes })
    }

    /// Returns the root for libkrun. `self` must outlive the VM, because the paths lead through its
    /// fds.
    pub(crate) fn machine_root(&self) -> BlockRoot {
        let image = Disk {
            id: "image".into(),
            file: fd_path(&self.descriptor),
            format: DiskFormat::Vmdk,
            access: Access::ReadOnly,
            sync: SyncMode::None,
            direct_io: false,
        };
        let writes = match &self.writes {
            Writes::Memory { .. } => None,
            Writes::Disk(BlockDisk { file, is_kept, .. }) => Some(Disk {
                id: "writes".into(),
                file: file.clone(),
                format: DiskFormat::Raw,
                access: Access::ReadWrite,
                // A disk that ends with its box need not survive a crash of the host.
                sync: if *is_kept { SyncMode::Full } else { SyncMode::None },
                direct_io: false,
            }),
        };
        BlockRoot {
            mount_points: vec![MOUNT_POINT.to_owned()],
            disks: [image].into_iter().chain(writes).collect(),
        }
    }

    /// Returns the root for the guest program.
    pub(crate) fn guest_root(&self) -> control::Root {
        let (upper, volatile) = match &self.writes {
            Writes::Disk(disk) => {
                (control::block_root::Upper::UpperDevice(WRITES_DEVICE.into()), !disk.is_kept)
            }
            Writes::Memory { limit_mib } => {
                let mib = u64::from(limit_mib.unwrap_or(0));
                (control::block_root::Upper::UpperInMemoryMib(mib), true)
            }
        };
        let block = control::BlockRoot {
            lower_device: IMAGE_DEVICE.into(),
            upper: Some(upper),
            volatile,
            read_ahead_kib: READ_AHEAD_KIB,
            prefetch_bytes: self.metadata_bytes().min(MAX_PREFETCH_BYTES),
        };
        control::Root { kind: Some(control::root::Kind::Block(block)) }
    }

    /// Returns the size of the metadata image, which is the first part of the image's disk.
    fn metadata_bytes(&self) -> u64 {
        self.parts.first().map_or(0, |part| part.bytes)
    }

    /// Returns the files outside of the box directory that the VMM reads. Files in memory are not
    /// among them.
    pub(crate) fn cached_files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let parts = if self.is_cached { self.parts.as_slice() } else { &[] };
        parts.iter().map(|part| part.file.as_fd())
    }
}

impl Writes {
    /// Returns the place for the event.
    pub(super) fn place(&self) -> UpperPlace {
        match self {
            Self::Disk(BlockDisk { is_kept: true, .. }) => UpperPlace::KeptImage,
            Self::Disk(_) => UpperPlace::Image,
            Self::Memory { .. } => UpperPlace::GuestMemory,
        }
    }

    /// Returns the size limit in MiB.
    pub(super) fn limit_mib(&self) -> Option<u32> {
        match self {
            Self::Disk(disk) => Some(disk.mib),
            Self::Memory { limit_mib } => *limit_mib,
        }
    }
}

/// Returns a path that leads to an open file, whatever its name is and whether it has one.
fn fd_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_prefetches_the_metadata_image_and_at_most_4_mib_of_it() {
        let part = |bytes| DiskPart { file: tempfile::tempfile().unwrap(), bytes };
        for (metadata_bytes, expected) in [(8192, 8192), (5 << 20, 4 << 20)] {
            let parts = vec![part(metadata_bytes), part(64 << 20)];
            let disks = Disks::new(parts, true, Writes::Memory { limit_mib: None }).unwrap();
            let Some(control::root::Kind::Block(root)) = disks.guest_root().kind else { panic!() };
            assert_eq!(root.prefetch_bytes, expected);
        }
    }
}
