//! Making the block root of an image.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::batch::{OnLayerProgress, get_or_make_all};
use super::block_recipe::{LayerFiles, MergeLayers, ReadLayer, devices};
use super::block_root::BlockRoot;
use super::compose::chain_ids;
use super::recipe::Source;
use crate::block::image::MetadataImage;
use crate::block::layer_file::LayerFile;
use crate::cache::error::CacheError;
use crate::cache::layer_cache::LayerCache;
use crate::cache::list::StackList;
use crate::cache::lookup::Cached;
use crate::cache::name;
use crate::cache::publish::Recipe;
use crate::cache::task::Fault;
use crate::cache::wait::Wait;
use crate::image::Layer;
use crate::image::digest::Digest;
use crate::layout::Layout;
use crate::unpack::progress::Progress;

/// Number of waits, of 10 ms each, for other processes that start and have found the same damage.
/// Each of them gives up its lease within milliseconds. A box keeps its lease.
const DAMAGED_WAITS: usize = 100;

impl LayerCache {
    /// Returns the block root of an image with these layers, the bottom first. Layers that are not
    /// in the cache are read into layer files, and merged into a metadata image.
    ///
    /// `progress` is called as for [`compose`](Self::compose).
    ///
    /// # Errors
    ///
    /// Fails for the same reasons as [`compose`](Self::compose), and if EROFS cannot represent the
    /// image.
    pub fn compose_block(
        &self,
        layout: &Layout,
        layers: &[Layer],
        progress: &mut OnLayerProgress<'_>,
    ) -> Result<BlockRoot, CacheError> {
        let Some(&chain) = chain_ids(layers).last() else { return BlockRoot::empty() };
        if let Some(root) = self.recall_block(layers, chain)? {
            for i in 0..layers.len() {
                // `Break` is ignored, because all work is done.
                let _flow: ControlFlow<()> = progress(i, Progress::Cached);
            }
            return Ok(root);
        }
        let mut read = Read { layers: vec![false; layers.len()], bytes: 0 };
        // Each round replaces a damaged file, unless the process that has found the damage lies.
        let mut rounds = layers.len();
        loop {
            // The leases of these files move into the block root, so no file is removed in between.
            let form = LayerFiles { cache: self, layout };
            let files = get_or_make_all(&form, layers, progress)?;
            read.add(&files);
            let error = match self.merge(layers, chain, files, progress) {
                Ok(root) => return Ok(read.costs_of(root)),
                Err(error) => error,
            };
            match error.fault() {
                // The cache must keep no part of a refused layer.
                Some(Fault::Layer(layer)) => {
                    for (_, layer) in positions_of(layers, layer) {
                        self.forget(&name::layer_file(layer.id()))?;
                    }
                    return Err(error);
                }
                // A start reads the index only if it has to merge. A file from the cache that
                // proves to be damaged is replaced. This ends, because a file that was made here is
                // not replaced.
                Some(Fault::Index(layer)) if rounds > 0 && !read.has(layers, layer) => {
                    rounds -= 1;
                    for (i, layer) in positions_of(layers, layer) {
                        let source = Source { cache: self, layout, layer };
                        let progress = &mut |step| progress(i, step);
                        self.discard_damaged(&mut ReadLayer { source, progress })?;
                    }
                }
                _ => return Err(error),
            }
        }
    }

    /// Returns the block root of an image if all of it is in the cache. Nothing is read or merged.
    ///
    /// # Errors
    ///
    /// Fails if the cache cannot be read.
    pub fn find_block(&self, layers: &[Layer]) -> Result<Option<BlockRoot>, CacheError> {
        match chain_ids(layers).last() {
            Some(&chain) => self.recall_block(layers, chain),
            None => BlockRoot::empty().map(Some),
        }
    }

    /// Returns a block root that was composed before, if all of it is ready and fits together.
    fn recall_block(
        &self,
        layers: &[Layer],
        chain: Digest,
    ) -> Result<Option<BlockRoot>, CacheError> {
        let list = name::root(chain);
        let Some(StackList { names }) = self.read_list(&list)? else { return Ok(None) };
        let Some((first, devices)) = names.split_first() else { return Ok(None) };
        // The list must have these layers in this order, because the image has only the sizes of
        // its devices.
        let mut expected = layers.iter().map(|layer| name::layer_file(layer.id()));
        if *first != list || !devices.iter().all(|name| expected.any(|layer| layer == *name)) {
            return Ok(None);
        }
        let Some(image) = self.get_listed::<MetadataImage>(first)? else { return Ok(None) };
        let mut files = Vec::with_capacity(devices.len());
        for name in devices {
            let Some(file) = self.get_listed::<LayerFile>(name)? else { return Ok(None) };
            files.push(file);
        }
        if !image.content.fits(chain, files.iter().map(|file| file.content.data_blocks())) {
            return Ok(None);
        }
        Ok(Some(BlockRoot { hits: layers.len(), ..BlockRoot::new(image, files) }))
    }

    /// Returns the block root of layer files, and merges them first if the cache does not have its
    /// metadata image.
    fn merge(
        &self,
        layers: &[Layer],
        chain: Digest,
        files: Vec<Cached<LayerFile>>,
        progress: &mut OnLayerProgress<'_>,
    ) -> Result<BlockRoot, CacheError> {
        let devices = devices(layers, &files)?;
        let limits = &self.tree_limits;
        let recipe =
            &mut MergeLayers { layers, files: &files, devices: &devices, limits, chain, progress };
        let image = self.get_or_make(recipe)?;
        let used: HashSet<usize> = devices.layers().iter().copied().collect();
        let (parts, others): (Vec<_>, Vec<_>) =
            files.into_iter().enumerate().partition(|(i, _)| used.contains(i));
        let names = |(_, file): &(usize, Cached<LayerFile>)| file.name.clone();
        let names = [image.name.clone()].into_iter().chain(parts.iter().map(names)).collect();
        self.write_list(&name::root(chain), &StackList { names })?;
        let mut root = BlockRoot::new(image, parts.into_iter().map(|(_, file)| file).collect());
        others.into_iter().for_each(|(_, file)| root.keep(file));
        Ok(root)
    }

    /// Removes a layer file with a damaged index, which this process does not use.
    fn discard_damaged(&self, recipe: &mut ReadLayer<'_>) -> Result<(), CacheError> {
        let name = &recipe.name();
        let mut wait = Wait::for_lock(name);
        for _ in 0..DAMAGED_WAITS {
            match self.try_lock(name)? {
                Some(_lock) => {
                    // Another process may have replaced the file before the lock was taken.
                    if !self.is_sound(name)? {
                        self.discard(name)?;
                    }
                    return Ok(());
                }
                // Another process has replaced the file, or is replacing it.
                None if !self.is_ready(name)? || self.is_sound(name)? => return Ok(()),
                None => self.wait_for(&mut wait, recipe)?,
            }
        }
        Err(CacheError::Damaged { path: self.layer_path(name) })
    }

    /// Returns whether the index of a layer file is correct.
    fn is_sound(&self, name: &str) -> Result<bool, CacheError> {
        let file = self.open_content::<LayerFile>(name)?;
        Ok(file.is_some_and(|file| file.check_index().is_ok()))
    }
}

/// The layers that were read from their blobs for one start.
struct Read {
    /// Whether each layer was read.
    layers: Vec<bool>,
    /// Size of the regular files of these layers.
    bytes: u64,
}

impl Read {
    fn add(&mut self, files: &[Cached<LayerFile>]) {
        for (is_read, file) in self.layers.iter_mut().zip(files).filter(|(_, file)| !file.hit) {
            *is_read = true;
            self.bytes += file.content.facts().bytes;
        }
    }

    /// Returns whether the layer of a blob was read.
    fn has(&self, layers: &[Layer], blob: Digest) -> bool {
        let mut read = layers.iter().zip(&self.layers);
        read.any(|(layer, is_read)| layer.digest == blob && *is_read)
    }

    /// Returns a block root with the costs of its start.
    fn costs_of(self, root: BlockRoot) -> BlockRoot {
        let hits = self.layers.iter().filter(|is_read| !**is_read).count();
        BlockRoot { hits, unpacked_bytes: self.bytes, ..root }
    }
}

/// Returns the layers with this blob, with their positions.
fn positions_of(layers: &[Layer], blob: Digest) -> impl Iterator<Item = (usize, &Layer)> {
    layers.iter().enumerate().filter(move |(_, layer)| layer.digest == blob)
}
