//! The forms of an image in the cache: a stack for a shared root, and a block root.

use std::ops::ControlFlow;

use a3s_box_oci::{BlockRoot, CacheError, Layer, LayerCache, Layout, Progress, Stack};

/// The function that receives the progress of a layer, by its index. `Break` ends the work.
pub(super) type OnProgress<'a> = dyn FnMut(usize, Progress) -> ControlFlow<()> + Send + 'a;

/// An image in the cache, locked against removal.
pub(super) trait Form: Sized {
    /// Returns the image if all of it is in the cache.
    fn find(cache: &LayerCache, layers: &[Layer]) -> Result<Option<Self>, CacheError>;

    /// Returns the image, and makes what the cache lacks.
    fn compose(
        cache: &LayerCache,
        layout: &Layout,
        layers: &[Layer],
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Self, CacheError>;
}

impl Form for Stack {
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
}

impl Form for BlockRoot {
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
}
