//! The root file system of a box: its image, and a place for the files that the box writes.
//!
//! ```text
//!                    ┌─ shared: layers in the cache ──► disk of the host ──► overlay mount ─┐
//!  resolve ──► kind ─┤                                  state/disk           rootfs/shared  ├─► sync
//!                    └─ block: layer files in the ────► disk of the VM ────► rootfs/block ──┘
//!                       cache, one metadata image       state/block_disk
//! ```

pub(crate) mod block;
pub(crate) mod error;
mod form;
pub(crate) mod kind;
mod progress;
mod shared;
mod sync;
mod unpacker;

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

use a3s_box_core::config::{ConfinementLevel, DiskPlace, RootKind};
use a3s_box_core::event::{EventKind, RootMethod, UpperPlace};
use a3s_box_oci::{BlockRoot, CacheError, Image, LayerCache, Layout, LayoutError, Stack};

use self::block::{Disks, Writes};
use self::error::RootfsError;
use self::form::Form;
use self::kind::Choice;
use self::progress::{Meter, count};
use self::sync::{Cached, Composed, Layers};
use self::unpacker::Processes;
use crate::host::process::Signals;
use crate::report::events::EventWriter;
use crate::report::service_manager::ServiceManager;
use crate::spec::{ImageSpec, VmSpec};
use crate::state::block_disk::BlockDisk;
use crate::state::dir::StateDir;
use crate::state::disk::Disk;
use crate::workload;

/// Runs the unpacker to its end if the arguments of this process ask for it, and returns its exit
/// status.
///
/// Callers must do this before anything else, because the unpacker closes every inherited fd.
pub(crate) fn run_if_asked() -> Option<ExitCode> {
    unpacker::run_if_asked()
}

/// The receivers of progress, and the source of stop requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observers<'a> {
    pub(crate) events: &'a EventWriter,
    pub(crate) signals: &'a Signals,
    pub(crate) service_manager: &'a ServiceManager,
}

/// A root that is ready for the guest.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) image: Option<Image>,
    /// The disks of a block root. Absent: the root is the directory `state.root()`.
    pub(crate) disks: Option<Disks>,
    layers: Layers,
}

/// The parts of a root, and the facts that the event reports about it.
struct Made {
    layers: Layers,
    disks: Option<Disks>,
    hits: usize,
    unpacked_bytes: u64,
    method: RootMethod,
    place: UpperPlace,
    limit_mib: Option<u32>,
}

/// Makes the root of the box. Without an image the root is empty.
pub(crate) fn make(
    spec: &VmSpec,
    choice: Choice,
    state: &StateDir,
    observers: Observers<'_>,
) -> Result<Root, RootfsError> {
    let events = observers.events;
    let start = Instant::now();
    let found = spec.image.as_ref().map(resolve).transpose()?;
    // This event comes before the unpacking, so that a supervisor can show the image meanwhile.
    if let Some((_, image)) = &found {
        events.emit(workload::image_resolved(spec, image));
    }
    let made = match choice.kind {
        RootKind::Block => make_block(spec, found.as_ref(), state, observers)?,
        RootKind::Shared => make_shared(spec, found.as_ref(), state, observers)?,
    };
    let image = found.map(|(_, image)| image);
    events.emit(EventKind::RootfsReady {
        image: image.as_ref().map(|image| image.manifest_digest.to_string()),
        layers: count(image.as_ref().map_or(0, |image| image.layers.len())),
        cache_hits: count(made.hits),
        unpacked_bytes: made.unpacked_bytes,
        kind: choice.kind,
        kind_reason: choice.reason,
        root: made.method,
        upper: made.place,
        disk_mib: made.limit_mib,
        duration_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    Ok(Root { image, disks: made.disks, layers: made.layers })
}

/// Makes a root of two disks.
fn make_block(
    spec: &VmSpec,
    found: Option<&(Layout, Image)>,
    state: &StateDir,
    observers: Observers<'_>,
) -> Result<Made, RootfsError> {
    let (mut root, cache): (BlockRoot, _) = match found {
        None => (BlockRoot::empty()?, None),
        Some(found) => unpack(spec, found, observers)?,
    };
    let writes = match spec.disk {
        DiskPlace::StateDir => Writes::Disk(BlockDisk::make(spec, state)?),
        DiskPlace::Memory => Writes::Memory { limit_mib: spec.disk_mib },
    };
    let (place, limit_mib) = (writes.place(), writes.limit_mib());
    let disks = Disks::new(std::mem::take(&mut root.parts), found.is_some(), writes)?;
    let (hits, unpacked_bytes) = (root.hits, root.unpacked_bytes);
    let layers = Layers::new(cache.map(|cache| Cached::new(cache, Composed::Block(root), spec)));
    let method = if found.is_some() { RootMethod::Erofs } else { RootMethod::Empty };
    Ok(Made { layers, disks: Some(disks), hits, unpacked_bytes, method, place, limit_mib })
}

/// Makes a root in a directory of the host.
fn make_shared(
    spec: &VmSpec,
    found: Option<&(Layout, Image)>,
    state: &StateDir,
    observers: Observers<'_>,
) -> Result<Made, RootfsError> {
    let (stack, cache) = match found {
        None => (Stack::empty(), None),
        Some(found) => unpack(spec, found, observers)?,
    };
    let disk = Disk::make(spec, state)?;
    let method = shared::mount(&stack, &disk, state)?;
    let (hits, unpacked_bytes) = (stack.hits, stack.unpacked_bytes);
    let layers = Layers::new(cache.map(|cache| Cached::new(cache, Composed::Stack(stack), spec)));
    let (place, limit_mib) = (disk.place, spec.disk_mib);
    Ok(Made { layers, disks: None, hits, unpacked_bytes, method, place, limit_mib })
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

    /// Reverts [`make`] for `--prepare`.
    pub(crate) fn unmount(&self, state: &StateDir) -> Result<(), RootfsError> {
        // The disks of a block root are files of the box directory, which `--prepare` removes.
        if self.disks.is_some() { Ok(()) } else { shared::unmount(state) }
    }
}

/// Finds the image of a config in its layout.
pub(crate) fn resolve(image: &ImageSpec) -> Result<(Layout, Image), LayoutError> {
    let layout = Layout::open(&image.layout)?;
    let resolved = layout.resolve(image.reference.as_deref(), &image.platform)?;
    Ok((layout, resolved))
}

/// Opens the layer cache, with the limits of the config for the layers of its image. Unpackers do the
/// work on the bytes of an image, unless the config asks for no confinement.
pub(crate) fn open_cache(spec: &VmSpec) -> Result<LayerCache, CacheError> {
    let mut cache = LayerCache::open(&spec.paths.cache_dir)?;
    if spec.confinement != ConfinementLevel::None {
        cache = cache.with_unpackers(Box::new(Processes { seccomp: spec.seccomp }));
    }
    Ok(match &spec.image {
        Some(image) => cache.with_limits(image.limits.clone()),
        None => cache,
    })
}

/// Unpacks the layers that the cache lacks, until a stop request arrives or the box has reached its
/// timeout. Returns the image, and always the cache.
fn unpack<F: Form>(
    spec: &VmSpec,
    (layout, image): &(Layout, Image),
    observers: Observers<'_>,
) -> Result<(F, Option<LayerCache>), RootfsError> {
    let cache = open_cache(spec)?;
    let mut meter = Meter::new(observers.events, observers.service_manager, &image.layers);
    let mut stop = || match (observers.signals.next(), spec.timeout) {
        (Some(request), _) => Some(RootfsError::Stopped(request)),
        (None, Some(timeout)) if observers.events.elapsed() >= timeout => {
            Some(RootfsError::TimedOut)
        }
        _ => None,
    };
    let image = match F::find(&cache, &image.layers)? {
        Some(image) => image,
        None => {
            let mut stopped = None;
            let on_progress = &mut |layer, progress| {
                meter.report(layer, progress);
                stopped = stopped.take().or_else(&mut stop);
                if stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let composed = F::compose(&cache, layout, &image.layers, on_progress);
            // The stop is the reason for any error that the cache returns after a break.
            stopped.map_or_else(|| Ok(composed?), Err)?
        }
    };
    Ok((image, Some(cache)))
}
