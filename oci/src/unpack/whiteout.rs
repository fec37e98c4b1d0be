//! Whiteouts: how a layer hides what is below it, in the image's form and in that of overlayfs.
//!
//! | in the archive       | in the tree                                        |
//! |----------------------|----------------------------------------------------|
//! | `d/.wh.name`         | `d/name`, a character device 0:0                   |
//! | `d/.wh..wh..opq`     | `d` with the attribute `trusted.overlay.opaque=y`  |
//! | `.wh..wh..opq`       | a fact about the layer: overlayfs ignores the mark on its root |
//!
//! A whiteout concerns lower layers only, wherever it stands in its own. So all are kept until the
//! layer's entries are there: what the layer has at the same place stays, and a directory there
//! becomes opaque.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use super::cross_layer::CrossLayerDependencies;
use super::entry_error::{EntryError, failed, path_error};
use super::limits::Limits;
use super::path::EntryPath;
use super::place::Place;
use super::tree::{Missing, Tree, Walked};
use crate::host::directory::names_in;
use crate::host::remove::remove_tree;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Prefix of the bookkeeping of AUFS, which some archives still hold, and all tools ignore.
const AUFS: &[u8] = b".wh..wh.";

/// What an entry's name says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// An entry to be made.
    Entry,
    /// Something to be hidden.
    Hide(EntryPath),
    /// A directory below which all is to be hidden.
    Opaque(EntryPath),
    /// Nothing that matters.
    Nothing,
}

impl Meaning {
    pub(super) fn of(path: &EntryPath) -> Result<Self, EntryError> {
        let Some((parent, name)) = path.split() else { return Ok(Self::Entry) };
        let whiteout = |component: &&[u8]| component.starts_with(WHITEOUT);
        match parent.split(|byte| *byte == b'/').find(whiteout) {
            None => {}
            Some(component) if component.starts_with(AUFS) => return Ok(Self::Nothing),
            Some(_) => return Err(EntryError::Whiteout),
        }
        match name.strip_prefix(WHITEOUT) {
            None => Ok(Self::Entry),
            Some(_) if name == OPAQUE => Ok(Self::Opaque(path.parent())),
            Some(_) if name.starts_with(AUFS) => Ok(Self::Nothing),
            Some(b"" | b"." | b"..") => Err(EntryError::Whiteout),
            Some(hidden) => Ok(Self::Hide(path.sibling(hidden))),
        }
    }
}

/// The whiteouts of a layer, kept until its entries are there.
#[derive(Debug, Default)]
pub(super) struct Whiteouts {
    opaque: Vec<EntryPath>,
    hidden: Vec<EntryPath>,
    bytes: usize,
}

impl Whiteouts {
    pub(super) fn hide(&mut self, path: EntryPath) {
        self.bytes += path.as_bytes().len() + size_of::<EntryPath>();
        self.hidden.push(path);
    }

    pub(super) fn set_opaque(&mut self, path: EntryPath) {
        self.bytes += path.as_bytes().len() + size_of::<EntryPath>();
        self.opaque.push(path);
    }

    /// Returns how much memory is held until the end.
    pub(super) fn remembered_bytes(&self) -> usize {
        self.bytes
    }

    /// Chooses those that hide something: in what is hidden anyway, overlayfs would list them.
    fn hides(self) -> Hides {
        let mut hides = Hides::default();
        for path in self.opaque.into_iter().collect::<BTreeSet<_>>() {
            // In their order, parents come before children.
            if !hides.covers(path.ancestors().skip(1)) {
                hides.root |= path.split().is_none();
                hides.opaque.insert(path);
            }
        }
        for path in self.hidden.into_iter().collect::<BTreeSet<_>>() {
            if !hides.covers(path.ancestors().skip(1)) {
                hides.hidden.insert(path);
            }
        }
        let Hides { hidden, opaque, .. } = &mut hides;
        opaque.retain(|path| !path.ancestors().any(|ancestor| hidden.contains(&ancestor)));
        hides
    }

    /// Puts all whiteouts into the tree, as overlayfs understands them.
    ///
    /// One below something else than a directory of the layer is none: that itself replaces what is
    /// below.
    ///
    /// On failure the whiteout's path is returned with the error.
    pub(super) fn apply(self, tree: &mut Tree) -> Result<Hides, (EntryPath, EntryError)> {
        let Hides { root, hidden, opaque } = self.hides();
        let mut hides = Hides { root, ..Hides::default() };
        for path in hidden {
            match tree.hide(&path) {
                Ok(true) => drop(hides.hidden.insert(path)),
                Ok(false) => {}
                Err(error) => return Err((path, error)),
            }
        }
        for path in opaque {
            match tree.set_opaque(&path) {
                Ok(true) => drop(hides.opaque.insert(path)),
                Ok(false) => {}
                Err(error) => return Err((path, error)),
            }
        }
        Ok(hides)
    }
}

/// What the whiteouts of a layer hide; none is below another.
#[derive(Debug, Default)]
pub(super) struct Hides {
    /// All that is below the layer.
    pub(super) root: bool,
    /// As in [`CrossLayerDependencies`].
    pub(super) hidden: BTreeSet<EntryPath>,
    /// As in [`CrossLayerDependencies`]; the root as well.
    pub(super) opaque: BTreeSet<EntryPath>,
}

impl Hides {
    /// Whether one of these paths is hidden, or all that is in it.
    fn covers(&self, mut paths: impl Iterator<Item = EntryPath>) -> bool {
        paths.any(|path| self.opaque.contains(&path) || self.hidden.contains(&path))
    }
}

/// Removes from the view of lower layers what the whiteouts of the layer above hide. These were
/// found when that layer was unpacked alone, with its other `dependencies`.
///
/// What the layer has an entry for replaces what is below: then what a lower layer's symbolic link
/// of that name leads to is not meant.
pub(super) fn clear(
    tree: &mut Tree,
    dependencies: &CrossLayerDependencies,
    limits: &Limits,
) -> Result<(), (EntryPath, EntryError)> {
    let is_followed = |link: &EntryPath| dependencies.undescribed.contains(&link.to_path());
    let hidden = dependencies.hidden.iter().map(|path| (path, false));
    let opaque = dependencies.opaque.iter().map(|path| (path, true));
    // All are found before any is removed, as one may lead through another.
    let mut found = Vec::new();
    for (path, is_opaque) in hidden.chain(opaque) {
        // It was parsed when it was found.
        let Ok(path) = EntryPath::parse(path.as_os_str().as_bytes(), limits) else { continue };
        let directory = if is_opaque { path.clone() } else { path.parent() };
        let mut find = || match tree.leads_through_link(&directory, is_followed)? {
            true => Ok(None),
            false => tree.walk(directory.as_bytes(), Missing::Stop),
        };
        let walked = match find() {
            Err(EntryError::SymlinkLoop) => None,
            walked => walked.map_err(|error| (path.clone(), error))?,
        };
        found.extend(walked.map(|Walked { path: directory, .. }| (path, is_opaque, directory)));
    }
    for (path, is_opaque, directory) in found {
        let name = path.split().filter(|_| !is_opaque).map(|(_, name)| name);
        tree.clear(&directory, name).map_err(|error| (path.clone(), error))?;
    }
    Ok(())
}

impl Tree {
    /// Marks a directory as hiding what is below it, and makes one that is missing; `false` when
    /// something else takes its place.
    fn set_opaque(&mut self, path: &EntryPath) -> Result<bool, EntryError> {
        if path.split().is_none() {
            return Ok(true); // The list of layers ends there.
        }
        let Some(place) = self.place_to_hide(path)? else { return Ok(false) };
        match place.kind()? {
            Some(SFlag::S_IFDIR) => {}
            Some(_) => return Ok(false),
            None => {
                let made = place.make_dir()?;
                self.set_implicit(&place.path(), made)?;
            }
        }
        place.mark_opaque(self.overlay_xattrs).map(|()| true)
    }

    /// Hides what lower layers have at `path`; `false` when something else takes the place of its
    /// directory.
    fn hide(&mut self, path: &EntryPath) -> Result<bool, EntryError> {
        let Some(place) = self.place_to_hide(path)? else { return Ok(false) };
        match place.kind()? {
            Some(SFlag::S_IFDIR) => place.mark_opaque(self.overlay_xattrs)?,
            Some(_) => {}
            None => place.make_whiteout()?,
        }
        Ok(true)
    }

    fn place_to_hide<'a>(&mut self, path: &'a EntryPath) -> Result<Option<Place<'a>>, EntryError> {
        if self.leads_through_link(&path.parent(), |_| false)? {
            return Ok(None);
        }
        match self.place(path) {
            Err(EntryError::ParentNotDirectory) => Ok(None),
            place => place.map(Some),
        }
    }

    /// Removes `name`, or all there is, from a directory, given without symbolic links.
    fn clear(&mut self, directory: &[u8], name: Option<&[u8]>) -> Result<(), EntryError> {
        let parent = match self.open_real(directory) {
            // It was removed itself.
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            opened => opened.map_err(path_error)?,
        };
        self.touch(&parent)?;
        let names = match name {
            Some(name) => vec![name.to_vec()],
            None => names_in(&parent).map_err(failed("list a directory"))?,
        };
        for name in names {
            remove_tree(parent.as_fd(), &name).map_err(failed("remove what a whiteout hides"))?;
        }
        Ok(())
    }

    /// Says whether a path leads through a symbolic link, other than those that `is_followed`.
    fn leads_through_link(
        &self,
        path: &EntryPath,
        is_followed: impl Fn(&EntryPath) -> bool,
    ) -> Result<bool, EntryError> {
        for ancestor in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
            let Some((directory, name)) = ancestor.split() else { continue };
            let Ok(parent) = self.resolve(directory) else { return Ok(false) };
            let place = Place { parent, directory: directory.into(), name };
            if place.kind()? == Some(SFlag::S_IFLNK) && !is_followed(&ancestor) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack::limits::Limits;

    fn path(raw: &str) -> EntryPath {
        EntryPath::parse(raw.as_bytes(), &Limits::default()).unwrap()
    }

    #[test]
    fn names_are_understood() {
        let cases = [
            ("a/b", Some(Meaning::Entry)),
            ("a/.who", Some(Meaning::Entry)),
            ("./", Some(Meaning::Entry)),
            (".wh.a", Some(Meaning::Hide(path("a")))),
            ("a/.wh.b", Some(Meaning::Hide(path("a/b")))),
            ("a/.wh..wh..opq", Some(Meaning::Opaque(path("a")))),
            (".wh..wh..opq", Some(Meaning::Opaque(path("/")))),
            (".wh..wh.plnk", Some(Meaning::Nothing)),
            (".wh..wh.plnk/12.34", Some(Meaning::Nothing)),
            (".wh.", None),
            (".wh..", None),
            ("a/.wh...", None),
            (".wh.d/file", None),
        ];
        for (raw, expected) in cases {
            assert_eq!(Meaning::of(&path(raw)).ok(), expected, "{raw}");
        }
    }
}
