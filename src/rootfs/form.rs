//! The forms of an image in the cache: a stack for a shared root, and a block root.

use std::ops::ControlFlow;

use a3s_box_core::config::RootKind;
use a3s_box_oci::{BlockRoot, CacheError, Layer, LayerCache, Layout, Progress, Stack};

/// The function that receives the progress of a layer, by its index. `Break` ends the work.
pub(super) type OnProgress<'a> = dyn FnMut(usize, Progress) -> ControlFlow<()> + Send + 'a;

/// An image in the cache, locked against removal.
pub(super) trait Form: Sized {
    /// The kind of root that the form is for.
    const KIND: RootKind;

    /// Returns the image if all of it is in the cache.
    fn find(cache: &LayerCache, layers: &[Layer]) -> Result<Option<Self>, CacheError>;

    /// Returns the image, and makes what the cache lacks.
    fn compose(
        cache: &LayerCache,
        layout: &Layout,
        layers: &[Layer],
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Self, CacheError>;

    /// What it has cost to get the image.
    fn costs(&mut self) -> Costs<'_>;
}

/// The costs of a start.
#[derive(Debug)]
pub(super) struct Costs<'a> {
    /// Number of layers that were in the cache.
    pub(super) hits: &'a mut usize,
    /// Size of the regular files of the others.
    pub(super) unpacked_bytes: &'a mut u64,
}

impl Form for Stack {
    const KIND: RootKind = RootKind::Shared;

    fn find(cache: &LayerCache, layers: &[Layer]) -> Result<Option<Self>, CacheError> {
        cache.find(layers)
    }

    fn compose(
        cache: &LayerCache,
        layout: &Layout,
        layers: &[Layer],
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Self, CacheError> {
        cache.compose(layout, layers, on_progress)
    }

    fn costs(&mut self) -> Costs<'_> {
        Costs { hits: &mut self.hits, unpacked_bytes: &mut self.unpacked_bytes }
    }
}

impl Form for BlockRoot {
    const KIND: RootKind = RootKind::Block;

    fn find(cache: &LayerCache, layers: &[Layer]) -> Result<Option<Self>, CacheError> {
        cache.find_block(layers)
    }

    fn compose(
        cache: &LayerCache,
        layout: &Layout,
        layers: &[Layer],
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Self, CacheError> {
        cache.compose_block(layout, layers, on_progress)
    }

    fn costs(&mut self) -> Costs<'_> {
        Costs { hits: &mut self.hits, unpacked_bytes: &mut self.unpacked_bytes }
    }
}
