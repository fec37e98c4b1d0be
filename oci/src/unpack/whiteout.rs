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

use std::collections::{BTreeSet, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::limits::Limits;
use super::path::EntryPath;
use super::seams::Seams;
use super::tree::{Cleared, EntryError, Tree};

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

    /// Puts all whiteouts into the tree, as overlayfs understands them.
    ///
    /// On failure the whiteout's path is returned with the error.
    pub(super) fn apply(mut self, tree: &mut Tree) -> Result<Hides, (EntryPath, EntryError)> {
        let mut hides = Hides::default();
        let mut opaque = HashSet::new();
        for path in self.opaque {
            if path.split().is_some() {
                tree.set_opaque(&path).map_err(|error| (path.clone(), error))?;
                hides.opaque.insert(path.to_path());
            }
            opaque.insert(path);
        }
        hides.root = opaque.iter().any(|path| path.split().is_none());
        // Parents before children: a directory may become opaque on the way.
        self.hidden.sort_unstable();
        for path in self.hidden {
            hides.hidden.insert(path.to_path());
            // In an opaque directory there is nothing to hide, and overlayfs would list the device
            // itself.
            if path.ancestors().skip(1).any(|ancestor| opaque.contains(&ancestor)) {
                continue;
            }
            match tree.hide(&path) {
                Ok(true) => drop(opaque.insert(path)),
                Ok(false) => {}
                Err(error) => return Err((path, error)),
            }
        }
        Ok(hides)
    }
}

/// What the whiteouts of a layer hide.
#[derive(Debug, Default)]
pub(super) struct Hides {
    /// All that is below the layer.
    pub(super) root: bool,
    /// As in [`Seams`].
    pub(super) hidden: BTreeSet<PathBuf>,
    /// As in [`Seams`].
    pub(super) opaque: BTreeSet<PathBuf>,
}

/// Removes from the view of lower layers what the whiteouts of the layer above hide. These were
/// found when that layer was unpacked alone, with its other `seams`.
///
/// A directory that an entry of the layer describes is one, and what a lower layer's symbolic link
/// of its name leads to is not meant.
pub(super) fn clear(
    tree: &mut Tree,
    seams: &Seams,
    limits: &Limits,
) -> Result<(), (EntryPath, EntryError)> {
    let hidden = seams.hidden.iter().map(|path| (path, Cleared::Itself));
    let opaque = seams.opaque.iter().map(|path| (path, Cleared::Content));
    for (path, what) in hidden.chain(opaque) {
        // It was parsed when it was found.
        let Ok(path) = EntryPath::parse(path.as_os_str().as_bytes(), limits) else { continue };
        let directory = if what == Cleared::Itself { path.parent() } else { path.clone() };
        let undescribed = |link: &EntryPath| seams.undescribed.contains(&link.to_path());
        let mut clear = || match tree.leads_through_link(&directory, undescribed)? {
            true => Ok(()),
            false => tree.clear(&path, what),
        };
        clear().map_err(|error| (path.clone(), error))?;
    }
    Ok(())
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
