//! Hard links, whose targets may be in a lower layer, or come later in their own.

use std::io;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::SFlag;
use nix::unistd::linkat;

use super::path::EntryPath;
use super::place::{Place, file_type};
use super::tree::{EntryError, Tree, path_error};

/// A hard link whose target was not there when its entry came.
#[derive(Debug)]
pub(super) struct LateLink {
    path: EntryPath,
    target: EntryPath,
}

impl Tree {
    /// Makes a hard link to another entry, which keeps the metadata it has. One whose target is not
    /// there waits for the end of the layer.
    pub(super) fn hard_link(
        &mut self,
        path: EntryPath,
        target: EntryPath,
    ) -> Result<(), EntryError> {
        if self.link(&path, &target)? {
            return Ok(());
        }
        self.skip(&path)?;
        self.undecided += 1;
        self.remembered_bytes +=
            path.as_bytes().len() + target.as_bytes().len() + size_of::<LateLink>();
        self.late_links.push(LateLink { path, target });
        Ok(())
    }

    /// Makes a hard link, if its target is there.
    fn link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<bool, EntryError> {
        let a_directory =
            |target: &[u8]| EntryError::HardLinkToDirectory { target: super::show(target) };
        let (directory, name) = target.split().ok_or_else(|| a_directory(b"/"))?;
        let parent = match self.resolve(directory) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
            other => other.map_err(path_error)?,
        };
        let from = Place { parent, directory: directory.into(), name };
        let Some(found) = from.stat()? else { return Ok(false) };
        if file_type(&found) == SFlag::S_IFDIR {
            return Err(a_directory(target.as_bytes()));
        }
        let place = self.place(path)?;
        if place.stat()?.is_some_and(|there| there.st_ino == found.st_ino) {
            return Ok(true); // A link to itself: replacing it would remove the only name.
        }
        let link = || linkat(&from.parent, from.name, &place.parent, place.name, AtFlags::empty());
        // Clearing the place, or the way to it, may have removed the target.
        let missing = || EntryError::HardLinkTarget { target: super::show(target.as_bytes()) };
        if from.stat()?.is_none_or(|left| left.st_ino != found.st_ino) {
            return Err(missing());
        }
        match place.create("make a hard link", link) {
            Err(EntryError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(missing())
            }
            made => made.map(|()| true),
        }
    }

    /// Makes the hard links that waited for their targets, where these are there now.
    ///
    /// In a layer alone the others stay undecided: it is unpacked once more, on top of lower layers,
    /// where one is an error, which comes with its path.
    pub(super) fn make_late_links(&mut self) -> Result<(), (EntryPath, EntryError)> {
        for LateLink { path, target } in std::mem::take(&mut self.late_links) {
            match self.make_late_link(&path, &target) {
                Ok(()) => {}
                Err(error) if self.is_undecided(&error) => {}
                Err(error) => return Err((path, error)),
            }
        }
        Ok(())
    }

    fn make_late_link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<(), EntryError> {
        let is_there = |place: &Place<'_>| Ok(place.kind()?.is_some());
        let (directory, name) = target.split().unwrap_or_default();
        let parent = self.resolve(directory).ok();
        let from = parent.map(|parent| Place { parent, directory: directory.into(), name });
        if !from.as_ref().map_or(Ok(false), is_there)? {
            return Err(EntryError::HardLinkTarget { target: super::show(target.as_bytes()) });
        }
        // Else a later entry of the same name has won.
        if !is_there(&self.place(path)?)? {
            self.link(path, target)?;
        }
        Ok(())
    }
}
