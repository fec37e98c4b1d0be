//! The outcome of this crate for an image: the image is written to disk, unpacked, mounted by
//! overlayfs and read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use a3s_box_oci::{CacheError, Digest, EntryError, LayerError, OverlaySpec, Stack};
use nix::mount::{MntFlags, umount2};

use crate::bench::{Bench, amd64, chain};
use crate::image::{Image, Metadata, archive};
use crate::model::Tree;

/// Media type of an uncompressed layer.
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// The outcome of an image.
pub(crate) enum Outcome {
    /// The tree of the mounted image.
    Tree(Tree),
    /// An entry was refused. The text is the reason.
    Refused(String),
    /// Another error, which no image may cause. The text is the reason.
    Failed(String),
}

/// Writes the layout of an image in the empty directory `directory`.
pub(crate) fn publish(directory: &Path, image: &Image) -> Bench {
    let bench = Bench::make_at(directory);
    let archives: Vec<Vec<u8>> = image.0.iter().map(|layer| archive(layer)).collect();
    let blobs: Vec<_> = archives.iter().map(|tar| bench.blob(PLAIN, tar)).collect();
    let diff_ids: Vec<_> = archives.iter().map(|tar| Digest::of(tar)).collect();
    bench.publish(&[bench.image_of("linux/amd64", &blobs, &diff_ids).descriptor("")]);
    bench
}

/// Unpacks and mounts the only image of a layout, and unmounts it again.
pub(crate) fn outcome(bench: &Bench) -> Outcome {
    let target = bench.path("root");
    fs::create_dir(&target).unwrap();
    match mount(bench, &target) {
        Ok(_stack) => {
            let tree = walk(&target);
            // A child process of another thread can have a copy of a directory's fd for a moment.
            umount2(&target, MntFlags::MNT_DETACH).unwrap();
            tree.map_or_else(Outcome::Failed, Outcome::Tree)
        }
        Err(error) => error,
    }
}

/// Unpacks the only image of a layout and mounts it at `target`. Callers must keep the stack as
/// long as the mount exists, because it holds the leases of the layers.
fn mount(bench: &Bench, target: &Path) -> Result<Stack, Outcome> {
    let image = bench.layout().resolve(None, &amd64()).unwrap();
    let stack = bench.compose(&image).map_err(|error| refusal(bench, &error))?;
    let (upper, work) = (bench.path("upper"), bench.path("work"));
    let spec = OverlaySpec { stack: &stack, upper, work, target: target.to_owned() };
    spec.mount().map_err(|error| Outcome::Failed(chain(&error)))?;
    Ok(stack)
}

/// Distinguishes the refusal of an entry from other errors. A refusal must leave no staging
/// directory.
fn refusal(bench: &Bench, error: &CacheError) -> Outcome {
    let staging = fs::read_dir(bench.path("cache/layers-v5/staging")).unwrap().count();
    let is_refusal = |error: &EntryError| match error {
        // The target was removed when the name of the link was cleared.
        EntryError::Host(error) => error.action == "make a hard link",
        EntryError::Privilege { .. } => false,
        _ => true,
    };
    match error {
        CacheError::Layer { source: LayerError::Entry { source, .. }, .. }
            if staging == 0 && is_refusal(source) =>
        {
            Outcome::Refused(chain(error))
        }
        _ => Outcome::Failed(format!("{} ({staging} staging directories remain)", chain(error))),
    }
}

/// Reads the root and all files below it. An error names a file that is listed but has no status.
pub(crate) fn walk(root: &Path) -> Result<Tree, String> {
    let mut tree = Tree::default();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let found = fs::symlink_metadata(&path)
            .map_err(|error| format!("`{name}` is listed, but `lstat` fails: {error}"))?;
        let metadata = Metadata {
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            mtime: (found.mtime(), u32::try_from(found.mtime_nsec()).unwrap()),
            xattrs: xattrs(&path),
        };
        let kind = found.file_type();
        let text = if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            format!("dir ({metadata})")
        } else if kind.is_file() {
            format!("file `{}` ({metadata})", fs::read_to_string(&path).unwrap())
        } else if kind.is_symlink() {
            format!("symlink -> {} ({metadata})", fs::read_link(&path).unwrap().display())
        } else if kind.is_fifo() {
            format!("fifo ({metadata})")
        } else {
            format!("unexpected file of mode {:o}", found.mode())
        };
        if !kind.is_dir() {
            tree.links.insert(name.clone(), (found.ino(), 0));
        }
        tree.counts.insert(name.clone(), found.nlink());
        tree.entries.insert(name, text);
    }
    Ok(tree)
}

/// Reads all extended attributes of a file. An overlay mount hides the attributes of
/// overlayfs.
fn xattrs(path: &Path) -> BTreeMap<String, String> {
    let mut names = [0_u8; 1024];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    names
        .map(|name| {
            let mut value = [0_u8; 64];
            let length =
                rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value).unwrap();
            (text(name), text(&value[..length]))
        })
        .collect()
}
