//! The whiteouts of a layer, and which of them have an effect.
//!
//! A whiteout hides files of lower layers only, at any position in the archive (image-spec,
//! layer.md, "Whiteouts"). All of them therefore act before the first entry of their layer, and
//! their paths are resolved in the layers below. A whiteout has no effect in three cases:
//!
//! - It is below the path of another whiteout of the layer, which hides more.
//! - Its path leads to no directory in the layers below.
//! - Its path leads through a file of the layers below that its own layer replaces. A directory of
//!   the layer, which has an entry, replaces a symbolic link, so that the whiteout must not remove
//!   files at the link's target.

use std::collections::HashSet;

use a3s_box_erofs::InodeId;

use super::alone::Alone;
use super::index::{Change, Record};
use super::root_tree::{ApplyError, Missing, Place, RootTree, Walk};
use crate::unpack::path::components;
use crate::unpack::progress::Meter;

/// The paths that the whiteouts of a layer name.
#[derive(Debug, Default)]
pub(super) struct Whiteouts {
    hidden: HashSet<Vec<u8>>,
    opaque: HashSet<Vec<u8>>,
    bytes: u64,
}

impl Whiteouts {
    /// Adds a record if it is a whiteout.
    pub(super) fn add(&mut self, record: &Record) {
        let paths = match record.change {
            Change::Whiteout => &mut self.hidden,
            Change::Opaque => &mut self.opaque,
            _ => return,
        };
        let path = record.path.as_bytes().to_vec();
        self.bytes += (path.len() + size_of::<Vec<u8>>()) as u64;
        paths.insert(path);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hidden.is_empty() && self.opaque.is_empty()
    }

    /// Returns the bytes of memory that the paths take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Removes the hidden files from the tree of the layers below. `alone` is the result of the
    /// layer on an empty tree.
    pub(super) fn apply(
        &self,
        alone: &Alone,
        tree: &mut RootTree,
        meter: &mut Meter<'_>,
    ) -> Result<(), ApplyError> {
        // All paths are resolved before the first removal, because one path can lead through a
        // symbolic link that another path removes.
        let mut hidden = Vec::new();
        for path in &self.hidden {
            meter.beat().map_err(|_stop| ApplyError::Cancelled)?;
            tree.steps.next_entry();
            let (directory, name) = split(path);
            if !self.covers(above(path))
                && let Some(walk) = find(directory, alone, tree)?
            {
                hidden.push((walk.here(), name));
            }
        }
        let mut emptied = Vec::new();
        for path in &self.opaque {
            meter.beat().map_err(|_stop| ApplyError::Cancelled)?;
            tree.steps.next_entry();
            let is_covered = self.covers(above(path)) || self.hidden.contains(path);
            if !is_covered && let Some(walk) = find(path, alone, tree)? {
                emptied.push(walk.here());
            }
        }
        hidden.into_iter().for_each(|(directory, name)| tree.unlink(Place { directory, name }));
        emptied.into_iter().for_each(|directory| tree.clear(directory));
        Ok(())
    }

    /// Returns whether one of these paths is hidden or opaque.
    fn covers<'a>(&self, mut paths: impl Iterator<Item = &'a [u8]>) -> bool {
        paths.any(|path| self.hidden.contains(path) || self.opaque.contains(path))
    }
}

/// Resolves the directory of a whiteout in the layers below. Returns `None` if it is missing, or if
/// the layer replaces a file on the way.
fn find(directory: &[u8], alone: &Alone, tree: &mut RootTree) -> Result<Option<Walk>, ApplyError> {
    let mut here = Some(InodeId::ROOT);
    let mut walk = Walk::new();
    for name in components(directory) {
        let made = here.and_then(|directory| alone.child(Place { directory, name }));
        if let Some(made) = made {
            let below = tree.child(Place { directory: walk.here(), name });
            let merges = below.is_none_or(|below| tree.is_directory(below));
            // A directory without an entry follows a symbolic link below. A directory with an entry
            // replaces the link.
            if !alone.is_directory(made) || alone.is_described(made) && !merges {
                return Ok(None);
            }
        }
        here = made;
        match tree.enter(&mut walk, name, Missing::Stop) {
            Ok(true) => {}
            // A path with too many symbolic links leads to no directory.
            Ok(false) | Err(ApplyError::Entry(_)) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(walk))
}

/// Iterates over the directories above a path, without the root.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| &path[..end])
}

/// Splits a path into its directory and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
