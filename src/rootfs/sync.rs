//! The layers of a root: keeps them in use while the box lives, and writes them to the disk.
//!
//! Unpacking leaves the files of a new layer in the page cache. A layer that was not synced counts
//! as missing after a reboot of the host, because a crash can have lost a part of it.

use std::sync::Arc;

use a3s_box_oci::{BlockRoot, CacheError, LayerCache, Retention, Stack};

use crate::spec::VmSpec;

/// The layers of a root. As long as this value lives, its leases keep other processes from removing
/// the layers.
#[derive(Debug)]
pub(super) enum Layers {
    /// The box has no image.
    None,
    /// The layers with their cache.
    Cached(Arc<Cached>),
    /// The leases alone. The cache has fds of directories, which lead a hostile guest out of the
    /// root.
    Held { _leases: Composed },
}

/// Layers, and the cache that contains them.
#[derive(Debug)]
pub(super) struct Cached {
    cache: LayerCache,
    layers: Composed,
    retention: Retention,
}

/// The layers of a root of either kind.
#[derive(Debug)]
pub(super) enum Composed {
    Stack(Stack),
    Block(BlockRoot),
}

impl Layers {
    pub(super) fn new(layers: Option<Cached>) -> Self {
        layers.map_or(Self::None, |layers| Self::Cached(Arc::new(layers)))
    }

    /// Writes the layers to the disk.
    pub(super) fn sync(&self) -> Result<(), CacheError> {
        if let Self::Cached(layers) = self { layers.sync() } else { Ok(()) }
    }

    /// Writes the layers to the disk in a thread. A failure is logged and has no other consequence:
    /// after a crash of the host, the layers are unpacked again.
    pub(super) fn sync_in_background(&self) {
        let Self::Cached(layers) = self else { return };
        let layers = Arc::clone(layers);
        let sync = move || {
            if let Err(error) = layers.sync() {
                tracing::warn!(error = &error as &dyn std::error::Error, "layers are not synced");
            }
        };
        // Without the thread the layers are not synced, which has the same consequence.
        let _handle = std::thread::Builder::new().name("layer sync".into()).spawn(sync);
    }

    /// Closes the cache and keeps the leases.
    pub(super) fn close_cache(&mut self) {
        if let Self::Cached(layers) = std::mem::replace(self, Self::None) {
            // There is no second reference, because a background sync excludes this call.
            let held = Arc::into_inner(layers).map(|layers| Self::Held { _leases: layers.layers });
            *self = held.unwrap_or(Self::None);
        }
    }
}

impl Cached {
    pub(super) fn new(cache: LayerCache, layers: Composed, spec: &VmSpec) -> Self {
        Self { cache, layers, retention: spec.retention }
    }

    /// Writes the layers to the disk. If that added layers to the cache, brings the cache within
    /// its limits.
    fn sync(&self) -> Result<(), CacheError> {
        let is_new = match &self.layers {
            Composed::Stack(stack) => self.cache.sync(stack)?,
            Composed::Block(root) => self.cache.sync_block(root)?,
        };
        if is_new && self.retention != Retention::default() {
            let collected = self.cache.collect(&self.retention)?;
            tracing::info!(?collected, "the layer cache is within its limits");
        }
        Ok(())
    }
}
