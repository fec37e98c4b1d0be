//! Maintenance of the layer cache, which people or timers start: `--gc` and `--verify`.

use std::ops::ControlFlow;

use a3s_box_core::ConfigError;
use a3s_box_core::event::{DamagedLayer, EventKind};
use a3s_box_oci::Damage;

use crate::host::process::Signals;
use crate::input::config::InputError;
use crate::report::events::EventWriter;
use crate::rootfs::error::RootfsError;
use crate::rootfs::{open_cache, resolve};
use crate::spec::VmSpec;

/// Why the cache could not be maintained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MaintenanceError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
}

/// `--gc`: removes layers until the cache is within its limits.
pub(crate) fn collect(spec: &VmSpec, events: &EventWriter) -> Result<(), MaintenanceError> {
    let cache = open_cache(spec).map_err(RootfsError::from)?;
    let collected = cache.collect(&spec.retention).map_err(RootfsError::from)?;
    events.emit(EventKind::CacheCollected {
        removed: collected.removed,
        freed_bytes: collected.freed_bytes,
        kept: collected.kept,
        kept_bytes: collected.kept_bytes,
    });
    Ok(())
}

/// `--verify`: compares the layers of the config's image with its blobs, and unpacks damaged layers
/// again. A damaged layer that a box is using is an error, because it cannot be replaced.
pub(crate) fn verify(
    spec: &VmSpec,
    events: &EventWriter,
    signals: &Signals,
) -> Result<(), MaintenanceError> {
    let cache = open_cache(spec).map_err(RootfsError::from)?;
    let image = spec.image.as_ref().ok_or_else(|| {
        let expected = "the image whose layers are to be verified";
        InputError::from(ConfigError::invalid("image", "nothing", expected))
    })?;
    let (layout, image) = resolve(image).map_err(RootfsError::from)?;
    let mut stopped = None;
    let mut progress = |_layer, _step| {
        stopped = stopped.or_else(|| signals.next());
        if stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let verified = cache.verify(&layout, &image.layers, &mut progress);
    // The cache reports a break as an error of its own, which must not hide the stop request.
    if let Some(request) = stopped {
        return Err(RootfsError::Stopped(request).into());
    }
    let verified = verified.map_err(RootfsError::from)?;
    // The event comes before the error, so that a supervisor gets the list of damaged layers.
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
