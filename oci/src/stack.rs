//! The layers of an image as overlayfs needs them, and what overlayfs alone would get wrong.
//!
//! An archive may put a file into a directory that it does not describe: `d/file` without `d/`.
//! Applied in order, that leaves the lower layer's `d` as it is. But each layer is unpacked alone,
//! where `d` has to be made, and overlayfs takes the metadata of the topmost directory. So the
//! directories that a layer made without a description are known, and the mount gives them those of
//! the topmost layer that does describe them.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};

use crate::cache::CachedLayer;
use crate::overlay::MountError;
use crate::unpack::is_opaque;

const OPEN_DIR: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The layers of a mount.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LayerStack {
    /// Trees, topmost first.
    pub(crate) lower: Vec<PathBuf>,
    /// Directories whose metadata is not that of the topmost layer that has them.
    pub(crate) inherited: Vec<InheritedDir>,
}

/// A directory, and the one that describes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InheritedDir {
    /// Where it is, relative to the root; empty for the root itself.
    pub(crate) path: PathBuf,
    /// The directory with its metadata, in the tree of a layer.
    pub(crate) from: PathBuf,
}

/// What a layer has to say about a directory.
enum Says {
    /// The directory is there.
    Directory { hides_lower: bool },
    /// Something else is there, or hides it.
    Hidden,
    /// Nothing: lower layers decide.
    Nothing,
}

impl LayerStack {
    /// Stacks layers that are given bottom first.
    ///
    /// A layer that hides all below it ends the stack, as overlayfs does not honour that mark on
    /// the root of a layer. Of a layer that occurs twice the topmost stays: it decides about all of
    /// its paths again, and the kernel takes none twice.
    pub(crate) fn of(layers: &[CachedLayer]) -> Result<Self, MountError> {
        let mut stack: Vec<&CachedLayer> = Vec::new();
        for layer in layers.iter().rev() {
            if stack.iter().all(|above| above.path != layer.path) {
                stack.push(layer);
            }
            if layer.facts.opaque_root {
                break;
            }
        }
        let roots =
            stack.iter().map(|layer| open_tree(&layer.path)).collect::<Result<Vec<_>, _>>()?;
        let implicit: Vec<HashSet<&PathBuf>> =
            stack.iter().map(|layer| layer.implicit_dirs.iter().collect()).collect();
        // The upper folder is one more layer, which describes not even its root.
        let root = PathBuf::new();
        let all: BTreeSet<&PathBuf> = implicit.iter().flatten().copied().chain([&root]).collect();
        let mut inherited = Vec::new();
        for path in all {
            let mut missing = path == &root;
            for (layer, (root, implicit)) in stack.iter().zip(roots.iter().zip(&implicit)) {
                let error = |source| MountError::folder("look into layer", &layer.path, source);
                match says(root, path).map_err(|errno| error(errno.into()))? {
                    Says::Nothing => {}
                    Says::Hidden => break,
                    Says::Directory { hides_lower } if implicit.contains(path) => {
                        missing = true;
                        if hides_lower {
                            break;
                        }
                    }
                    Says::Directory { .. } => {
                        if missing {
                            inherited.push(InheritedDir {
                                path: path.clone(),
                                from: layer.path.join(path),
                            });
                        }
                        break;
                    }
                }
            }
        }
        Ok(Self { lower: stack.iter().map(|layer| layer.path.clone()).collect(), inherited })
    }
}

fn open_tree(path: &Path) -> Result<OwnedFd, MountError> {
    open(path, OPEN_DIR, Mode::empty())
        .map_err(|errno| MountError::folder("open layer", path, io::Error::from(errno)))
}

/// Follows `path` in a tree, name by name and no symbolic links.
fn says(root: &OwnedFd, path: &Path) -> nix::Result<Says> {
    let mut directory = openat(root, ".", OPEN_DIR, Mode::empty())?;
    let mut hides_lower = false;
    for component in path.components() {
        let Component::Normal(name) = component else { return Ok(Says::Hidden) };
        match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found)
                if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR => {}
            Ok(_) => return Ok(Says::Hidden),
            Err(Errno::ENOENT) if hides_lower => return Ok(Says::Hidden),
            Err(Errno::ENOENT) => return Ok(Says::Nothing),
            Err(errno) => return Err(errno),
        }
        directory = openat(&directory, name, OPEN_DIR, Mode::empty())?;
        hides_lower |= is_opaque(&directory)?;
    }
    Ok(Says::Directory { hides_lower })
}
