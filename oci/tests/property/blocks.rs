//! The outcome of a block root for an image: its layers become one EROFS image, which the kernel
//! mounts.

use std::ffi::OsString;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use a3s_box_erofs::Image;
use a3s_box_oci::{CacheError, EntryError, LayerError};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::bench::{Bench, amd64, chain};
use crate::disk::{mount_loop, write_disk};
use crate::fsck;
use crate::mounted::{Outcome, walk};

/// Makes and mounts the block root of the only image of a layout, and unmounts it again. If `checks`,
/// fsck.erofs checks the disk.
pub(crate) fn outcome(bench: &Bench, checks: bool) -> Outcome {
    let layout = bench.layout();
    let image = layout.resolve(None, &amd64()).unwrap();
    let progress = &mut |_, _| ControlFlow::Continue(());
    let root = match bench.cache().compose_block(&layout, &image.layers, progress) {
        Ok(root) => root,
        Err(error) => return refusal(bench, &error),
    };
    if checks && let Err(text) = fsck::check(&root.parts) {
        return Outcome::Failed(text);
    }
    let target = bench.path("block-root");
    fs::create_dir(&target).unwrap();
    mount_file(&write_disk(&bench.root, &root), &target);
    let tree = walk(&target);
    // A child process of another thread can have a copy of a directory's fd until it executes
    // mount(8), so that the mount can be busy.
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    // The reader of EROFS checks the counts of inodes and links, which the kernel does not.
    let file = root.parts[0].file.try_clone().unwrap();
    match (tree, Image::open(file).and_then(|image| image.tree())) {
        (Ok(tree), Ok(read)) if tree.inodes() == read.len() => Outcome::Tree(tree),
        (Ok(tree), Ok(read)) => {
            Outcome::Failed(format!("{} inodes, found {}", read.len(), tree.inodes()))
        }
        (Err(text), _) => Outcome::Failed(text),
        (_, Err(error)) => Outcome::Failed(chain(&error)),
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
fn refusal(bench: &Bench, error: &CacheError) -> Outcome {
    let is_refusal =
        |error: &EntryError| !matches!(error, EntryError::Host(_) | EntryError::Privilege { .. });
    // Whether the file of the refused layer is left is not checked here. Mounts of other threads
    // start programs, which have a copy of each lease until they execute.
    let ready = fs::read_dir(bench.path("cache/layers-v5/ready")).unwrap();
    let is_image = |name: OsString| name.as_encoded_bytes().starts_with(b"root-");
    let leaves_image = ready.into_iter().any(|entry| is_image(entry.unwrap().file_name()));
    match error {
        CacheError::Layer { source: LayerError::Entry { source, .. }, .. }
            if !leaves_image && is_refusal(source) =>
        {
            Outcome::Refused(chain(error))
        }
        _ => Outcome::Failed(format!("{} (metadata image: {leaves_image})", chain(error))),
    }
}
