//! Makes the block root of an image in a directory.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;

use a3s_box_erofs::{BLOCK_BYTES, Device};
use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::error::BlockError;
use super::layer_file::{self, LayerFile, Target};
use super::merge::Merge;
use super::root_tree::TreeLimits;
use crate::image::Layer;
use crate::image::digest::Digest;
use crate::layout::Layout;
use crate::unpack::error::LayerError;
use crate::unpack::facts::LayerFacts;
use crate::unpack::limits::Limits;
use crate::unpack::progress::Progress;

/// Name of the metadata image.
const METADATA: &str = "root.erofs";

/// The progress function of an image. It receives the number of the layer, from 0, and its progress,
/// and cancels the work by returning `Break`.
type OnLayerProgress<'a> = dyn FnMut(usize, Progress) -> ControlFlow<()> + 'a;

/// Limits on a block root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockLimits {
    /// Limits on each layer.
    pub layer: Limits,
    /// Limits on the tree of all layers.
    pub tree: TreeLimits,
}

/// A part of a file that belongs to the disk of a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPart {
    /// Name of the file in the directory of the block root.
    pub name: String,
    /// The part: this number of bytes from the beginning of the file, a multiple of 4096.
    pub bytes: u64,
}

/// The block root of an image: the parts of a read-only disk with an EROFS file system.
///
/// The disk is `metadata`, followed by each element of `data` in order. Linux 5.16 and later mount
/// it without options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockImage {
    /// The metadata of all files. It is this image's own.
    pub metadata: DiskPart,
    /// The content of files. Each part belongs to one layer, and other images can share it.
    pub data: Vec<DiskPart>,
    /// Number of inodes.
    pub inodes: u64,
    /// Facts about each layer, the bottom first.
    pub layers: Vec<LayerFacts>,
}

impl BlockImage {
    /// Reads the layers of an image, the bottom first, and makes its block root in `directory`.
    ///
    /// The file of a layer is named by its `DiffID`. It is not made again if the directory has it
    /// already. The files are not synced to the disk, and the directory must be used by one process
    /// at a time.
    ///
    /// # Errors
    ///
    /// When a layer cannot be read, verified or applied to the layers below it, when a limit is
    /// exceeded, when `progress` cancels the work, or when the host fails. The directory then has
    /// the files of the layers that were read before, and no metadata image.
    pub fn compose(
        layout: &Layout,
        layers: &[Layer],
        directory: BorrowedFd<'_>,
        limits: &BlockLimits,
        progress: &mut OnLayerProgress<'_>,
    ) -> Result<Self, BlockError> {
        let mut data = Data::default();
        let mut merge = Merge::new(limits.tree.clone())?;
        let mut facts = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let source = Source { layout, layer, directory, limits: &limits.layer };
            let (file, found) = source.file(&mut |step| progress(number, step))?;
            let device = data.device(layer.diff_id, &file)?;
            let is_opaque = merge.apply(&file, device, layer.digest)?;
            facts.push(LayerFacts { opaque_root: is_opaque, ..found });
        }
        let tree = merge.into_tree();
        let mut file = create(directory, METADATA).map_err(host_error("make a metadata image"))?;
        let summary = a3s_box_erofs::write(&tree, &data.devices, &mut file)
            .inspect_err(|_error| discard(directory, METADATA))
            .map_err(BlockError::Write)?;
        Ok(Self {
            metadata: DiskPart { name: METADATA.to_owned(), bytes: summary.metadata_bytes },
            data: data.parts,
            inodes: summary.inodes,
            layers: facts,
        })
    }
}

/// The data of the layers so far.
#[derive(Debug, Default)]
struct Data {
    devices: Vec<Device>,
    parts: Vec<DiskPart>,
    /// Numbers of the devices, by layer. An image can have a layer twice.
    numbers: HashMap<Digest, u16>,
}

impl Data {
    /// Returns the number of the device of a layer, which is 0 if the layer has no data.
    fn device(&mut self, diff_id: Digest, file: &LayerFile) -> Result<u16, BlockError> {
        let blocks = file.data_blocks();
        if blocks == 0 {
            return Ok(0);
        }
        if let Some(number) = self.numbers.get(&diff_id) {
            return Ok(*number);
        }
        self.devices.push(Device { blocks });
        self.parts
            .push(DiskPart { name: layer_name(diff_id), bytes: u64::from(blocks) * BLOCK_BYTES });
        // EROFS counts devices from 1, by 16 bits.
        let number = u16::try_from(self.devices.len());
        let number = number.map_err(|_overflow| BlockError::TooManyLayers { limit: u16::MAX })?;
        self.numbers.insert(diff_id, number);
        Ok(number)
    }
}

/// A layer of a layout, and the directory that receives its file.
#[derive(Clone, Copy)]
struct Source<'a> {
    layout: &'a Layout,
    layer: &'a Layer,
    directory: BorrowedFd<'a>,
    limits: &'a Limits,
}

impl Source<'_> {
    /// Returns the file of the layer, and makes it first if the directory does not have it.
    fn file(
        &self,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(LayerFile, LayerFacts), BlockError> {
        let Self { layer, directory, .. } = *self;
        let name = layer_name(layer.diff_id);
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(directory, name.as_str(), flags, Mode::empty()).map(File::from);
        let opened = match open() {
            Err(Errno::ENOENT) => {
                self.make(&name, progress)?;
                open()
            }
            opened => opened,
        };
        let file = opened.map_err(host_error("open the file of a layer"))?;
        let file = LayerFile::open(file)
            .map_err(|source| BlockError::Index { layer: layer.digest, source })?;
        let facts = file.facts();
        Ok((file, facts))
    }

    /// Makes the file of the layer. After an error, the directory has no file of this name.
    fn make(
        &self,
        name: &str,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), BlockError> {
        let Self { layout, layer, directory, limits } = *self;
        let failed = |source| match source {
            LayerError::Cancelled => BlockError::Cancelled { layer: layer.digest },
            source => BlockError::Layer { layer: layer.digest, source },
        };
        let blob = layout.open_blob(layer.digest, layer.size_bytes);
        let blob = blob.map_err(|source| failed(source.into()))?;
        let file = create(directory, name).map_err(host_error("make the file of a layer"))?;
        let spool = format!("{name}.index");
        let target = Target { file, make_file: &mut || unnamed(directory, &spool) };
        let written = layer_file::write(blob, layer, limits, target, progress);
        if written.is_err() {
            discard(directory, name);
        }
        written.map(drop).map_err(failed)
    }
}

/// Returns the name of the file of a layer.
fn layer_name(diff_id: Digest) -> String {
    format!("{}-{}.layer", diff_id.algorithm().name(), diff_id.hex())
}

/// Creates an empty file, in place of an older one of this name.
fn create(directory: BorrowedFd<'_>, name: &str) -> nix::Result<File> {
    let flags =
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = || openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from);
    match open() {
        // The file is not truncated, because a box can have it open.
        Err(Errno::EEXIST) => remove(directory, name).and_then(|()| open()),
        made => made,
    }
}

/// Creates an empty file without a name. `name` is used for a moment.
fn unnamed(directory: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    let file = create(directory, name)?;
    // `O_TMPFILE` would need no name, but some file systems do not support it.
    remove(directory, name)?;
    Ok(file)
}

fn remove(directory: BorrowedFd<'_>, name: &str) -> nix::Result<()> {
    unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)
}

fn host_error(action: &'static str) -> impl FnOnce(Errno) -> BlockError {
    move |errno| BlockError::Host(HostError::of(action)(errno))
}

/// Removes a file that could not be completed.
fn discard(directory: BorrowedFd<'_>, name: &str) {
    if let Err(errno) = remove(directory, name) {
        // The caller receives the first error.
        tracing::warn!(name, %errno, "cannot remove an incomplete file of a block root");
    }
}
