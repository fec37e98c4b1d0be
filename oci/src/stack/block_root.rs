//! A block root: the parts of a box's disk, locked in the cache.

use std::fs::File;
use std::os::fd::OwnedFd;

use a3s_box_sys::HostError;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::block::image::{self, Devices, MetadataImage};
use crate::block::layer_file::LayerFile;
use crate::block::merge::Merge;
use crate::block::root_tree::TreeLimits;
use crate::cache::error::CacheError;
use crate::cache::lock::LayerLease;
use crate::cache::lookup::Cached;

/// The root of an image as a read-only disk, locked in the cache.
///
/// The disk is the parts in their order, one behind the other. It has an EROFS file system, which
/// Linux mounts without options.
#[derive(Debug)]
pub struct BlockRoot {
    /// The parts of the disk, in order: the metadata image, then the data of layers.
    pub parts: Vec<DiskPart>,
    /// Number of the image's layers that were in the cache already.
    pub hits: usize,
    /// Size of the regular files of the layers that were read.
    pub unpacked_bytes: u64,
    pub(super) members: Vec<BlockMember>,
}

/// A part of the disk of a box: the beginning of a file. Callers must not write to the file.
#[derive(Debug)]
pub struct DiskPart {
    /// The file, open for reading. Its position is not defined.
    pub file: File,
    /// Size of the part from the beginning of the file, a multiple of 4096.
    pub bytes: u64,
}

/// Content of the cache that belongs to a block root.
#[derive(Debug)]
pub(super) struct BlockMember {
    pub(super) name: String,
    /// Keeps the content from being removed for as long as the block root exists.
    _lease: LayerLease,
}

impl BlockRoot {
    /// Returns the block root of an image without layers, which is an empty directory. Its metadata
    /// image has no name and is in memory.
    ///
    /// # Errors
    ///
    /// Fails if the host cannot make the file.
    pub fn empty() -> Result<Self, CacheError> {
        let mut file = sealed_file().map_err(memory_error)?;
        let merge = Merge::new(TreeLimits::default()).map_err(CacheError::Block)?;
        image::write(merge, &Devices::default(), None, &mut file).map_err(CacheError::Block)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(memory_error)?;
        let bytes = file.metadata().map_err(memory_error)?.len();
        let parts = vec![DiskPart { file, bytes }];
        Ok(Self { parts, hits: 0, unpacked_bytes: 0, members: Vec::new() })
    }

    /// Returns the block root of an image and its devices. All of them were in the cache.
    pub(super) fn new(image: Cached<MetadataImage>, devices: Vec<Cached<LayerFile>>) -> Self {
        let mut this = Self {
            parts: Vec::with_capacity(1 + devices.len()),
            hits: 0,
            unpacked_bytes: 0,
            members: Vec::with_capacity(1 + devices.len()),
        };
        let bytes = image.content.bytes();
        this.parts.push(DiskPart { bytes, file: image.content.into_file() });
        this.members.push(BlockMember { name: image.name, _lease: image.lease });
        for Cached { content, name, lease, .. } in devices {
            this.parts.push(DiskPart { bytes: content.data_bytes(), file: content.into_file() });
            this.members.push(BlockMember { name, _lease: lease });
        }
        this
    }

    /// Adds a layer that has no data, so that it is kept and synced with the others.
    pub(super) fn keep(&mut self, file: Cached<LayerFile>) {
        self.members.push(BlockMember { name: file.name, _lease: file.lease });
    }
}

/// Makes an empty file in memory, to which seals can be added.
fn sealed_file() -> rustix::io::Result<File> {
    let made: OwnedFd =
        memfd_create("root.erofs", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    Ok(made.into())
}

fn memory_error(source: impl Into<std::io::Error>) -> CacheError {
    HostError::of("make a metadata image in memory")(source).into()
}
