//! The layers of an image as overlayfs stacks them, and where that is not what applying them in
//! order makes.
//!
//! Layers are unpacked apart. Only at the paths that a layer's [`CrossLayerDependencies`] name may that matter, and
//! what lower layers have there decides:
//!
//! | the layer has                        | and below it is      | then                                |
//! |--------------------------------------|----------------------|-------------------------------------|
//! | a directory that no entry describes  | a directory          | it gets that one's metadata back    |
//! | the same, at least for a while       | a symbolic link      | unpacked on top: it goes through it |
//! | the same                             | a file               | unpacked on top: it is refused      |
//! | a whiteout                           | no directory to hide it in | unpacked on top: it would be listed |
//! | a place that one of its entries took | anything             | unpacked on top: it is gone         |
//! | an entry that makes no sense alone   | anything             | unpacked on top                     |
//!
//! Metadata is given back by one more layer on top of all, which has just those directories.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};

use crate::cache::layer_cache::CachedLayer;
use crate::host::directory::{OPEN_DIR, open_dir};
use crate::host::overlay_xattr::{OverlayXattrs, is_opaque};
use crate::unpack::cross_layer::CrossLayerDependencies;

/// Layers that are stacked one by one, the bottom first.
#[derive(Debug)]
pub(crate) struct LayerStack {
    overlay_xattrs: OverlayXattrs,
    layers: Vec<StackedLayer>,
    /// A layer that is hidden but for its root, which no layer above describes.
    hidden_root: Option<StackedLayer>,
}

/// A layer, and its tree.
#[derive(Debug)]
pub(crate) struct StackedLayer {
    pub(crate) layer: CachedLayer,
    pub(crate) tree: OwnedFd,
}

/// What the layers make of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Directory,
    Symlink,
    Other,
}

/// What one layer has to say about a path.
enum Says {
    /// Nothing: lower layers decide.
    Nothing,
    /// Nothing is there, whatever lower layers have.
    Hidden,
    /// This is there; `ancestor_hides` lower layers' share of a directory.
    There { found: Found, ancestor_hides: bool },
}

impl LayerStack {
    pub(crate) fn new(overlay_xattrs: OverlayXattrs) -> Self {
        Self { overlay_xattrs, layers: Vec::new(), hidden_root: None }
    }

    /// The layers, bottom first.
    pub(crate) fn layers(&self) -> &[StackedLayer] {
        &self.layers
    }

    pub(crate) fn into_layers(self) -> impl Iterator<Item = CachedLayer> {
        self.layers.into_iter().map(|stacked| stacked.layer)
    }

    /// Removes all layers: the next hides them.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        if let Some(position) = self.describing(Path::new(""))?.1 {
            self.hidden_root = Some(self.layers.swap_remove(position));
        }
        self.layers.clear();
        Ok(())
    }

    /// Puts a layer on top.
    ///
    /// Of a layer that occurs twice the topmost stays: it decides about all of its paths again, and
    /// the kernel takes none twice.
    pub(crate) fn push(&mut self, layer: CachedLayer) -> io::Result<()> {
        let tree = open_dir(&layer.path)?;
        self.layers.retain(|below| below.layer.name != layer.name);
        self.layers.push(StackedLayer { layer, tree });
        Ok(())
    }

    /// Says whether `layer` on top of this stack would be something else than `layer` applied to
    /// what the stack makes.
    pub(crate) fn differs_under(&self, layer: &CachedLayer) -> io::Result<bool> {
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
            // It may be there only because of its mark.
            if self.find(directory)? != Found::Directory {
                return Ok(true);
            }
        }
        let tree = open_dir(&layer.path)?;
        for path in hidden {
            let parent = path.parent().unwrap_or(Path::new(""));
            // Where the layer itself has something, there is no whiteout.
            if self.find(parent)? != Found::Directory
                && matches!(says(&tree, path, self.overlay_xattrs)?, Says::Hidden)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lists the directories whose metadata is not that of the topmost layer that has them, and all
    /// above them; each with the layer, by its position, that describes it, if one does.
    pub(crate) fn inherited(&self) -> io::Result<BTreeMap<PathBuf, Option<usize>>> {
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
        // A layer that is not mounted can only be copied from.
        if self
            .root()?
            .is_some_and(|root| !self.layers.iter().any(|layer| std::ptr::eq(layer, root)))
        {
            inherited.entry(PathBuf::new()).or_insert(None);
        }
        Ok(inherited)
    }

    /// Finds the layer that describes the root.
    pub(crate) fn root(&self) -> io::Result<Option<&StackedLayer>> {
        let describing = self.describing(Path::new(""))?.1;
        Ok(describing.map(|position| &self.layers[position]).or(self.hidden_root.as_ref()))
    }

    /// Finds the topmost layer that has the directory `path`, and the one that describes it.
    fn describing(&self, path: &Path) -> io::Result<(Option<usize>, Option<usize>)> {
        let mut topmost = None;
        for (position, below) in self.layers.iter().enumerate().rev() {
            let dependencies = &below.layer.dependencies;
            match says(&below.tree, path, self.overlay_xattrs)? {
                Says::Nothing => {}
                Says::There { found: Found::Directory, ancestor_hides } => {
                    topmost = topmost.or(Some(position));
                    if !dependencies.leaves_open(path) {
                        return Ok((topmost, Some(position)));
                    }
                    // One that replaces what a whiteout names has nothing of it.
                    if ancestor_hides || dependencies.hidden.contains(path) {
                        break;
                    }
                }
                Says::Hidden | Says::There { .. } => break,
            }
        }
        Ok((topmost, None))
    }

    fn find(&self, path: &Path) -> io::Result<Found> {
        for below in self.layers.iter().rev() {
            match says(&below.tree, path, self.overlay_xattrs)? {
                Says::Nothing => {}
                Says::Hidden => break,
                Says::There { found, .. } => return Ok(found),
            }
        }
        Ok(Found::Nothing)
    }
}

/// Follows `path` in a tree, name by name and no symbolic links.
fn says(root: &OwnedFd, path: &Path, overlay_xattrs: OverlayXattrs) -> io::Result<Says> {
    let mut directory = openat(root, ".", OPEN_DIR, Mode::empty())?;
    let mut ancestor_hides = false;
    let mut components = path.components().peekable();
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else { return Ok(Says::Hidden) };
        let found = match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => kind(stat.st_mode, stat.st_rdev),
            Err(Errno::ENOENT) if ancestor_hides => return Ok(Says::Hidden),
            Err(Errno::ENOENT) => return Ok(Says::Nothing),
            Err(errno) => return Err(errno.into()),
        };
        match found {
            Some(Found::Directory) if components.peek().is_none() => break,
            Some(Found::Directory) => {
                directory = openat(&directory, name, OPEN_DIR, Mode::empty())?;
                ancestor_hides |= is_opaque(&directory, overlay_xattrs)?;
            }
            Some(found) if components.peek().is_none() => {
                return Ok(Says::There { found, ancestor_hides });
            }
            // A whiteout, or something that has nothing below it.
            _ => return Ok(Says::Hidden),
        }
    }
    Ok(Says::There { found: Found::Directory, ancestor_hides })
}

/// Names a kind of file; a whiteout, a character device 0:0, has none.
fn kind(mode: u32, device: u64) -> Option<Found> {
    match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => Some(Found::Directory),
        SFlag::S_IFLNK => Some(Found::Symlink),
        SFlag::S_IFCHR if device == 0 => None,
        _ => Some(Found::Other),
    }
}
