//! Verification of the cached content of an image against its blobs.
//!
//! The cache keeps no digests of files, because the blob of a layer determines its tree and its
//! layer file. So the content is made again in a staging directory, which verifies the blob, and the
//! two are compared. A tree that depends on lower layers is made again without a comparison, unless
//! a box uses it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::openat;
use nix::sys::stat::Mode;

use super::batch::OnLayerProgress;
use super::compose::chain_ids;
use super::recipe::{Alone, Source};
use super::tree_difference;
use crate::cache::error::CacheError;
use crate::cache::layer_cache::LayerCache;
use crate::cache::name::{self, TREE};
use crate::cache::publish::Recipe;
use crate::cache::wait::Wait;
use crate::host::directory::{OPEN_DIR, open_below};
use crate::image::Layer;
use crate::image::digest::Digest;
use crate::layout::Layout;

/// The result of [`LayerCache::verify`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Number of trees, layer files and metadata images that match their blobs.
    pub intact: u64,
    /// Content that differed from its blobs and has been replaced.
    pub rebuilt: Vec<Damage>,
    /// Content that differs from its blobs, and that was kept because boxes use it.
    pub in_use: Vec<Damage>,
}

/// A difference between content of the cache and its blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The layer's `DiffID`, or the `ChainID` of a metadata image.
    pub layer: String,
    /// The first path that differs. It is empty if the difference belongs to no entry.
    pub path: PathBuf,
    /// The property that differs, such as `content` or `index`.
    pub what: &'static str,
}

/// Finds the first difference between content in a directory of the cache and fresh content: the
/// path of the entry, and the property that differs.
pub(super) type Difference<'a> =
    dyn Fn(&OwnedFd, &OwnedFd) -> io::Result<Option<(PathBuf, &'static str)>> + 'a;

impl LayerCache {
    /// Compares the cached content of an image with its blobs, and replaces what differs: the layers
    /// in each form that the cache has, and the metadata image.
    ///
    /// A layer that was unpacked on top of others is made again without a comparison, unless a box
    /// uses it. In that case it is kept. If the cache has no form of the layers, they are read into
    /// layer files, which verifies the blobs.
    ///
    /// `progress` is called as for [`compose`](Self::compose).
    ///
    /// # Errors
    ///
    /// Fails for the same reasons as [`compose`](Self::compose) and
    /// [`compose_block`](Self::compose_block). The layout must contain the blobs.
    pub fn verify(
        &self,
        layout: &Layout,
        layers: &[Layer],
        progress: &mut OnLayerProgress<'_>,
    ) -> Result<Verified, CacheError> {
        let mut verified = Verified::default();
        let has_trees = self.has_any(layers, name::of_digest)?;
        if has_trees {
            self.verify_trees(layout, layers, progress, &mut verified)?;
        }
        let has_files = self.has_any(layers, name::layer_file)?;
        let chain = chain_ids(layers).last().copied();
        let has_image = chain.map(|chain| self.is_ready(&name::root(chain))).transpose()?;
        if has_files || has_image == Some(true) || !has_trees {
            self.verify_block(layout, layers, progress, &mut verified)?;
        }
        Ok(verified)
    }

    /// Returns whether the cache has one of the layers in the form with these names.
    fn has_any(&self, layers: &[Layer], name: fn(Digest) -> String) -> Result<bool, CacheError> {
        for layer in layers {
            if self.is_ready(&name(layer.id()))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn verify_trees(
        &self,
        layout: &Layout,
        layers: &[Layer],
        progress: &mut OnLayerProgress<'_>,
        verified: &mut Verified,
    ) -> Result<(), CacheError> {
        for (i, layer) in layers.iter().enumerate() {
            let source = Source { cache: self, layout, layer };
            let mut recipe = Alone { source, progress: &mut |step| progress(i, step) };
            // `compose` below unpacks a layer that is missing, which verifies its blob.
            self.verify_content(&mut recipe, layer.diff_id, verified, &tree_difference)?;
        }
        // These layers were made from the layers that are replaced above, so `compose` makes them
        // again.
        self.discard_composed(layers)?;
        self.compose(layout, layers, progress).map(drop)
    }

    /// Makes content again, compares it with that in the cache, and replaces that if it differs.
    /// Content that is not in the cache is skipped.
    pub(super) fn verify_content<R: Recipe>(
        &self,
        recipe: &mut R,
        layer: Digest,
        verified: &mut Verified,
        difference: &Difference<'_>,
    ) -> Result<(), CacheError> {
        let name = recipe.name();
        if !self.is_ready(&name)? {
            return Ok(());
        }
        let fresh = format!("verify-{name}");
        // Another process can verify the same content, and would use the same staging directory.
        let mut wait = Wait::for_lock(&fresh);
        let lock = loop {
            match self.try_lock(&fresh)? {
                Some(lock) => break lock,
                None => self.wait_for(&mut wait, recipe)?,
            }
        };
        self.sweep()?;
        // A process that died while it verified this content may have left a directory.
        self.remove_staged(&fresh)?;
        let compared = self.stage(recipe, &fresh, &lock).and_then(|()| {
            // The lease keeps the content from being removed during the comparison. It is dropped
            // before `replace`, which needs the exclusive lock.
            let lease = self.lease(&name)?;
            let found = self.difference(&name, &fresh, difference);
            drop(lease);
            match found.map_err(self.error("compare", &format!("ready/{name}")))? {
                None => verified.intact += 1,
                Some((path, what)) => {
                    let damage = Damage { layer: layer.to_string(), path, what };
                    match self.replace(&name, &fresh)? {
                        true => verified.rebuilt.push(damage),
                        false => verified.in_use.push(damage),
                    }
                }
            }
            Ok(())
        });
        self.remove_staged(&fresh)?;
        self.remove_lock(&fresh, lock)?;
        compared
    }

    /// Replaces damaged content by the fresh one. Returns `false` if a box uses it.
    fn replace(&self, name: &str, fresh: &str) -> Result<bool, CacheError> {
        match self.try_lock(name)? {
            None => Ok(false),
            Some(_lock) => {
                self.discard(name)?;
                self.publish_as(fresh, name)?;
                Ok(true)
            }
        }
    }

    fn difference(
        &self,
        name: &str,
        fresh: &str,
        difference: &Difference<'_>,
    ) -> io::Result<Option<(PathBuf, &'static str)>> {
        let ours = openat(&self.ready, name, OPEN_DIR, Mode::empty())?;
        let fresh = openat(&self.staging, fresh, OPEN_DIR, Mode::empty())?;
        difference(&ours, &fresh)
    }

    /// Removes the layers of an image that depend on lower layers, and that no box uses.
    fn discard_composed(&self, layers: &[Layer]) -> Result<(), CacheError> {
        for chain in chain_ids(layers) {
            for name in [name::on_top(chain), name::restored(chain)] {
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

/// Compares the trees in two directories of layers.
fn tree_difference(ours: &OwnedFd, fresh: &OwnedFd) -> io::Result<Option<(PathBuf, &'static str)>> {
    let tree = |directory| open_below(directory, Path::new(TREE));
    tree_difference::difference(&tree(ours)?, &tree(fresh)?)
}
