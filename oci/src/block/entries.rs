//! Applies single entries to a tree.

use a3s_box_erofs::{Content, DataRange, FileData, InodeId, Metadata};

use super::index::Change;
use super::root_tree::{ApplyError, DEVICE, Missing, Place, RootTree};
use crate::host::text::shown_name;
use crate::unpack::entry_error::EntryError;
use crate::unpack::path::EntryPath;

/// Applies an entry that is neither a hard link nor a whiteout. Returns the directory that the entry
/// describes.
pub(super) fn make(
    tree: &mut RootTree,
    path: &EntryPath,
    change: Change,
    device: u16,
) -> Result<Option<InodeId>, ApplyError> {
    let (metadata, content) = match change {
        Change::Directory(metadata) => return describe(tree, path, metadata).map(Some),
        Change::File { metadata, size_bytes, ranges } => {
            let ranges = ranges.into_iter().map(|range| DataRange {
                file_block: range.file_block,
                device,
                block: range.block,
                blocks: range.blocks,
            });
            (metadata, Content::File(FileData { size_bytes, ranges: ranges.collect() }))
        }
        Change::Symlink { metadata, target } => (metadata, Content::Symlink(target)),
        Change::Fifo(metadata) => (metadata, Content::Fifo),
        // The device has an inode until all layers are applied, so that links to it are its names.
        Change::Skipped => (Metadata::default(), DEVICE),
        Change::HardLink(_) | Change::Whiteout | Change::Opaque => return Ok(None),
    };
    let place = tree.place(path)?;
    tree.make(place, metadata, content)?;
    Ok(None)
}

/// Creates a directory, or sets the metadata of an existing one.
fn describe(
    tree: &mut RootTree,
    path: &EntryPath,
    metadata: Metadata,
) -> Result<InodeId, ApplyError> {
    if path.split().is_none() {
        // An entry for the root changes nothing (decision 0005).
        return Ok(InodeId::ROOT);
    }
    let place = tree.place(path)?;
    let directory = match tree.child(place).filter(|there| tree.is_directory(*there)) {
        Some(directory) => directory,
        None => tree.make_undescribed(place)?,
    };
    // An entry describes a directory completely, its attributes included.
    tree.describe(directory, metadata)?;
    Ok(directory)
}

/// Creates a hard link. If its target is missing, an earlier file of this name is removed, and this
/// returns `false`. A file that has the name at the end of the layer then comes from a later entry.
pub(super) fn link_or_skip(
    tree: &mut RootTree,
    path: &EntryPath,
    target: &EntryPath,
) -> Result<bool, ApplyError> {
    if link(tree, path, target)? {
        return Ok(true);
    }
    let place = tree.place(path)?;
    tree.unlink(place);
    tree.charge((path.as_bytes().len() + target.as_bytes().len()) as u64)?;
    tree.charge(2 * size_of::<EntryPath>() as u64)?;
    Ok(false)
}

/// Creates a hard link. Returns `false` if its target does not exist.
///
/// The metadata of the link's own entry are ignored, because both names share one inode.
fn link(tree: &mut RootTree, path: &EntryPath, target: &EntryPath) -> Result<bool, ApplyError> {
    let is_directory =
        |target: &[u8]| EntryError::HardLinkToDirectory { target: shown_name(target) };
    let (directory, name) = target.split().ok_or_else(|| is_directory(b"/"))?;
    let Some(walk) = tree.walk(directory, Missing::Stop)? else { return Ok(false) };
    let from = Place { directory: walk.here(), name };
    let Some(inode) = tree.entry(from) else { return Ok(false) };
    if tree.is_directory(inode) {
        return Err(is_directory(target.as_bytes()).into());
    }
    let place = tree.place(path)?;
    // A device at the path of a parent was replaced by the parent.
    if tree.entry(from) != Some(inode) {
        return Err(missing_target(target).into());
    }
    match tree.entry(place) {
        // Both names are already the same inode.
        Some(there) if there == inode => return Ok(true),
        // The link takes the name of a directory above its target, which is removed with it.
        Some(there) if walk.contains(there) => {
            tree.unlink(place);
            return Err(missing_target(target).into());
        }
        _ => {}
    }
    tree.link(place, inode)?;
    Ok(true)
}

/// Creates a hard link at the end of its layer.
pub(super) fn link_late(
    tree: &mut RootTree,
    path: &EntryPath,
    target: &EntryPath,
) -> Result<(), ApplyError> {
    let place = tree.place(path)?;
    let (directory, name) = target.split().unwrap_or_default();
    let walk = tree.find(directory)?;
    let inode = walk.and_then(|walk| tree.entry(Place { directory: walk.here(), name }));
    if inode.is_none() {
        return Err(missing_target(target).into());
    }
    // If the name exists, a later entry has created it, and the later entry takes precedence.
    if tree.entry(place).is_none() && !link(tree, path, target)? {
        return Err(missing_target(target).into());
    }
    Ok(())
}

fn missing_target(target: &EntryPath) -> EntryError {
    EntryError::HardLinkTarget { target: shown_name(target.as_bytes()) }
}
