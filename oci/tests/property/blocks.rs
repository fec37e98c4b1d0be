//! The outcome of a block root for an image: its layers become one EROFS image, which the kernel
//! mounts.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use a3s_box_erofs::Image;
use a3s_box_oci::{CacheError, EntryError, LayerError};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::bench::{Bench, amd64, chain};
use crate::disk::{mount_loop, write_disk};
use crate::mounted::{Outcome, walk};

/// Makes and mounts the block root of the only image of a layout, and unmounts it again.
pub(crate) fn outcome(bench: &Bench) -> Outcome {
    let layout = bench.layout();
    let image = layout.resolve(None, &amd64()).unwrap();
    let progress = &mut |_, _| ControlFlow::Continue(());
    let root = match bench.cache().compose_block(&layout, &image.layers, progress) {
        Ok(root) => root,
        Err(error) => return refusal(bench, &error),
    };
    let target = bench.path("block-root");
    fs::create_dir(&target).unwrap();
    mount_file(&write_disk(&bench.root, &root), &target);
    let tree = walk(&target);
    // A child process of another thread can have a copy of a directory's fd until it executes
    // mount(8), so that the mount can be busy.
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    // The reader of EROFS checks the counts of inodes and links, which the kernel does not.
    let file = root.parts[0].file.try_clone().unwrap();
    match Image::open(file).and_then(|image| image.tree()) {
        Ok(_) => tree.map_or_else(Outcome::Failed, Outcome::Tree),
        Err(error) => Outcome::Failed(chain(&error)),
    }
}

/// Mounts a disk from its file, which Linux supports since 6.12, or else from a loop device, which
/// takes three times as long.
fn mount_file(disk: &Path, target: &Path) {
    match mount(Some(disk), target, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>) {
        Err(Errno::ENOTBLK) => mount_loop(disk, target),
        mounted => mounted.unwrap(),
    }
}

/// Distinguishes the refusal of an entry from other errors. A refused layer must not be in the cache,
/// and neither must be an image of it.
fn refusal(bench: &Bench, error: &CacheError) -> Outcome {
    let is_refusal =
        |error: &EntryError| !matches!(error, EntryError::Host(_) | EntryError::Privilege { .. });
    let CacheError::Layer { layer, source: LayerError::Entry { source, .. } } = error else {
        return Outcome::Failed(chain(error));
    };
    let image = bench.layout().resolve(None, &amd64()).unwrap();
    let refused = image.layers.iter().filter(|known| known.digest == *layer);
    let refused = refused.map(|layer| layer.diff_id.hex());
    let left: Vec<String> = fs::read_dir(bench.path("cache/layers-v3/ready"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let is_left = |name: String| left.iter().any(|left| left.starts_with("root-") || *left == name);
    match refused.map(|hex| format!("file-sha256-{hex}")).any(is_left) {
        false if is_refusal(source) => Outcome::Refused(chain(error)),
        _ => Outcome::Failed(format!("{} (in the cache: {left:?})", chain(error))),
    }
}
