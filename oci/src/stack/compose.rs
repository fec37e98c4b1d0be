//! Making the stack of an image.

use std::ops::ControlFlow;

use super::batch::{OnLayerProgress, Trees, get_or_make_all};
use super::members::{Member, Stack};
use super::overlap::LayerStack;
use super::recipe::{OnTop, RestoredMetadata, Source, stack_error};
use crate::cache::error::CacheError;
use crate::cache::layer_cache::LayerCache;
use crate::cache::list::StackList;
use crate::cache::lookup::CachedLayer;
use crate::cache::name;
use crate::cache::task::Fault;
use crate::image::Layer;
use crate::image::digest::Digest;
use crate::layout::Layout;
use crate::unpack::progress::Progress;

impl LayerCache {
    /// Returns the stack that makes the root of an image with these layers, the bottom first.
    /// Layers that are not in the cache are unpacked.
    ///
    /// `progress` is called every few milliseconds while there is work, or while another process is
    /// unpacking one of the layers. Its first argument is the index of a layer. Several threads
    /// call it, but only one at a time. If it returns [`ControlFlow::Break`], the work ends. If the
    /// other process fails, this one unpacks the layer.
    ///
    /// # Errors
    ///
    /// Fails if a layer does not match its digests, is malformed, exceeds a limit or cannot be
    /// written, and if `progress` ended the work. In each case the cache contains no part of that
    /// layer.
    pub fn compose(
        &self,
        layout: &Layout,
        layers: &[Layer],
        progress: &mut OnLayerProgress<'_>,
    ) -> Result<Stack, CacheError> {
        let chains = chain_ids(layers);
        let Some(&chain) = chains.last() else { return Ok(Stack::empty()) };
        if let Some(stack) = self.recall(chain, layers.len())? {
            for i in 0..layers.len() {
                // `Break` is ignored, because all work is done.
                let _flow: ControlFlow<()> = progress(i, Progress::Cached);
            }
            return Ok(stack);
        }
        // The leases of these layers move into the stack, so no layer is removed in between.
        let alone = get_or_make_all(&Trees { cache: self, layout }, layers, progress)?;
        let (hits, unpacked_bytes) = costs(&alone);
        let composition = Composition { cache: self, layout, layers, chains, progress };
        let stack = composition.compose(alone)?;
        self.write_list(&name::of_digest(chain), &list_of(&stack))?;
        Ok(Stack { hits, unpacked_bytes: stack.unpacked_bytes + unpacked_bytes, ..stack })
    }

    /// Returns the stack of an image if all of it is in the cache. Nothing is unpacked.
    ///
    /// # Errors
    ///
    /// Fails if the cache cannot be read.
    pub fn find(&self, layers: &[Layer]) -> Result<Option<Stack>, CacheError> {
        match chain_ids(layers).last() {
            Some(&chain) => self.recall(chain, layers.len()),
            None => Ok(Some(Stack::empty())),
        }
    }

    /// Returns a stack that was composed before, if all of its layers are ready.
    fn recall(&self, chain: Digest, layers: usize) -> Result<Option<Stack>, CacheError> {
        let Some(StackList { names }) = self.read_list(&name::of_digest(chain))? else {
            return Ok(None);
        };
        let mut members = Vec::with_capacity(names.len());
        for name in names {
            let Some(lease) = self.lease_listed(&name)? else { return Ok(None) };
            let tree = self.tree_path(&name);
            members.push(Member { name, tree, _lease: lease });
        }
        Ok(Some(Stack {
            overlay_xattrs: self.overlay_xattrs,
            members,
            hits: layers,
            unpacked_bytes: 0,
        }))
    }
}

/// The work of composing a stack from layers that were unpacked alone.
struct Composition<'c, 'p> {
    cache: &'c LayerCache,
    layout: &'c Layout,
    layers: &'c [Layer],
    /// The `ChainID`s of the layers.
    chains: Vec<Digest>,
    progress: &'p mut OnLayerProgress<'p>,
}

impl Composition<'_, '_> {
    fn compose(mut self, alone: Vec<CachedLayer>) -> Result<Stack, CacheError> {
        let mut stack = LayerStack::new(self.cache.overlay_xattrs);
        let mut unpacked_bytes = 0;
        for (i, mut layer) in alone.into_iter().enumerate() {
            let failed = stack_error(&self.layers[i]);
            if layer.facts.opaque_root {
                stack.clear();
            }
            let is_on_top = stack.differs_under(&layer).map_err(failed)?;
            if is_on_top {
                layer = self.unpack_on_top(i, &stack, layer)?;
                if !layer.hit {
                    unpacked_bytes += layer.facts.bytes;
                }
            }
            // A layer without entries changes nothing, and the kernel limits the number of layers.
            if layer.facts.entries > 0 {
                stack.push(layer, is_on_top).map_err(failed)?;
            }
        }
        let metadata = self.restored_metadata(&stack, self.layers.len())?;
        let mut members: Vec<Member> = stack.into_layers().map(Member::from).collect();
        members.extend(metadata.map(Member::from));
        let overlay_xattrs = self.cache.overlay_xattrs;
        Ok(Stack { overlay_xattrs, members, hits: 0, unpacked_bytes })
    }

    /// Unpacks the layer `i` a second time, on top of the layers below it.
    fn unpack_on_top(
        &mut self,
        i: usize,
        stack: &LayerStack,
        layer: CachedLayer,
    ) -> Result<CachedLayer, CacheError> {
        let metadata = self.restored_metadata(stack, i)?;
        let skipped = stack.skipped().map_err(stack_error(&self.layers[i]))?;
        let progress = &mut self.progress;
        let recipe = &mut OnTop {
            source: Source { cache: self.cache, layout: self.layout, layer: &self.layers[i] },
            name: name::on_top(self.chains[i]),
            stack,
            metadata,
            skipped: &skipped,
            dependencies: &layer.dependencies,
            progress: &mut |step| progress(i, step),
        };
        let unpacked = self.cache.get_or_make(recipe);
        if let Err(error) = &unpacked
            && matches!(error.fault(), Some(Fault::Layer(_)))
        {
            // The cache must keep no part of a refused layer, so its tree from unpacking it alone
            // goes.
            drop(layer.lease);
            self.cache.forget(&layer.name)?;
        }
        unpacked.map(|cached| self.cache.layer(cached))
    }

    /// Returns the layer that restores the metadata of directories of the lowest `count` layers, if
    /// they need one.
    fn restored_metadata(
        &mut self,
        stack: &LayerStack,
        count: usize,
    ) -> Result<Option<CachedLayer>, CacheError> {
        let Some(topmost) = count.checked_sub(1) else { return Ok(None) };
        let (chain, last) = (self.chains[topmost], &self.layers[topmost]);
        let directories = stack.inherited().map_err(stack_error(last))?;
        if directories.is_empty() {
            return Ok(None);
        }
        let name = name::restored(chain);
        let progress = &mut self.progress;
        let progress = &mut |step| progress(topmost, step);
        let mut recipe = RestoredMetadata { name, layer: last, stack, directories, progress };
        self.cache.get_or_make(&mut recipe).map(|cached| Some(self.cache.layer(cached)))
    }
}

/// Computes the ids by which the cache names layers together with all layers below them. They are
/// made of the ids of layers as the image specification makes `ChainID`s of `DiffID`s.
pub(super) fn chain_ids(layers: &[Layer]) -> Vec<Digest> {
    chains(layers.iter().map(Layer::id))
}

/// Computes the `ChainID` of all layers (OCI image specification, config.md, section "Layer
/// `ChainID`"), for people.
pub(super) fn specified_chain_id(layers: &[Layer]) -> Option<Digest> {
    chains(layers.iter().map(|layer| layer.diff_id)).pop()
}

fn chains(ids: impl Iterator<Item = Digest>) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::with_capacity(ids.size_hint().0);
    for id in ids {
        chains.push(match chains.last() {
            None => id,
            Some(below) => Digest::of(format!("{below} {id}").as_bytes()),
        });
    }
    chains
}

/// Returns the list by which [`LayerCache::recall`] finds the stack.
fn list_of(stack: &Stack) -> StackList {
    StackList { names: stack.members.iter().map(|member| member.name.clone()).collect() }
}

/// Counts the layers that were in the cache, and the bytes of the layers that were not.
fn costs(alone: &[CachedLayer]) -> (usize, u64) {
    let (hits, misses): (Vec<_>, Vec<_>) = alone.iter().partition(|layer| layer.hit);
    (hits.len(), misses.iter().map(|layer| layer.facts.bytes).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Compression;

    #[test]
    fn chain_id_of_a_layer_covers_all_layers_below_it() {
        let layer = |content: &[u8]| {
            let digest = Digest::of(content);
            Layer { digest, diff_id: digest, size_bytes: 0, compression: Compression::None }
        };
        let (a, b) = (layer(b"a"), layer(b"b"));
        // The ChainID of two layers is the digest of both ids with a blank (image-spec, config.md).
        let text = format!("{} {}", a.diff_id, b.diff_id);
        assert_eq!(chain_ids(&[a, b]), [a.diff_id, Digest::of(text.as_bytes())]);
        assert_ne!(chain_ids(&[a, b])[1], chain_ids(&[b, a])[1]);
        assert_eq!(chain_ids(&[]), []);
        assert_eq!(specified_chain_id(&[a, b]), Some(chain_ids(&[a, b])[1]));
        let other = Layer { digest: Digest::of(b"compressed"), ..a };
        assert_eq!(specified_chain_id(&[other, b]), specified_chain_id(&[a, b]));
        assert_ne!(chain_ids(&[other, b]), chain_ids(&[a, b]));
    }
}
