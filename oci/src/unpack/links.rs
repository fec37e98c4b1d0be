//! Hard links, whose targets may be in a lower layer, or come later in their own.

use std::io;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::SFlag;
use nix::unistd::linkat;

use super::entry_error::{EntryError, path_error};
use super::path::EntryPath;
use super::place::{Place, file_type};
use super::tree::Tree;
use crate::host::text::shown_name;

/// A hard link whose target was not there when its entry came.
#[derive(Debug)]
struct LateLink {
    path: EntryPath,
    target: EntryPath,
}

/// The hard links that wait for the end of their layer.
#[derive(Debug, Default)]
pub(super) struct LateLinks {
    links: Vec<LateLink>,
    bytes: usize,
}

impl LateLinks {
    /// Makes a hard link to another entry, which keeps the metadata it has. One whose target is not
    /// there waits for the end of the layer.
    pub(super) fn make_or_keep(
        &mut self,
        tree: &mut Tree,
        path: EntryPath,
        target: EntryPath,
    ) -> Result<(), EntryError> {
        if link(tree, &path, &target)? {
            return Ok(());
        }
        tree.skip(&path)?;
        tree.undecided += 1;
        self.bytes += path.as_bytes().len() + target.as_bytes().len() + size_of::<LateLink>();
        self.links.push(LateLink { path, target });
        Ok(())
    }

    /// Returns how much memory is held until the end.
    pub(super) fn remembered_bytes(&self) -> usize {
        self.bytes
    }

    /// Makes the hard links that waited for their targets, where these are there now.
    ///
    /// In a layer alone the others stay undecided: it is unpacked once more, on top of lower layers,
    /// where one is an error, which comes with its path.
    pub(super) fn make(self, tree: &mut Tree) -> Result<(), (EntryPath, EntryError)> {
        for LateLink { path, target } in self.links {
            match make_late_link(tree, &path, &target) {
                Ok(()) => {}
                Err(error) if tree.is_undecided(&error) => {}
                Err(error) => return Err((path, error)),
            }
        }
        Ok(())
    }
}

/// Makes a hard link, if its target is there.
fn link(tree: &mut Tree, path: &EntryPath, target: &EntryPath) -> Result<bool, EntryError> {
    let a_directory =
        |target: &[u8]| EntryError::HardLinkToDirectory { target: shown_name(target) };
    let (directory, name) = target.split().ok_or_else(|| a_directory(b"/"))?;
    let parent = match tree.resolve(directory) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
        other => other.map_err(path_error)?,
    };
    let from = Place { parent, directory: directory.into(), name };
    let Some(found) = from.stat()? else { return Ok(false) };
    if file_type(&found) == SFlag::S_IFDIR {
        return Err(a_directory(target.as_bytes()));
    }
    let place = tree.place(path)?;
    if place.stat()?.is_some_and(|there| there.st_ino == found.st_ino) {
        return Ok(true); // A link to itself: replacing it would remove the only name.
    }
    let link = || linkat(&from.parent, from.name, &place.parent, place.name, AtFlags::empty());
    // Clearing the place, or the way to it, may have removed the target.
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

fn make_late_link(tree: &mut Tree, path: &EntryPath, target: &EntryPath) -> Result<(), EntryError> {
    let is_there = |place: &Place<'_>| Ok(place.kind()?.is_some());
    let (directory, name) = target.split().unwrap_or_default();
    let parent = tree.resolve(directory).ok();
    let from = parent.map(|parent| Place { parent, directory: directory.into(), name });
    if !from.as_ref().map_or(Ok(false), is_there)? {
        return Err(EntryError::HardLinkTarget { target: shown_name(target.as_bytes()) });
    }
    // Else a later entry of the same name has won.
    if !is_there(&tree.place(path)?)? {
        link(tree, path, target)?;
    }
    Ok(())
}
