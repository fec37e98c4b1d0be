//! Hard links. Their targets can be in a lower layer, or come later in their own layer.

use std::io;

use nix::fcntl::AtFlags;
use nix::sys::stat::SFlag;
use nix::unistd::linkat;

use super::entry_error::EntryError;
use super::error::LayerError;
use super::path::EntryPath;
use super::place::{Place, file_type};
use super::progress::Meter;
use super::reader::entry_error;
use super::tree::Tree;
use crate::host::text::shown_name;

/// A hard link whose target did not exist when its entry was read.
#[derive(Debug)]
struct LateLink {
    path: EntryPath,
    target: EntryPath,
}

/// The hard links that are created at the end of their layer.
#[derive(Debug, Default)]
pub(super) struct LateLinks {
    links: Vec<LateLink>,
    bytes: usize,
}

impl LateLinks {
    /// Creates a hard link to another entry. If the target does not exist yet, the link is kept
    /// until the end of the layer.
    ///
    /// The metadata of the link's own entry is ignored, because both names share one inode and the
    /// target's entry has set its metadata.
    pub(super) fn make_or_keep(
        &mut self,
        tree: &mut Tree,
        path: EntryPath,
        target: EntryPath,
    ) -> Result<(), EntryError> {
        if link(tree, &path, &target)? {
            return Ok(());
        }
        if let Some(device) = tree.skipped_path(&target)? {
            return skip_link(tree, &path, &target, &device);
        }
        // An earlier file of this name is removed now. A file that has the name at the end of the
        // layer was therefore created by a later entry, which takes precedence.
        tree.skip(&path)?;
        tree.undecided += 1;
        self.bytes += path.as_bytes().len() + target.as_bytes().len() + size_of::<LateLink>();
        self.links.push(LateLink { path, target });
        Ok(())
    }

    /// Returns the bytes of memory that are held until the end of the layer.
    pub(super) fn remembered_bytes(&self) -> usize {
        self.bytes
    }

    /// Creates the hard links that were kept.
    ///
    /// If a target is missing in a layer that is unpacked alone, the link stays undecided: the
    /// layer is then unpacked again, on top of its lower layers. A target that is still missing
    /// there is an error.
    pub(super) fn make(self, tree: &mut Tree, meter: &mut Meter<'_>) -> Result<(), LayerError> {
        for LateLink { path, target } in self.links {
            meter.beat()?;
            tree.steps.next_entry();
            match make_late_link(tree, &path, &target) {
                Ok(()) => {}
                Err(error) if tree.is_undecided(&error) => {}
                Err(error) => return Err(entry_error(path.as_bytes(), error)),
            }
        }
        Ok(())
    }
}

/// Creates a hard link. Returns `false` if its target does not exist.
fn link(tree: &mut Tree, path: &EntryPath, target: &EntryPath) -> Result<bool, EntryError> {
    let directory_error =
        |target: &[u8]| EntryError::HardLinkToDirectory { target: shown_name(target) };
    let (directory, name) = target.split().ok_or_else(|| directory_error(b"/"))?;
    let Some(parent) = tree.resolve(directory)? else { return Ok(false) };
    let from = Place { parent, directory: directory.into(), name };
    let Some(found) = from.stat()? else { return Ok(false) };
    if file_type(&found) == SFlag::S_IFDIR {
        return Err(directory_error(target.as_bytes()));
    }
    let place = tree.place_for(path)?;
    if place.stat()?.is_some_and(|there| there.st_ino == found.st_ino) {
        // Both names are already the same inode. To replace the name could remove the last one.
        return Ok(true);
    }
    // Without `AT_SYMLINK_FOLLOW`, a hard link to a symbolic link shares the inode of the symbolic
    // link itself.
    let link = || linkat(&from.parent, from.name, &place.parent, place.name, AtFlags::empty());
    // The target is checked again, because `Tree::place_for` can have removed it with a file that was
    // in the way of a parent.
    let missing = || EntryError::HardLinkTarget { target: shown_name(target.as_bytes()) };
    if from.stat()?.is_none_or(|left| left.st_ino != found.st_ino) {
        return Err(missing());
    }
    match place.create("make a hard link", link) {
        Err(EntryError::Host(error)) if error.source.kind() == io::ErrorKind::NotFound => {
            Err(missing())
        }
        made => made.map(|()| true),
    }
}

/// Skips a hard link to a device that was skipped. `device` is the path of the device without
/// symbolic links.
fn skip_link(
    tree: &mut Tree,
    path: &EntryPath,
    target: &EntryPath,
    device: &[u8],
) -> Result<(), EntryError> {
    tree.skip_device(path)?;
    // A directory of the link's name was removed. A device in it is a missing target, as a file is.
    match tree.is_skipped(device) {
        true => Ok(()),
        false => Err(EntryError::HardLinkTarget { target: shown_name(target.as_bytes()) }),
    }
}

fn make_late_link(tree: &mut Tree, path: &EntryPath, target: &EntryPath) -> Result<(), EntryError> {
    let is_there = |place: &Place<'_>| place.kind().map(|kind| kind.is_some());
    let (directory, name) = target.split().unwrap_or_default();
    let parent = match tree.resolve(directory) {
        // A path with too many symbolic links leads to no directory.
        Err(EntryError::SymlinkLoop) => None,
        found => found?,
    };
    let from = parent.map(|parent| Place { parent, directory: directory.into(), name });
    let is_made = from.as_ref().map_or(Ok(false), is_there)?;
    let device = if is_made { None } else { tree.skipped_path(target)? };
    if !is_made && device.is_none() {
        return Err(EntryError::HardLinkTarget { target: shown_name(target.as_bytes()) });
    }
    // If the name exists, a later entry has created it, and the later entry takes precedence.
    let place = tree.place(path)?;
    if is_there(&place)? || tree.is_skipped(&place.path()) {
        return Ok(());
    }
    match device {
        Some(device) => skip_link(tree, path, target, &device),
        None => link(tree, path, target).map(drop),
    }
}
