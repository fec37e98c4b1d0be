//! Makes block roots, and checks them. All use of the cache for them is here.

use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;

use a3s_box_erofs::{Device, Image};
use a3s_box_oci::{
    BlockError, CacheError, Compression, Digest, DiskPart, Layer, LayerCache, Layout, Limits,
    StepLimits, TreeLimits,
};

use crate::{Scratch, check_error, erofs};

/// A block root of an accepted input. It holds files and leases of the cache.
#[derive(Debug)]
pub struct BlockRoot {
    /// The number of layers that were in the cache.
    pub hits: usize,
    root: a3s_box_oci::BlockRoot,
}

/// Opens the cache, with limits that an input of some kilobytes can exceed.
fn cache(scratch: &Scratch) -> LayerCache {
    // The default allows a layer some seconds of lookups.
    let steps = StepLimits { floor: 1 << 14, ..StepLimits::default() };
    let limits = Limits {
        entries: 200,
        unpacked_bytes: 4 << 20,
        remembered_bytes: 16 << 10,
        ratio_floor_bytes: 1 << 20,
        steps,
        ..Limits::default()
    };
    let tree_limits = TreeLimits { inodes: 2000, bytes: 1 << 20, steps };
    let cache = LayerCache::open(&scratch.path("cache")).unwrap();
    cache.with_limits(limits).with_tree_limits(tree_limits)
}

/// Lists a directory of the cache.
fn names(scratch: &Scratch, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(scratch.path("cache/layers-v5").join(directory)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
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

/// Returns the name of the layer file of a layer.
fn file_name(diff_id: Digest) -> String {
    format!("file-sha256-{}", diff_id.hex())
}

/// Returns the path of the layer file of a layer.
fn file_path(scratch: &Scratch, diff_id: Digest) -> PathBuf {
    scratch.path("cache/layers-v5/ready").join(file_name(diff_id)).join("layer")
}

/// Puts a file in the place of the layer file of a layer, as if it had been made before in this
/// boot.
///
/// # Panics
///
/// Panics if the file cannot be written.
pub fn plant(scratch: &Scratch, layer: &Layer, file: &[u8]) {
    drop(cache(scratch));
    let path = file_path(scratch, layer.diff_id);
    let directory = path.parent().unwrap();
    fs::create_dir(directory).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    symlink(boot.trim_end(), directory.join("boot")).unwrap();
    fs::write(path, file).unwrap();
}

/// Returns the layer file of a layer, which is in the cache.
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
/// Panics if the error is not the fault of an input, or if it leaves something in the cache that it
/// must not leave.
#[must_use]
pub fn compose(scratch: &Scratch, layers: &[Layer]) -> Option<BlockRoot> {
    let layout = Layout::open(&scratch.path("layout")).unwrap();
    let progress = &mut |_, _| ControlFlow::Continue(());
    let made = cache(scratch).compose_block(&layout, layers, progress);
    assert!(names(scratch, "staging").is_empty(), "{made:?}");
    let error = match made {
        Ok(root) => return Some(BlockRoot { hits: root.hits, root }),
        Err(error) => error,
    };
    check_error(&error);
    match &error {
        CacheError::Layer { layer, .. } => {
            assert!(!file_path(scratch, *layer).exists(), "a refused layer is left: {error:?}");
        }
        CacheError::Block(BlockError::Tree { .. } | BlockError::Limit { .. }) => {}
        _ => panic!("an error of the cache itself: {error:?}"),
    }
    let is_image = |name: &String| name.starts_with("root-");
    assert!(!names(scratch, "ready").iter().any(is_image), "an image is left: {error:?}");
    assert!(names(scratch, "stacks").is_empty(), "a list is left: {error:?}");
    None
}

impl BlockRoot {
    /// Returns the size of the metadata image.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        self.root.parts[0].bytes
    }

    /// Checks that the metadata image is read as it was written, and that the same tree always
    /// gives the same image. Returns the image.
    ///
    /// # Panics
    ///
    /// Panics if it is not.
    #[must_use]
    pub fn check(&self) -> Vec<u8> {
        let (first, data) = self.root.parts.split_first().unwrap();
        let mut metadata = vec![0; usize::try_from(first.bytes).unwrap()];
        first.file.read_exact_at(&mut metadata, 0).unwrap();
        assert_eq!(first.file.metadata().unwrap().len(), first.bytes);
        let blocks = |part: &DiskPart| u32::try_from(part.bytes / 4096).unwrap();
        let devices: Vec<_> = data.iter().map(|part| Device { blocks: blocks(part) }).collect();
        let image = Image::open(&metadata[..]).unwrap();
        assert_eq!(image.devices(), devices);
        assert_eq!(image.metadata_bytes(), first.bytes);
        let again = erofs::rewrite(&image.tree().unwrap(), &devices, image.uuid());
        assert!(again == metadata, "the image of the same tree differs");
        metadata
    }

    /// Checks the whole disk by fsck.erofs, if it is to be used.
    pub fn fsck(&self) {
        // The fds of this process are closed in fsck.erofs, which opens the files again.
        let path = |part: &DiskPart| {
            PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), part.file.as_raw_fd()))
        };
        let paths: Vec<_> = self.root.parts.iter().map(path).collect();
        erofs::fsck(&paths[0], &paths[1..]);
    }
}

/// Removes the metadata images and the lists of block roots, so that the next one is merged.
///
/// # Panics
///
/// Panics if something cannot be removed.
pub fn forget_merges(scratch: &Scratch) {
    remove(scratch, |name| !name.starts_with("root-"));
}

/// Removes the block root of an input with its layer files, except for those of some layers.
///
/// # Panics
///
/// Panics if something cannot be removed, or if an input has left behind what it must not.
pub fn clear(scratch: &Scratch, kept: &[Layer]) {
    let kept: Vec<_> = kept.iter().map(|layer| file_name(layer.diff_id)).collect();
    for name in names(scratch, "ready") {
        assert!(name.starts_with("file-") || name.starts_with("root-"), "{name} is left");
    }
    remove(scratch, |name| kept.iter().any(|kept| kept == name));
    for name in names(scratch, "locks") {
        fs::remove_file(scratch.path("cache/layers-v5/locks").join(name)).unwrap();
    }
}

/// Removes all lists, and all content that is not `kept`.
fn remove(scratch: &Scratch, kept: impl Fn(&str) -> bool) {
    for name in names(scratch, "ready").iter().filter(|name| !kept(name)) {
        fs::remove_dir_all(scratch.path("cache/layers-v5/ready").join(name)).unwrap();
    }
    for name in names(scratch, "stacks") {
        fs::remove_file(scratch.path("cache/layers-v5/stacks").join(name)).unwrap();
    }
}
