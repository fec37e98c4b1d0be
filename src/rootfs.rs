//! The root file system of a box: the layers of its image below a writable directory.
//!
//! ```text
//!  resolve ──► unpack into the layer cache ──► make the disk ──► mount ──► sync
//!                └─ rootfs/progress              state/disk                └─ rootfs/sync
//! ```

mod progress;
mod sync;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use a3s_box_core::config::ConfinementLevel;
use a3s_box_core::event::{EventKind, RootMethod};
use a3s_box_oci::{
    CacheError, Image, LayerCache, Layout, LayoutError, MountError, OverlaySpec, Stack,
};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use self::progress::{Meter, count};
use self::sync::{CachedStack, Layers};
use crate::host::process::{Signals, StopRequest};
use crate::report::events::EventWriter;
use crate::report::service_manager::ServiceManager;
use crate::spec::{ImageSpec, VmSpec};
use crate::state::dir::StateDir;
use crate::state::disk::{Disk, DiskError};
use crate::workload;

/// Why the root file system cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot use the image")]
    Layout(#[from] LayoutError),
    #[error("cannot put a layer into the cache")]
    Layer(#[from] CacheError),
    #[error("cannot make the disk for what the box writes")]
    Disk(#[from] DiskError),
    #[error("cannot mount the root file system")]
    Mount(#[from] MountError),
    #[error("cannot unmount the root file system")]
    Unmount(#[source] std::io::Error),
    #[error("{count} damaged layers are in use: stop the boxes that use them, and verify again")]
    DamagedInUse { count: usize },
    #[error("stopped by {0} while unpacking")]
    Stopped(StopRequest),
}

/// The receivers of progress, and the source of stop requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observers<'a> {
    pub(crate) events: &'a EventWriter,
    pub(crate) signals: &'a Signals,
    pub(crate) service_manager: &'a ServiceManager,
}

/// A mounted root.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) image: Option<Image>,
    layers: Layers,
}

/// Makes and mounts the root of the box at `state.root()`. Without an image the root is empty.
pub(crate) fn mount(
    spec: &VmSpec,
    state: &StateDir,
    observers: Observers<'_>,
) -> Result<Root, RootfsError> {
    let events = observers.events;
    let start = Instant::now();
    let image = spec.image.as_ref().map(resolve).transpose()?;
    // This event comes before the unpacking, so that a supervisor can show the image meanwhile.
    if let Some((_, image)) = &image {
        events.emit(workload::image_resolved(spec, image));
    }
    let layers = match &image {
        None => None,
        Some((layout, image)) => Some(unpack(spec, layout, image, observers)?),
    };
    let empty = Stack::empty();
    let stack = layers.as_ref().map_or(&empty, |layers| &layers.stack);
    let disk = Disk::make(spec, state)?;
    let root = mount_stack(stack, &disk, state)?;
    events.emit(EventKind::RootfsReady {
        image: image.as_ref().map(|(_, image)| image.manifest_digest.to_string()),
        layers: count(image.as_ref().map_or(0, |(_, image)| image.layers.len())),
        cache_hits: count(stack.hits),
        unpacked_bytes: stack.unpacked_bytes,
        root,
        upper: disk.place,
        disk_mib: spec.disk_mib,
        duration_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    Ok(Root { image: image.map(|(_, image)| image), layers: Layers::new(layers) })
}

impl Root {
    /// Writes the layers to the disk, so that they survive a crash of the host.
    pub(crate) fn sync(&self) -> Result<(), RootfsError> {
        Ok(self.layers.sync()?)
    }

    /// Writes the layers to the disk while the VM starts, where `level` allows it.
    ///
    /// All threads of a confined shim are confined, because it is single-threaded when it confines
    /// itself, and a confined thread cannot reach the cache. Such a shim syncs at once and closes
    /// the cache.
    pub(crate) fn sync_meanwhile(&mut self, level: ConfinementLevel) -> Result<(), RootfsError> {
        if level == ConfinementLevel::None {
            self.layers.sync_in_background();
            return Ok(());
        }
        self.sync()?;
        self.layers.close_cache();
        Ok(())
    }
}

/// Mounts the root of the layers, with the writable directory on `disk`.
fn mount_stack(stack: &Stack, disk: &Disk, state: &StateDir) -> Result<RootMethod, MountError> {
    let overlay =
        OverlaySpec { stack, upper: disk.upper(), work: disk.work(), target: state.root() };
    Ok(match overlay.mount()? {
        a3s_box_oci::RootMethod::Empty => RootMethod::Empty,
        a3s_box_oci::RootMethod::Overlay => RootMethod::Overlay,
        a3s_box_oci::RootMethod::Reflink => RootMethod::Reflink,
        a3s_box_oci::RootMethod::Copy => RootMethod::Copy,
    })
}

/// Unmounts the root and the disk, which reverts [`mount`] for `--prepare`.
pub(crate) fn unmount(state: &StateDir) -> Result<(), RootfsError> {
    // A lazy unmount succeeds even if a file is open, and this process ends soon.
    let unmount = |path: &Path| umount2(path, MntFlags::MNT_DETACH);
    unmount(&state.root()).map_err(|errno| RootfsError::Unmount(errno.into()))?;
    match unmount(&state.disk()) {
        // A disk in the state directory is no mount: its directory is missing (ENOENT), or it is an
        // ordinary directory (EINVAL).
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(RootfsError::Unmount(errno.into())),
    }
}

/// Finds the image of a config in its layout.
pub(crate) fn resolve(image: &ImageSpec) -> Result<(Layout, Image), LayoutError> {
    let layout = Layout::open(&image.layout)?;
    let resolved = layout.resolve(image.reference.as_deref(), &image.platform)?;
    Ok((layout, resolved))
}

/// Opens the layer cache, with the limits of the config for the layers of its image.
pub(crate) fn open_cache(spec: &VmSpec) -> Result<LayerCache, CacheError> {
    let cache = LayerCache::open(&spec.paths.cache_dir)?;
    Ok(match &spec.image {
        Some(image) => cache.with_limits(image.limits.clone()),
        None => cache,
    })
}

/// Unpacks the layers that the cache lacks, until a stop request arrives.
fn unpack(
    spec: &VmSpec,
    layout: &Layout,
    image: &Image,
    observers: Observers<'_>,
) -> Result<CachedStack, RootfsError> {
    let cache = open_cache(spec)?;
    let mut stopped = None;
    let mut meter = Meter::new(observers.events, observers.service_manager, &image.layers);
    let mut on_progress = |layer, progress| {
        meter.report(layer, progress);
        stopped = stopped.or_else(|| observers.signals.next());
        if stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let composed = cache.compose(layout, &image.layers, &mut on_progress);
    match stopped {
        // The stop request is the reason for any error that the cache returns after a break.
        Some(request) => Err(RootfsError::Stopped(request)),
        None => Ok(CachedStack { stack: composed?, cache, retention: spec.retention }),
    }
}
