//! Making the layers of an image alone, several at once.

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder};

use super::recipe::{Alone, Source};
use crate::cache::error::CacheError;
use crate::cache::layer_cache::LayerCache;
use crate::cache::lookup::CachedLayer;
use crate::cache::name;
use crate::image::Layer;
use crate::layout::Layout;
use crate::unpack::progress::{OnProgress, Progress};

/// Largest number of layers that are made at once. Each layer has three threads, so more layers
/// would not be faster. Each costs 3 MiB of memory, and the window of its decoder if it is a zstd
/// layer (`Limits::zstd_window_bytes`).
const LAYERS_AT_ONCE: usize = 4;

/// Receives the progress of a layer, given by its index. `Break` ends the work on all layers.
pub(crate) type OnLayerProgress<'a> = dyn FnMut(usize, Progress) -> ControlFlow<()> + Send + 'a;

/// The state that the threads share.
struct Batch<'a, C> {
    /// Indexes of the layers that no thread has taken, sorted by size, the largest last.
    waiting: Vec<usize>,
    done: Vec<(usize, C)>,
    /// The first error. Later errors are dropped, because the first one causes them.
    failed: Option<CacheError>,
    progress: &'a mut OnLayerProgress<'a>,
}

/// One form of the layers of an image.
pub(super) trait LayerForm: Sync {
    /// The layer in this form.
    type Cached: Send;

    /// Returns a layer if the cache has it.
    fn get(&self, layer: &Layer) -> Result<Option<Self::Cached>, CacheError>;

    /// Returns a layer, and makes it first if the cache does not have it.
    fn get_or_make(
        &self,
        layer: &Layer,
        progress: &mut OnProgress<'_>,
    ) -> Result<Self::Cached, CacheError>;
}

/// The layers of an image as trees, each unpacked alone.
pub(super) struct Trees<'a> {
    pub(super) cache: &'a LayerCache,
    pub(super) layout: &'a Layout,
}

impl LayerForm for Trees<'_> {
    type Cached = CachedLayer;

    fn get(&self, layer: &Layer) -> Result<Option<CachedLayer>, CacheError> {
        let cached = self.cache.get(&name::of_digest(layer.id()))?;
        Ok(cached.map(|cached| self.cache.layer(cached)))
    }

    fn get_or_make(
        &self,
        layer: &Layer,
        progress: &mut OnProgress<'_>,
    ) -> Result<CachedLayer, CacheError> {
        self.cache.get_or_unpack(self.layout, layer, progress)
    }
}

impl LayerCache {
    /// Returns a layer from the cache, and unpacks it alone from `layout` first if it is not in the
    /// cache. The tree then has no entries that depend on lower layers. `progress` is called as for
    /// [`compose`](Self::compose).
    ///
    /// # Errors
    ///
    /// Fails for the same reasons as [`compose`](Self::compose).
    pub fn get_or_unpack(
        &self,
        layout: &Layout,
        layer: &Layer,
        progress: &mut OnProgress<'_>,
    ) -> Result<CachedLayer, CacheError> {
        let recipe = &mut Alone { source: Source { cache: self, layout, layer }, progress };
        self.get_or_make(recipe).map(|cached| self.layer(cached))
    }
}

/// Returns all `layers` in one form, in the same order. Layers that are not in the cache are made,
/// several at once, the largest first. The first error ends the work on the other layers.
///
/// Several threads call `progress`, but only one at a time.
pub(super) fn get_or_make_all<F: LayerForm>(
    form: &F,
    layers: &[Layer],
    progress: &mut OnLayerProgress<'_>,
) -> Result<Vec<F::Cached>, CacheError> {
    let (mut waiting, mut done) = (Vec::new(), Vec::with_capacity(layers.len()));
    for (i, layer) in layers.iter().enumerate() {
        match form.get(layer)? {
            Some(cached) => {
                done.push((i, cached));
                // `Break` is ignored, because there is no work on this layer.
                let _flow = progress(i, Progress::Cached);
            }
            None => waiting.push(i),
        }
    }
    // The largest layer is started first. As the last one, it would keep one thread busy while
    // the others have no work left.
    waiting.sort_by_key(|i| layers[*i].size_bytes);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = waiting.len().min(cores).min(LAYERS_AT_ONCE);
    let batch = Mutex::new(Batch { waiting, done, failed: None, progress });
    thread::scope(|scope| {
        // The calling thread is one of them.
        for _ in 1..threads {
            let work = || work_on(form, &batch, layers);
            if Builder::new().name("layer".into()).spawn_scoped(scope, work).is_err() {
                // The work also gets done with fewer threads.
                break;
            }
        }
        work_on(form, &batch, layers);
    });
    let Batch { mut done, failed, .. } = batch.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    failed.map_or_else(|| Ok(done.into_iter().map(|(_, layer)| layer).collect()), Err)
}

/// Takes one layer after the other until none is left.
fn work_on<F: LayerForm>(form: &F, batch: &Mutex<Batch<'_, F::Cached>>, layers: &[Layer]) {
    loop {
        let Some(i) = lock(batch).waiting.pop() else { return };
        let mut on_progress = |progress| {
            let mut batch = lock(batch);
            match batch.failed {
                Some(_) => ControlFlow::Break(()),
                None => (batch.progress)(i, progress),
            }
        };
        let outcome = form.get_or_make(&layers[i], &mut on_progress);
        let mut batch = lock(batch);
        match outcome {
            Ok(layer) => batch.done.push((i, layer)),
            Err(error) => {
                batch.failed.get_or_insert(error);
                // The other threads then find no further layer, and the next report of progress
                // cancels their current one.
                batch.waiting.clear();
            }
        }
    }
}

/// Locks the state. A panic of another thread does not matter here, because the scope passes it on.
fn lock<'m, 'a, C>(batch: &'m Mutex<Batch<'a, C>>) -> MutexGuard<'m, Batch<'a, C>> {
    batch.lock().unwrap_or_else(PoisonError::into_inner)
}
