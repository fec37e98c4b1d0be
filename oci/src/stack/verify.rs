//! Verification of cached layers against the blobs of an image.
//!
//! The cache keeps no digests of files, because the blob of a layer determines its tree. So each
//! layer is unpacked again into a staging directory, which verifies the blob, and the two trees are
//! compared. A layer that depends on lower layers is made again without a comparison, unless a box
//! uses it.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::batch::OnLayerProgress;
use super::compose::chain_ids;
use super::recipe::{Alone, Source};
use crate::cache::error::CacheError;
use crate::cache::layer_cache::LayerCache;
use crate::cache::name::{self, TREE};
use crate::host::directory::{names_in, open_below};
use crate::host::xattr::{names_of, value_of};
use crate::image::Layer;
use crate::layout::Layout;
use crate::unpack::progress::OnProgress;

/// Size of the buffers of the comparison. It makes the cost of a system call small against the
/// copy.
const COMPARE_BYTES: usize = 128 * 1024;

/// The result of [`LayerCache::verify`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Number of layers that match their blobs.
    pub intact: u64,
    /// Layers that differed from their blobs and have been replaced.
    pub rebuilt: Vec<Damage>,
    /// Layers that differ from their blobs, and that were kept because boxes use them.
    pub in_use: Vec<Damage>,
}

/// A difference between a layer in the cache and its blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The layer's `DiffID`.
    pub layer: String,
    /// The first path that differs.
    pub path: PathBuf,
    /// The property that differs, such as `content`.
    pub what: &'static str,
}

impl LayerCache {
    /// Compares the cached layers of an image with its blobs, and replaces the layers that differ.
    ///
    /// A layer that was unpacked on top of others is made again without a comparison, unless a box
    /// uses it. In that case it is kept.
    ///
    /// `progress` is called as for [`compose`](Self::compose).
    ///
    /// # Errors
    ///
    /// Fails for the same reasons as [`compose`](Self::compose). The layout must contain the blobs.
    pub fn verify(
        &self,
        layout: &Layout,
        layers: &[Layer],
        progress: &mut OnLayerProgress<'_>,
    ) -> Result<Verified, CacheError> {
        let mut verified = Verified::default();
        for (i, layer) in layers.iter().enumerate() {
            let name = name::of_digest(layer.diff_id);
            // `compose` below unpacks a layer that is missing, which verifies its blob.
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
        // These layers were made from the layers that are replaced above, so `compose` makes them
        // again.
        self.discard_composed(layers)?;
        self.compose(layout, layers, progress)?;
        Ok(verified)
    }

    /// Unpacks a layer again, compares it with the cached layer `name`, and replaces that if it
    /// differs.
    fn compare(
        &self,
        source: Source<'_>,
        name: &str,
        progress: &mut OnProgress<'_>,
    ) -> Result<Comparison, CacheError> {
        let fresh = format!("verify-{name}");
        let layer = source.layer;
        let mut recipe = Alone { source, progress };
        // Another process can verify the same layer, and would use the same staging directory.
        let lock = loop {
            match self.try_lock(&fresh)? {
                Some(lock) => break lock,
                None => self.wait_for(&mut recipe)?,
            }
        };
        self.sweep()?;
        // A process that died while it verified this layer may have left a directory.
        self.remove_staged(&fresh)?;
        let compared = self.stage(&mut recipe, &fresh).and_then(|()| {
            // The lease keeps the layer from being removed during the comparison. It is dropped
            // before `replace`, which needs the exclusive lock.
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
        self.remove_staged(&fresh)?;
        self.remove_lock(&fresh, lock)?;
        compared
    }

    /// Replaces the damaged layer by the fresh one, unless a box uses it.
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
        let open =
            |directory: &OwnedFd, name: &str| open_below(directory, &Path::new(name).join(TREE));
        difference(&open(&self.ready, name)?, &open(&self.staging, fresh)?)
    }

    /// Removes the layers of an image that depend on lower layers, and that no box uses.
    fn discard_composed(&self, layers: &[Layer]) -> Result<(), CacheError> {
        for chain in chain_ids(layers) {
            for name in [name::on_top(chain), name::metadata(chain)] {
                if self.is_ready(&name)?
                    && let Some(_lock) = self.try_lock(&name)?
                {
                    self.discard(&name)?;
                }
            }
        }
        Ok(())
    }
}

/// The result of comparing one layer.
enum Comparison {
    Intact,
    Replaced(Damage),
    InUse(Damage),
}

/// Finds the first path at which two trees differ, and the property that differs.
///
/// The walk keeps paths on the heap and opens directories from the root, because trees can be
/// deeper than the stack or the number of open files allows.
fn difference(ours: &OwnedFd, fresh: &OwnedFd) -> io::Result<Option<(PathBuf, &'static str)>> {
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let (a, b) = (open_below(ours, &path)?, open_below(fresh, &path)?);
        // Directories below the root were compared as entries of their parent.
        if path.as_os_str().is_empty()
            && let Some(what) = differs(&fstat(&a)?, &fstat(&b)?)
        {
            return Ok(Some((path, what)));
        }
        if attributes(&a)? != attributes(&b)? {
            return Ok(Some((path, "extended attributes")));
        }
        let (mut names, mut expected) = (names_in(&a)?, names_in(&b)?);
        // A directory lists its names in an order that depends on the file system.
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
            // Both inodes have the same type, because `differs` compares the whole mode.
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

/// Returns the first property in which two inodes differ.
///
/// Sizes and link counts of directories are left out, because they depend on the file system.
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

/// Returns the first property in which two regular files of the same size differ.
fn file_differs(a: &OwnedFd, b: &OwnedFd, name: &[u8]) -> io::Result<Option<&'static str>> {
    let open = |directory| {
        // Verification must not change the access times of cached files.
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
        // Both files have the same size. If one ends early, it has changed during the comparison,
        // which no process may do, so it counts as damaged.
        if b.read_exact(&mut right[..count]).is_err() || left[..count] != right[..count] {
            return Ok(Some("content"));
        }
        if count == 0 {
            return Ok(None);
        }
    }
}

/// Reads all extended attributes of an open file, sorted by name.
fn attributes(file: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = names_of(file)?;
    names.sort_unstable();
    names.into_iter().map(|name| Ok((value_of(file, &name)?, name))).collect()
}
