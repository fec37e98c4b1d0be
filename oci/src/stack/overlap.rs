//! The layers of an image as overlayfs stacks them, and the cases in which the result differs from
//! applying one layer after the other.
//!
//! Each layer is first unpacked alone. The result can differ only at the paths in the layer's
//! [`CrossLayerDependencies`], and only if the lower layers have certain files there:
//!
//! | the layer has                      | lower layers have | consequence                      |
//! |------------------------------------|-------------------|----------------------------------|
//! | a directory without an entry (1)   | a directory       | its metadata is restored         |
//! | the same, or with a late entry (2) | a symbolic link   | on top: files go behind the link |
//! | the same                           | another file      | on top: the layer is refused     |
//! | a whiteout                         | no parent for it  | on top: no whiteout is made (3)  |
//! | a path that it cleared (4)         | any file          | on top: the file is removed      |
//! | an entry that is invalid alone     | any file          | on top                           |
//!
//! 1. The layer has files in the directory, but no entry that describes it.
//! 2. Files were put into the directory before the entry that describes it.
//! 3. Overlayfs would list a whiteout in a directory that is not merged with a lower one.
//! 4. An entry made a file that a later entry removed, or a device was skipped.
//!
//! "Unpacked on top" means that the layer is unpacked a second time, into an overlay mount of the
//! layers below it. Metadata is restored by one additional layer on top of the stack, which
//! contains only these directories.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};

use crate::cache::lookup::CachedLayer;
use crate::host::directory::{OPEN_DIR, open_dir};
use crate::host::overlay_xattr::{OverlayXattrs, is_opaque};
use crate::unpack::cross_layer::CrossLayerDependencies;

/// A stack of layers that grows from the bottom.
#[derive(Debug)]
pub(super) struct LayerStack {
    overlay_xattrs: OverlayXattrs,
    layers: Vec<StackedLayer>,
}

/// A layer, and an fd of its tree.
#[derive(Debug)]
pub(super) struct StackedLayer {
    pub(super) layer: CachedLayer,
    pub(super) tree: OwnedFd,
    /// Whether the layer was unpacked on top of the layers below it.
    is_on_top: bool,
}

/// The file at a path of the merged stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Directory,
    Symlink,
    Other,
}

/// The effect of one layer on a path.
enum Effect {
    /// The layer has no file at the path, and lower layers decide.
    None,
    /// The layer hides the path, so that no file of lower layers is visible there.
    Hides,
    /// The layer has a file at the path. With `ancestor_hides`, a directory on the path is opaque,
    /// so that lower layers do not contribute to it.
    Has { found: Found, ancestor_hides: bool },
}

impl LayerStack {
    pub(super) fn new(overlay_xattrs: OverlayXattrs) -> Self {
        Self { overlay_xattrs, layers: Vec::new() }
    }

    /// Returns the layers, the bottom first.
    pub(super) fn layers(&self) -> &[StackedLayer] {
        &self.layers
    }

    pub(super) fn into_layers(self) -> impl Iterator<Item = CachedLayer> {
        self.layers.into_iter().map(|stacked| stacked.layer)
    }

    /// Removes all layers, because the next layer has an opaque root. Overlayfs ignores an opaque
    /// mark on the root of a layer.
    pub(super) fn clear(&mut self) {
        self.layers.clear();
    }

    /// Adds a layer on top. `is_on_top` is true if it was unpacked on top of the stack.
    ///
    /// If the same layer is in the stack already, the lower one is removed. The upper one
    /// determines all of its paths anyway, and overlayfs refuses to mount a directory twice
    /// (`ELOOP`).
    pub(super) fn push(&mut self, layer: CachedLayer, is_on_top: bool) -> io::Result<()> {
        let tree = open_dir(&layer.path)?;
        self.layers.retain(|below| below.layer.name != layer.name);
        self.layers.push(StackedLayer { layer, tree, is_on_top });
        Ok(())
    }

    /// Returns whether stacking `layer` on top would differ from applying its archive to the merged
    /// stack.
    pub(super) fn differs_under(&self, layer: &CachedLayer) -> io::Result<bool> {
        let CrossLayerDependencies {
            undescribed,
            used_early,
            cleared,
            hidden,
            opaque,
            undecided,
            ..
        } = &layer.dependencies;
        if *undecided > 0 {
            return Ok(true);
        }
        for path in cleared {
            if self.find(path)? != Found::Nothing {
                return Ok(true);
            }
        }
        for directory in undescribed.iter().chain(used_early) {
            if matches!(self.find(directory)?, Found::Symlink | Found::Other) {
                return Ok(true);
            }
        }
        for directory in opaque.intersection(undescribed) {
            // The layer may have the directory only to carry the opaque mark. The archive would
            // then make no directory here.
            if self.find(directory)? != Found::Directory {
                return Ok(true);
            }
        }
        let tree = open_dir(&layer.path)?;
        for path in hidden {
            let parent = path.parent().unwrap_or(Path::new(""));
            // If the layer itself has a file at the path, its tree contains no whiteout there.
            if self.find(parent)? != Found::Directory
                && matches!(effect(&tree, path, self.overlay_xattrs)?, Effect::Hides)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the directories whose metadata must be restored, and the ancestors of these. The
    /// value is the position of the layer that describes the directory, if one does.
    ///
    /// The metadata of a directory must be restored if the topmost layer that has the directory
    /// does not describe it, and a lower layer does: overlayfs takes the metadata from the topmost
    /// layer.
    pub(super) fn inherited(&self) -> io::Result<BTreeMap<PathBuf, Option<usize>>> {
        let undescribed: BTreeSet<&PathBuf> =
            self.layers.iter().flat_map(|below| &below.layer.dependencies.undescribed).collect();
        let mut inherited = BTreeMap::new();
        for path in undescribed {
            let (topmost, describing) = self.describing(path)?;
            if describing.is_some() && topmost != describing {
                for ancestor in path.ancestors() {
                    if !inherited.contains_key(ancestor) {
                        inherited.insert(ancestor.to_owned(), self.describing(ancestor)?.1);
                    }
                }
            }
        }
        Ok(inherited)
    }

    /// Returns the names at which devices were skipped, and that no layer above has hidden or used.
    ///
    /// Only a layer that is unpacked on top of the stack needs them, so they are not kept.
    pub(super) fn skipped(&self) -> io::Result<BTreeSet<PathBuf>> {
        let mut all = BTreeSet::new();
        for StackedLayer { layer, tree, is_on_top } in &self.layers {
            let skipped = layer.dependencies.skipped.iter().cloned();
            // The record of a layer on top is complete. Its tree is not: it has no whiteout of a
            // name at which the merged view of the lower layers had no file.
            if *is_on_top {
                all = skipped.collect();
                continue;
            }
            let mut visible = BTreeSet::new();
            for path in all {
                if matches!(effect(tree, &path, self.overlay_xattrs)?, Effect::None) {
                    visible.insert(path);
                }
            }
            visible.extend(skipped);
            all = visible;
        }
        Ok(all)
    }

    /// Returns the positions of the topmost layer that has the directory `path`, and of the layer
    /// that describes it.
    fn describing(&self, path: &Path) -> io::Result<(Option<usize>, Option<usize>)> {
        let mut topmost = None;
        for (position, below) in self.layers.iter().enumerate().rev() {
            let dependencies = &below.layer.dependencies;
            match effect(&below.tree, path, self.overlay_xattrs)? {
                Effect::None => {}
                Effect::Has { found: Found::Directory, ancestor_hides } => {
                    topmost = topmost.or(Some(position));
                    if !dependencies.leaves_open(path) {
                        return Ok((topmost, Some(position)));
                    }
                    // The layer hides the lower directory and has a new one at the same path, which
                    // does not get the metadata of the old one.
                    if ancestor_hides || dependencies.hidden.contains(path) {
                        break;
                    }
                }
                Effect::Hides | Effect::Has { .. } => break,
            }
        }
        Ok((topmost, None))
    }

    /// Returns the file that the merged stack has at `path`.
    fn find(&self, path: &Path) -> io::Result<Found> {
        for below in self.layers.iter().rev() {
            match effect(&below.tree, path, self.overlay_xattrs)? {
                Effect::None => {}
                Effect::Hides => break,
                Effect::Has { found, .. } => return Ok(found),
            }
        }
        Ok(Found::Nothing)
    }
}

/// Returns the effect of the layer with the tree `root` on `path`. Symbolic links are not followed,
/// because overlayfs merges directories name by name.
fn effect(root: &OwnedFd, path: &Path, overlay_xattrs: OverlayXattrs) -> io::Result<Effect> {
    let mut directory = openat(root, ".", OPEN_DIR, Mode::empty())?;
    let mut ancestor_hides = false;
    let mut components = path.components().peekable();
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else { return Ok(Effect::Hides) };
        let found = match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => kind(stat.st_mode, stat.st_rdev),
            Err(Errno::ENOENT) if ancestor_hides => return Ok(Effect::Hides),
            Err(Errno::ENOENT) => return Ok(Effect::None),
            Err(errno) => return Err(errno.into()),
        };
        match found {
            Some(Found::Directory) if components.peek().is_none() => break,
            Some(Found::Directory) => {
                directory = openat(&directory, name, OPEN_DIR, Mode::empty())?;
                ancestor_hides |= is_opaque(&directory, overlay_xattrs)?;
            }
            Some(found) if components.peek().is_none() => {
                return Ok(Effect::Has { found, ancestor_hides });
            }
            // A whiteout, or a file other than a directory, hides all paths below it.
            _ => return Ok(Effect::Hides),
        }
    }
    Ok(Effect::Has { found: Found::Directory, ancestor_hides })
}

/// Returns the kind of a file, or `None` for a whiteout, a character device with the number 0:0.
fn kind(mode: u32, device: u64) -> Option<Found> {
    match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => Some(Found::Directory),
        SFlag::S_IFLNK => Some(Found::Symlink),
        SFlag::S_IFCHR if device == 0 => None,
        _ => Some(Found::Other),
    }
}
