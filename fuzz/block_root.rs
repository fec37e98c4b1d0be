//! Makes block roots, and checks them. All use of the crate's interface for them is here.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::PathBuf;

use a3s_box_erofs::{Device, Image};
use a3s_box_oci::{
    BlockError, BlockImage, BlockLimits, Compression, Digest, DiskPart, Layer, Layout, Limits,
    TreeLimits,
};

use crate::{Scratch, check_error, erofs};

/// A block root of an accepted input.
#[derive(Debug)]
pub struct BlockRoot {
    /// Size of the metadata image.
    pub metadata_bytes: u64,
    devices: Vec<Device>,
    inodes: u64,
    metadata_path: PathBuf,
    data_paths: Vec<PathBuf>,
}

/// Returns limits that an input of some kilobytes can exceed.
fn limits() -> BlockLimits {
    BlockLimits {
        layer: Limits {
            entries: 200,
            unpacked_bytes: 4 << 20,
            remembered_bytes: 16 << 10,
            ratio_floor_bytes: 1 << 20,
            ..Limits::default()
        },
        tree: TreeLimits { inodes: 2000, bytes: 1 << 20, steps: 1 << 16 },
    }
}

/// Adds the uncompressed blob of a layer to the layout, and returns the layer.
#[must_use]
pub fn layer(scratch: &Scratch, archive: &[u8]) -> Layer {
    let (digest, _) = scratch.blob(archive);
    Layer {
        digest,
        diff_id: digest,
        size_bytes: archive.len() as u64,
        compression: Compression::None,
    }
}

/// Returns the path at which the file of a layer is kept.
fn file_path(scratch: &Scratch, diff_id: Digest) -> PathBuf {
    scratch.path("blocks").join(format!("sha256-{}.layer", diff_id.hex()))
}

/// Puts a file in the place of the file of a layer, as if it had been made before. Its blob is not
/// needed.
///
/// # Panics
///
/// Panics if the file cannot be written.
#[must_use]
pub fn plant(scratch: &Scratch, file: &[u8]) -> Layer {
    let digest = Digest::of(b"planted");
    fs::create_dir_all(scratch.path("blocks")).unwrap();
    fs::write(file_path(scratch, digest), file).unwrap();
    Layer { digest, diff_id: digest, size_bytes: 0, compression: Compression::None }
}

/// Returns the file of a layer, which was made before.
///
/// # Panics
///
/// Panics if the file cannot be read.
#[must_use]
pub fn layer_file(scratch: &Scratch, layer: &Layer) -> Vec<u8> {
    fs::read(file_path(scratch, layer.diff_id)).unwrap()
}

/// Makes the block root of an image with these layers, or returns `None` if an input is refused.
///
/// # Panics
///
/// Panics if the error is not the fault of an input, or leaves a metadata image behind.
#[must_use]
pub fn compose(scratch: &Scratch, layers: &[Layer]) -> Option<BlockRoot> {
    let directory = scratch.path("blocks");
    fs::create_dir_all(&directory).unwrap();
    let layout = Layout::open(&scratch.path("layout")).unwrap();
    let opened = File::open(&directory).unwrap();
    let progress = &mut |_, _| ControlFlow::Continue(());
    let made = BlockImage::compose(&layout, layers, opened.as_fd(), &limits(), progress);
    let made = match made {
        Ok(made) => made,
        Err(error) => {
            use BlockError::{Index, Layer, Limit, Tree};
            assert!(matches!(error, Layer { .. } | Index { .. } | Tree { .. } | Limit { .. }));
            check_error(&error);
            assert!(!directory.join("root.erofs").exists(), "{error:?}");
            return None;
        }
    };
    let blocks = |part: &DiskPart| u32::try_from(part.bytes / 4096).unwrap();
    Some(BlockRoot {
        metadata_bytes: made.metadata.bytes,
        devices: made.data.iter().map(|part| Device { blocks: blocks(part) }).collect(),
        inodes: made.inodes,
        data_paths: made.data.iter().map(|part| directory.join(&part.name)).collect(),
        metadata_path: directory.join(&made.metadata.name),
    })
}

impl BlockRoot {
    /// Checks that the metadata image is read as it was written, and that the same tree always
    /// gives the same image. Returns the image.
    ///
    /// # Panics
    ///
    /// Panics if it is not.
    #[must_use]
    pub fn check(&self) -> Vec<u8> {
        let metadata = fs::read(&self.metadata_path).unwrap();
        assert_eq!(self.metadata_bytes, metadata.len() as u64);
        let image = Image::open(&metadata[..]).unwrap();
        assert_eq!(image.devices(), self.devices);
        assert_eq!(image.metadata_bytes(), self.metadata_bytes);
        let tree = image.tree().unwrap();
        assert_eq!(tree.len() as u64, self.inodes);
        let again = erofs::rewrite(&tree, &self.devices);
        assert!(again == metadata, "the image of the same tree differs");
        metadata
    }

    /// Checks the whole disk by fsck.erofs, if it is to be used.
    pub fn fsck(&self) {
        erofs::fsck(&self.metadata_path, &self.data_paths);
    }
}

/// Removes the block root of an input with its layer files, except for those of some layers.
///
/// # Panics
///
/// Panics if a file cannot be removed, or if there is a file that an input must not leave behind.
pub fn clear(scratch: &Scratch, kept: &[Layer]) {
    let kept: Vec<_> = kept.iter().map(|layer| file_path(scratch, layer.diff_id)).collect();
    for entry in fs::read_dir(scratch.path("blocks")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name == "root.erofs" || name.ends_with(".layer"), "{name} is left");
        if !kept.contains(&path) {
            fs::remove_file(path).unwrap();
        }
    }
}
