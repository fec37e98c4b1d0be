//! `--gc` and `--verify`: the upkeep of the layer cache, for people and timers.

use std::ops::ControlFlow;

use a3s_box_core::ConfigError;
use a3s_box_core::event::{DamagedLayer, EventKind};
use a3s_box_oci::{Damage, LayerCache};

use crate::arguments::Mode;
use crate::error::ShimError;
use crate::events::EventWriter;
use crate::process::Signals;
use crate::rootfs::{RootfsError, resolve};
use crate::spec::VmSpec;

/// Does what `mode` asks for, and says what came of it.
pub(crate) fn run(
    mode: Mode,
    spec: &VmSpec,
    events: &EventWriter,
    signals: &Signals,
) -> Result<(), ShimError> {
    let cache = LayerCache::open(&spec.paths.cache_dir).map_err(RootfsError::from)?;
    match mode {
        Mode::Verify => verify(spec, &cache, events, signals),
        _ => Ok(collect(spec, &cache, events)?),
    }
}

/// Brings the cache within its limits.
fn collect(spec: &VmSpec, cache: &LayerCache, events: &EventWriter) -> Result<(), RootfsError> {
    let collected = cache.collect(&spec.retention)?;
    events.emit(EventKind::CacheCollected {
        removed: collected.removed,
        freed_bytes: collected.freed_bytes,
        kept: collected.kept,
        kept_bytes: collected.kept_bytes,
    });
    Ok(())
}

/// Compares the layers of the config's image with its blobs.
fn verify(
    spec: &VmSpec,
    cache: &LayerCache,
    events: &EventWriter,
    signals: &Signals,
) -> Result<(), ShimError> {
    let image = spec.image.as_ref().ok_or_else(|| {
        ConfigError::invalid("image", "nothing", "the image whose layers are to be verified")
    })?;
    let (layout, image) = resolve(image).map_err(RootfsError::from)?;
    let mut stopped = None;
    let mut progress = |_layer, _step| {
        stopped = stopped.or_else(|| signals.next());
        if stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let verified = cache.verify(&layout, &image.layers, &mut progress);
    if let Some(request) = stopped {
        return Err(RootfsError::Stopped(request).into());
    }
    let verified = verified.map_err(RootfsError::from)?;
    let in_use = verified.in_use.len();
    events.emit(EventKind::CacheVerified {
        intact: verified.intact,
        rebuilt: verified.rebuilt.into_iter().map(damaged).collect(),
        in_use: verified.in_use.into_iter().map(damaged).collect(),
    });
    match in_use {
        0 => Ok(()),
        count => Err(RootfsError::DamagedInUse { count }.into()),
    }
}

fn damaged(damage: Damage) -> DamagedLayer {
    DamagedLayer {
        layer: damage.layer,
        path: damage.path.display().to_string(),
        what: damage.what.to_owned(),
    }
}
