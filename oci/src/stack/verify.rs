//! Verification of the layer cache against an image's blobs.
//!
//! Nothing about the content of files is kept beside a layer: its blob says what it must be. So a layer
//! is unpacked afresh, which verifies the blob, and the two trees are compared. What was made of several
//! layers together, and no box uses, is made again.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use crate::cache::layer_cache::{CacheError, LayerCache};
use crate::host::directory::{names_in, open_below};
use crate::host::remove::remove_tree;
use crate::host::xattr::{names_of, value_of};
use crate::image::Layer;
use crate::layout::Layout;
use crate::stack::compose::{OnLayerProgress, Source, file_name};

/// Read size of the comparison: large enough to make the calls cheap.
const COMPARE_BYTES: usize = 128 * 1024;

/// What was found of an image's layers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Layers that are what their blobs say.
    pub intact: u64,
    /// Layers that were not, and have been replaced.
    pub rebuilt: Vec<Damage>,
    /// Layers that are not, and that boxes use.
    pub in_use: Vec<Damage>,
}

/// How a layer in the cache differs from its blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The layer's `DiffID`.
    pub layer: String,
    /// The first path that differs.
    pub path: PathBuf,
    /// What about it.
    pub what: &'static str,
}

impl LayerCache {
    /// Compares the cached layers of an image with its blobs, and replaces those that differ.
    ///
    /// What was made of several of them together is not compared but made again, unless a box uses it:
    /// then it stays as it is.
    ///
    /// `progress` is as for [`compose`](Self::compose).
    ///
    /// # Errors
    ///
    /// As for [`compose`](Self::compose): the blobs have to be there.
    pub fn verify(
        &self,
        layout: &Layout,
        layers: &[Layer],
        progress: &mut OnLayerProgress<'_>,
    ) -> Result<Verified, CacheError> {
        let mut verified = Verified::default();
        for (i, layer) in layers.iter().enumerate() {
            let name = file_name(layer.diff_id);
            if !self.is_ready(&name)? {
                continue;
            }
            let source = Source { cache: self, layout, layer };
            match self.compare(source, &name, &mut |step| progress(i, step))? {
                Comparison::Intact => verified.intact += 1,
                Comparison::Replaced(damage) => verified.rebuilt.push(damage),
                Comparison::InUse(damage) => verified.in_use.push(damage),
            }
        }
        self.discard_composed(layers)?;
        self.compose(layout, layers, progress)?;
        Ok(verified)
    }

    fn compare(
        &self,
        source: Source<'_>,
        name: &str,
        progress: &mut dyn FnMut(crate::Progress) -> ControlFlow<()>,
    ) -> Result<Comparison, CacheError> {
        let fresh = format!("verify-{name}");
        let layer = source.layer;
        let mut recipe = source.alone(progress);
        let lock = loop {
            match self.try_lock(&fresh)? {
                Some(lock) => break lock,
                None => self.wait_for(&mut recipe)?,
            }
        };
        self.sweep(&fresh)?;
        let compared = self.stage(&mut recipe, &fresh).and_then(|()| {
            let lease = self.lease(name)?;
            let found = self.difference(name, &fresh);
            drop(lease);
            match found.map_err(self.error("compare", &format!("ready/{name}")))? {
                None => Ok(Comparison::Intact),
                Some((path, what)) => {
                    let damage = Damage { layer: layer.diff_id.to_string(), path, what };
                    self.replace(name, &fresh, damage)
                }
            }
        });
        let removed = remove_tree(self.staging.as_fd(), fresh.as_bytes());
        removed.map_err(self.error("remove", &format!("staging/{fresh}")))?;
        self.remove_lock(&fresh, lock)?;
        compared
    }

    /// Puts the fresh layer in the place of the damaged one, unless that is in use.
    fn replace(&self, name: &str, fresh: &str, damage: Damage) -> Result<Comparison, CacheError> {
        match self.try_lock(name)? {
            None => Ok(Comparison::InUse(damage)),
            Some(_lock) => {
                self.discard(name)?;
                self.publish_as(fresh, name)?;
                Ok(Comparison::Replaced(damage))
            }
        }
    }

    fn difference(&self, name: &str, fresh: &str) -> io::Result<Option<(PathBuf, &'static str)>> {
        let open = |directory: &OwnedFd, name: &str| {
            let path = Path::new(name).join(crate::cache::layer_cache::TREE);
            open_below(directory, &path)
        };
        difference(&open(&self.ready, name)?, &open(&self.staging, fresh)?)
    }
}

enum Comparison {
    Intact,
    Replaced(Damage),
    InUse(Damage),
}

/// Finds the first path at which two trees differ, and what about it.
fn difference(ours: &OwnedFd, fresh: &OwnedFd) -> io::Result<Option<(PathBuf, &'static str)>> {
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let (a, b) = (open_below(ours, &path)?, open_below(fresh, &path)?);
        // All others have been compared as entries of their directory.
        if path.as_os_str().is_empty()
            && let Some(what) = differs(&fstat(&a)?, &fstat(&b)?)
        {
            return Ok(Some((path, what)));
        }
        if attributes(&a)? != attributes(&b)? {
            return Ok(Some((path, "extended attributes")));
        }
        let (mut names, mut expected) = (names_in(&a)?, names_in(&b)?);
        names.sort_unstable();
        expected.sort_unstable();
        if names != expected {
            return Ok(Some((path, "names in the directory")));
        }
        for name in names {
            let below = path.join(std::ffi::OsStr::from_bytes(&name));
            let stat =
                |directory| fstatat(directory, name.as_slice(), AtFlags::AT_SYMLINK_NOFOLLOW);
            let found = stat(&a)?;
            if let Some(what) = differs(&found, &stat(&b)?) {
                return Ok(Some((below, what)));
            }
            match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFDIR => pending.push(below),
                SFlag::S_IFREG => {
                    if let Some(what) = file_differs(&a, &b, &name)? {
                        return Ok(Some((below, what)));
                    }
                }
                SFlag::S_IFLNK
                    if readlinkat(&a, name.as_slice())? != readlinkat(&b, name.as_slice())? =>
                {
                    return Ok(Some((below, "target of the symbolic link")));
                }
                _ => {}
            }
        }
    }
    Ok(None)
}

fn differs(a: &FileStat, b: &FileStat) -> Option<&'static str> {
    let is_dir = SFlag::from_bits_truncate(a.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    let pairs = [
        ("type or mode", a.st_mode == b.st_mode),
        ("owner", (a.st_uid, a.st_gid) == (b.st_uid, b.st_gid)),
        ("time", (a.st_mtime, a.st_mtime_nsec) == (b.st_mtime, b.st_mtime_nsec)),
        ("size", is_dir || a.st_size == b.st_size),
        ("device", a.st_rdev == b.st_rdev),
        ("number of hard links", is_dir || a.st_nlink == b.st_nlink),
    ];
    pairs.into_iter().find(|(_, is_equal)| !is_equal).map(|(what, _)| what)
}

fn file_differs(a: &OwnedFd, b: &OwnedFd, name: &[u8]) -> io::Result<Option<&'static str>> {
    let open = |directory| {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
        openat(directory, name, flags, Mode::empty())
    };
    let (a, b) = (open(a)?, open(b)?);
    if attributes(&a)? != attributes(&b)? {
        return Ok(Some("extended attributes"));
    }
    let (mut a, mut b) = (std::fs::File::from(a), std::fs::File::from(b));
    let (mut left, mut right) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    loop {
        let count = a.read(&mut left)?;
        // Of the same size, unless it changes under our hands: then it is damaged as well.
        if b.read_exact(&mut right[..count]).is_err() || left[..count] != right[..count] {
            return Ok(Some("content"));
        }
        if count == 0 {
            return Ok(None);
        }
    }
}

/// Reads all extended attributes of an open file, in the order of their names.
fn attributes(file: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = names_of(file)?;
    names.sort_unstable();
    names.into_iter().map(|name| Ok((value_of(file, &name)?, name))).collect()
}
