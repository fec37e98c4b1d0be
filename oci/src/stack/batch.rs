//! All layers of an image, put into the cache several at once.

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder};

use crate::cache::layer_cache::{CacheError, CachedLayer, LayerCache};
use crate::image::Layer;
use crate::layout::Layout;
use crate::stack::compose::{OnLayerProgress, file_name};
use crate::unpack::progress::Progress;

/// Most layers that are unpacked at once: each has three stages of its own, so more would only cost
/// memory, which is 3 MiB for each beside a zstd window.
const LAYERS_AT_ONCE: usize = 4;

/// What the threads share.
struct Batch<'a> {
    /// Indexes of layers that nobody works on yet, the largest blob last.
    waiting: Vec<usize>,
    done: Vec<(usize, CachedLayer)>,
    /// The first error; all others follow from it.
    failed: Option<CacheError>,
    progress: &'a mut OnLayerProgress<'a>,
}

impl LayerCache {
    /// Returns layers, each unpacked alone, in their order, after unpacking those that are not in the
    /// cache: several at once, the largest first. The first error ends the work on the other layers.
    ///
    /// `progress` is called from several threads, by one at a time.
    pub(crate) fn unpack_all(
        &self,
        layout: &Layout,
        layers: &[Layer],
        progress: &mut OnLayerProgress<'_>,
    ) -> Result<Vec<CachedLayer>, CacheError> {
        let (mut waiting, mut done) = (Vec::new(), Vec::with_capacity(layers.len()));
        for (i, layer) in layers.iter().enumerate() {
            match self.get(&file_name(layer.diff_id))? {
                Some(cached) => {
                    done.push((i, cached));
                    // There is nothing to end.
                    let _flow = progress(i, Progress::Cached);
                }
                None => waiting.push(i),
            }
        }
        waiting.sort_by_key(|i| layers[*i].size_bytes);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = waiting.len().min(cores).min(LAYERS_AT_ONCE);
        let batch = Mutex::new(Batch { waiting, done, failed: None, progress });
        thread::scope(|scope| {
            for _ in 1..threads {
                let work = || self.work_on(&batch, layout, layers);
                if Builder::new().name("layer".into()).spawn_scoped(scope, work).is_err() {
                    break; // With fewer threads it takes longer.
                }
            }
            self.work_on(&batch, layout, layers);
        });
        let Batch { mut done, failed, .. } =
            batch.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(i, _)| *i);
        failed.map_or_else(|| Ok(done.into_iter().map(|(_, layer)| layer).collect()), Err)
    }

    /// Takes one layer after the other until none is left.
    fn work_on(&self, batch: &Mutex<Batch<'_>>, layout: &Layout, layers: &[Layer]) {
        loop {
            let Some(i) = lock(batch).waiting.pop() else { return };
            let mut on_progress = |progress| {
                let mut batch = lock(batch);
                match batch.failed {
                    Some(_) => ControlFlow::Break(()),
                    None => (batch.progress)(i, progress),
                }
            };
            let outcome = self.get_or_unpack(layout, &layers[i], &mut on_progress);
            let mut batch = lock(batch);
            match outcome {
                Ok(layer) => batch.done.push((i, layer)),
                Err(error) => {
                    batch.failed.get_or_insert(error);
                    batch.waiting.clear();
                }
            }
        }
    }
}

fn lock<'m, 'a>(batch: &'m Mutex<Batch<'a>>) -> MutexGuard<'m, Batch<'a>> {
    batch.lock().unwrap_or_else(PoisonError::into_inner)
}
