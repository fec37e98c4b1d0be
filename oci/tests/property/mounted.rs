//! The real thing: an image written to disk, unpacked, mounted and looked at.

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

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// What became of an image.
pub(crate) enum Outcome {
    Tree(Tree),
    /// An entry was refused, for the reason given.
    Refused(String),
    /// Something else went wrong.
    Failed(String),
}

/// Writes, unpacks and mounts an image in the empty directory `directory`.
pub(crate) fn outcome(directory: &Path, image: &Image) -> Outcome {
    let bench = Bench::make_at(directory);
    let archives: Vec<Vec<u8>> = image.0.iter().map(|layer| archive(layer)).collect();
    let blobs: Vec<_> = archives.iter().map(|tar| bench.blob(PLAIN, tar)).collect();
    let diff_ids: Vec<_> = archives.iter().map(|tar| Digest::of(tar)).collect();
    bench.publish(&[bench.image_of("linux/amd64", &blobs, &diff_ids).descriptor("")]);
    let target = bench.path("root");
    fs::create_dir(&target).unwrap();
    match mount(&bench, &target) {
        Ok(_stack) => {
            let tree = walk(&target);
            umount2(&target, MntFlags::empty()).unwrap();
            tree.map_or_else(Outcome::Failed, Outcome::Tree)
        }
        Err(error) => error,
    }
}

/// Unpacks and mounts the only image of a layout at `target`; the stack is to be kept for as long as
/// it is mounted.
fn mount(bench: &Bench, target: &Path) -> Result<Stack, Outcome> {
    let image = bench.layout().resolve(None, &amd64()).unwrap();
    let stack = bench.compose(&image).map_err(|error| refusal(bench, &error))?;
    let (upper, work) = (bench.path("upper"), bench.path("work"));
    let spec = OverlaySpec { stack: &stack, upper, work, target: target.to_owned() };
    spec.mount().map_err(|error| Outcome::Failed(chain(&error)))?;
    Ok(stack)
}

/// Tells the refusal of an entry from other errors.
fn refusal(bench: &Bench, error: &CacheError) -> Outcome {
    let staging = fs::read_dir(bench.path("cache/layers-v2/staging")).unwrap().count();
    let is_refusal = |error: &EntryError| match error {
        // A link whose target goes when its place is cleared.
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
        _ => Outcome::Failed(format!("{} ({staging} staging directories are left)", chain(error))),
    }
}

/// Looks at all that is below `root`.
fn walk(root: &Path) -> Result<Tree, String> {
    let mut tree = Tree::default();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let found = fs::symlink_metadata(&path)
            .map_err(|error| format!("`{name}` is listed but cannot be looked at: {error}"))?;
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
            format!("something of mode {:o}", found.mode())
        };
        if !kind.is_dir() {
            tree.links.insert(name.clone(), (found.ino(), 0));
        }
        tree.entries.insert(name, text);
    }
    Ok(tree)
}

/// Reads the extended attributes that a box can see.
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
