//! The outcome of a block root for an image: its layers become one EROFS image, which the kernel
//! mounts.

use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;

use a3s_box_oci::{BlockError, BlockImage, BlockLimits, EntryError, LayerError};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::bench::{Bench, amd64, chain};
use crate::disk::{mount_loop, new_directory, write_disk};
use crate::fsck;
use crate::mounted::{Outcome, walk};

/// Makes and mounts the block root of the only image of a layout, and unmounts it again. If `checks`,
/// fsck.erofs checks the disk.
pub(crate) fn outcome(bench: &Bench, checks: bool) -> Outcome {
    let (layout, directory) = (bench.layout(), bench.path("blocks"));
    let image = layout.resolve(None, &amd64()).unwrap();
    let made = BlockImage::compose(
        &layout,
        &image.layers,
        new_directory(&directory).as_fd(),
        &BlockLimits::default(),
        &mut |_, _| ControlFlow::Continue(()),
    );
    let image = match made {
        Ok(image) => image,
        Err(error) => return refusal(bench, &error),
    };
    if checks {
        let data: Vec<_> = image.data.iter().map(|part| directory.join(&part.name)).collect();
        if let Err(text) = fsck::check(&directory.join(&image.metadata.name), &data) {
            return Outcome::Failed(text);
        }
    }
    let target = bench.path("block-root");
    fs::create_dir(&target).unwrap();
    mount_file(&write_disk(&directory, &image), &target);
    let tree = walk(&target);
    // A child process of another thread can have a copy of a directory's fd until it executes
    // mount(8), so that the mount can be busy.
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    match tree {
        Ok(tree) if tree.inodes() as u64 != image.inodes => {
            Outcome::Failed(format!("{} inodes, found {}", image.inodes, tree.inodes()))
        }
        tree => tree.map_or_else(Outcome::Failed, Outcome::Tree),
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

/// Distinguishes the refusal of an entry from other errors. A refusal must leave no metadata image.
fn refusal(bench: &Bench, error: &BlockError) -> Outcome {
    let is_refusal =
        |error: &EntryError| !matches!(error, EntryError::Host(_) | EntryError::Privilege { .. });
    let leaves_image = bench.path("blocks/root.erofs").exists();
    match error {
        BlockError::Layer { source: LayerError::Entry { source, .. }, .. }
            if !leaves_image && is_refusal(source) =>
        {
            Outcome::Refused(chain(error))
        }
        _ => Outcome::Failed(format!("{} (metadata image: {leaves_image})", chain(error))),
    }
}
