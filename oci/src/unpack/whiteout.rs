//! Converts the whiteouts of an image to whiteouts of overlayfs.
//!
//! | in the archive   | in the tree                                       |
//! |------------------|---------------------------------------------------|
//! | `d/.wh.name`     | `d/name`, a character device 0:0                  |
//! | `d/.wh..wh..opq` | `d` with the attribute `trusted.overlay.opaque=y` |
//! | `.wh..wh..opq`   | no file, but `LayerFacts::opaque_root`            |
//!
//! Overlayfs ignores the mark on the root of a layer. The stack omits the layers below instead.
//!
//! A whiteout hides files of lower layers only, at any position in the archive (image-spec,
//! layer.md, "Whiteouts"). All whiteouts are therefore kept until the other entries of the layer
//! have been created. A file of the layer itself at the same path stays, and a directory there
//! becomes opaque.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use super::cross_layer::CrossLayerDependencies;
use super::entry_error::{EntryError, failed, path_error};
use super::error::LayerError;
use super::limits::Limits;
use super::path::EntryPath;
use super::place::Place;
use super::progress::Meter;
use super::reader::entry_error;
use super::tree::{Missing, Tree, Walk};
use crate::host::directory::names_in;
use crate::host::remove::remove_tree;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Prefix of the metadata files of AUFS. Some archives still hold them, and all tools ignore them.
const AUFS: &[u8] = b".wh..wh.";

/// The meaning of an entry's name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// An entry to be created.
    Entry,
    /// A whiteout of this path.
    Hide(EntryPath),
    /// An opaque whiteout of this directory.
    Opaque(EntryPath),
    /// An entry to be ignored.
    Ignored,
}

impl Meaning {
    pub(crate) fn of(path: &EntryPath) -> Result<Self, EntryError> {
        let Some((parent, name)) = path.split() else { return Ok(Self::Entry) };
        let whiteout = |component: &&[u8]| component.starts_with(WHITEOUT);
        // The whiteout of a directory `.wh.d` would have the name `.wh..wh.d`, which is a name of
        // AUFS and ignored. No later layer could remove the directory, so it is refused.
        match parent.split(|byte| *byte == b'/').find(whiteout) {
            None => {}
            Some(component) if component.starts_with(AUFS) => return Ok(Self::Ignored),
            Some(_) => return Err(EntryError::Whiteout),
        }
        match name.strip_prefix(WHITEOUT) {
            None => Ok(Self::Entry),
            Some(_) if name == OPAQUE => Ok(Self::Opaque(path.parent())),
            Some(_) if name.starts_with(AUFS) => Ok(Self::Ignored),
            // These names would hide no file, or the directory itself, or its parent.
            Some(b"" | b"." | b"..") => Err(EntryError::Whiteout),
            Some(hidden) => Ok(Self::Hide(path.sibling(hidden))),
        }
    }
}

/// The whiteouts of a layer. They are kept until its other entries have been created.
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

    /// Returns the bytes of memory that are held until the end of the layer.
    pub(super) fn remembered_bytes(&self) -> usize {
        self.bytes
    }

    /// Selects the whiteouts that are needed, and drops those below a hidden or opaque directory.
    ///
    /// Overlayfs does not merge an opaque directory, and lists a whiteout in a directory that is
    /// not merged as a device node.
    fn hides(self) -> Hides {
        let mut hides = Hides::default();
        for path in self.opaque.into_iter().collect::<BTreeSet<_>>() {
            // The set is ordered, so that parents come before their children.
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
        // A hidden directory needs no opaque mark, because the whiteout hides all of its content.
        let Hides { hidden, opaque, .. } = &mut hides;
        opaque.retain(|path| !path.ancestors().any(|ancestor| hidden.contains(&ancestor)));
        hides
    }

    /// Creates all whiteouts in the tree in the form of overlayfs.
    ///
    /// A whiteout below a file or symbolic link of the layer is dropped, because the file itself
    /// replaces the lower layers' directory.
    pub(super) fn apply(self, tree: &mut Tree, meter: &mut Meter<'_>) -> Result<Hides, LayerError> {
        let failed = |path: &EntryPath| {
            let path = path.as_bytes().to_vec();
            move |error| entry_error(&path, error)
        };
        let Hides { root, hidden, opaque } = self.hides();
        let mut hides = Hides { root, ..Hides::default() };
        for path in hidden {
            meter.beat()?;
            tree.steps.next_entry();
            if tree.hide(&path).map_err(failed(&path))? {
                hides.hidden.insert(path);
            }
        }
        for path in opaque {
            meter.beat()?;
            tree.steps.next_entry();
            if tree.set_opaque(&path).map_err(failed(&path))? {
                hides.opaque.insert(path);
            }
        }
        Ok(hides)
    }
}

/// The paths that the whiteouts of a layer hide. No path is below another one.
#[derive(Debug, Default)]
pub(super) struct Hides {
    /// Whether the layer hides all lower layers.
    pub(super) root: bool,
    /// See [`CrossLayerDependencies::hidden`].
    pub(super) hidden: BTreeSet<EntryPath>,
    /// See [`CrossLayerDependencies::opaque`]. It holds the root too, if that is opaque.
    pub(super) opaque: BTreeSet<EntryPath>,
}

impl Hides {
    /// Returns whether one of these paths is hidden or opaque.
    fn covers(&self, mut paths: impl Iterator<Item = EntryPath>) -> bool {
        paths.any(|path| self.opaque.contains(&path) || self.hidden.contains(&path))
    }
}

/// Removes the files that a layer's whiteouts name from the view of its lower layers.
///
/// The whiteouts are part of the `dependencies` that were recorded when the layer was unpacked
/// alone.
///
/// A path can lead through a symbolic link of a lower layer. The link is followed only if the layer
/// has created this directory as a parent without an entry. An entry of the layer replaces the
/// link, so that the whiteout must not remove files at the link's target.
pub(super) fn clear(
    tree: &mut Tree,
    dependencies: &CrossLayerDependencies,
    limits: &Limits,
    meter: &mut Meter<'_>,
) -> Result<(), LayerError> {
    let is_followed = |link: &EntryPath| dependencies.undescribed.contains(&link.to_path());
    let hidden = dependencies.hidden.iter().map(|path| (path, false));
    let opaque = dependencies.opaque.iter().map(|path| (path, true));
    // All paths are resolved before the first removal, because one path can lead through a symbolic
    // link that another path removes.
    let mut found = Vec::new();
    for (path, is_opaque) in hidden.chain(opaque) {
        meter.beat()?;
        tree.steps.next_entry();
        // The path was parsed when the layer was unpacked alone, so that this does not fail.
        let Ok(path) = EntryPath::parse(path.as_os_str().as_bytes(), limits) else { continue };
        let directory = if is_opaque { path.clone() } else { path.parent() };
        let mut find = || match tree.leads_through_link(&directory, is_followed)? {
            true => Ok(None),
            false => tree.walk(directory.as_bytes(), Missing::Stop),
        };
        let walked = match find() {
            // A path that leads to no directory hides nothing, so a loop is not an error here.
            Err(EntryError::SymlinkLoop) => None,
            walked => walked.map_err(|error| entry_error(path.as_bytes(), error))?,
        };
        found.extend(walked.map(|Walk { path: directory, .. }| (path, is_opaque, directory)));
    }
    for (path, is_opaque, directory) in found {
        meter.beat()?;
        let name = path.split().filter(|_| !is_opaque).map(|(_, name)| name);
        tree.clear(&directory, name).map_err(|error| entry_error(path.as_bytes(), error))?;
    }
    Ok(())
}

impl Tree {
    /// Marks a directory as opaque, and creates it if it is missing. Returns `false` if the layer
    /// has another file at the path.
    fn set_opaque(&mut self, path: &EntryPath) -> Result<bool, EntryError> {
        if path.split().is_none() {
            // The root needs no mark: the stack omits all layers below this one.
            return Ok(true);
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

    /// Hides `path` of lower layers. Returns `false` if the layer has another file in place of a
    /// parent directory.
    fn hide(&mut self, path: &EntryPath) -> Result<bool, EntryError> {
        let Some(place) = self.place_to_hide(path)? else { return Ok(false) };
        match place.kind()? {
            Some(SFlag::S_IFDIR) => place.mark_opaque(self.overlay_xattrs)?,
            Some(_) => {}
            None => place.make_whiteout()?,
        }
        Ok(true)
    }

    /// Returns the place of a whiteout, or `None` if a parent is not a directory of this layer.
    fn place_to_hide<'a>(&mut self, path: &'a EntryPath) -> Result<Option<Place<'a>>, EntryError> {
        if self.leads_through_link(&path.parent(), |_| false)? {
            return Ok(None);
        }
        match self.place(path) {
            Err(EntryError::ParentNotDirectory) => Ok(None),
            place => place.map(Some),
        }
    }

    /// Removes `name` from a directory, or all entries without a name. The path of the directory
    /// must have no symbolic links.
    fn clear(&mut self, directory: &[u8], name: Option<&[u8]>) -> Result<(), EntryError> {
        self.forget_skipped_in(directory, name);
        let parent = match self.open_real(directory) {
            // Another whiteout has removed the directory.
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            opened => opened.map_err(path_error)?,
        };
        // A whiteout does not describe the directory, whose time is therefore restored later.
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

    /// Returns whether a path leads through a symbolic link for which `is_followed` is false.
    fn leads_through_link(
        &mut self,
        path: &EntryPath,
        is_followed: impl Fn(&EntryPath) -> bool,
    ) -> Result<bool, EntryError> {
        let mut walk = self.start_walk()?;
        for ancestor in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
            let Some((_, name)) = ancestor.split() else { continue };
            if walk.has_link(name)? && !is_followed(&ancestor) {
                return Ok(true);
            }
            match self.enter(walk, name, Missing::Stop) {
                Ok(Some(next)) => walk = next,
                // A path that leads to no directory leads through no further link.
                Ok(None) | Err(EntryError::SymlinkLoop) => return Ok(false),
                Err(error) => return Err(error),
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
    fn name_with_each_prefix_has_its_meaning() {
        let cases = [
            ("a/b", Some(Meaning::Entry)),
            ("a/.who", Some(Meaning::Entry)),
            ("./", Some(Meaning::Entry)),
            (".wh.a", Some(Meaning::Hide(path("a")))),
            ("a/.wh.b", Some(Meaning::Hide(path("a/b")))),
            ("a/.wh..wh..opq", Some(Meaning::Opaque(path("a")))),
            (".wh..wh..opq", Some(Meaning::Opaque(path("/")))),
            (".wh..wh.plnk", Some(Meaning::Ignored)),
            (".wh..wh.plnk/12.34", Some(Meaning::Ignored)),
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
