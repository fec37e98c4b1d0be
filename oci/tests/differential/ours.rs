//! Unpacks images by this crate: from a layout to a mounted root file system.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use a3s_box_oci::{Digest, LayerCache, Layout, OverlaySpec, Platform, Stack};

use crate::bench::chain;
use crate::disk;

/// A mounted image. It keeps the leases of its layers, so that the cache does not remove them.
pub(crate) struct Mounted {
    pub(crate) root: PathBuf,
    _stack: Stack,
}

/// Resolves `reference`, unpacks it into an empty cache and mounts it. The cache and the mount are
/// in `directory`, which this creates.
///
/// The cache must be empty. A layer that it already has would not be unpacked again, even if its
/// blob differs.
pub(crate) fn mount(layout: &Path, reference: &str, directory: &Path) -> Result<Mounted, String> {
    let layout = Layout::open(layout).map_err(|error| chain(&error))?;
    let image =
        layout.resolve(Some(reference), &Platform::host()).map_err(|error| chain(&error))?;
    fs::create_dir(directory).unwrap();
    let cache = LayerCache::open(&directory.join("cache")).map_err(|error| chain(&error))?;
    let stack = cache
        .compose(&layout, &image.layers, &mut |_, _| ControlFlow::Continue(()))
        .map_err(|error| chain(&error))?;
    let (root, upper, work) =
        (directory.join("root"), directory.join("upper"), directory.join("work"));
    fs::create_dir(&root).unwrap();
    let spec = OverlaySpec { stack: &stack, upper, work, target: root.clone() };
    spec.mount().map_err(|error| chain(&error))?;
    Ok(Mounted { root, _stack: stack })
}

/// Makes a block root of `reference`, and mounts its disk. The files and the mount are in `directory`,
/// which this creates.
pub(crate) fn mount_blocks(
    layout: &Path,
    reference: &str,
    directory: &Path,
) -> Result<PathBuf, String> {
    let layout = Layout::open(layout).map_err(|error| chain(&error))?;
    let image =
        layout.resolve(Some(reference), &Platform::host()).map_err(|error| chain(&error))?;
    fs::create_dir(directory).unwrap();
    let cache = LayerCache::open(&directory.join("cache")).map_err(|error| chain(&error))?;
    let blocks = cache
        .compose_block(&layout, &image.layers, &mut |_, _| ControlFlow::Continue(()))
        .map_err(|error| chain(&error))?;
    let root = directory.join("root");
    fs::create_dir(&root).unwrap();
    disk::mount_disk(directory, &blocks, &root);
    Ok(root)
}

/// Returns the DiffIDs of the layers of an image, the bottom first.
pub(crate) fn diff_ids(layout: &Path, reference: &str) -> Vec<Digest> {
    let image = Layout::open(layout).unwrap().resolve(Some(reference), &Platform::host()).unwrap();
    image.layers.iter().map(|layer| layer.diff_id).collect()
}
