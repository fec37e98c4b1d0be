//! The root file system: layers from the image, unpacked once, under a writable directory.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use a3s_box_core::config::ConfinementLevel;
use a3s_box_core::event::{EventKind, RootMethod};
use a3s_box_oci::{
    CacheError, Image, Layer, LayerCache, Layout, LayoutError, MountError, OverlaySpec, Progress,
    Retention, Stack,
};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::host::process::{Signals, StopRequest};
use crate::report::events::EventWriter;
use crate::report::service_manager::ServiceManager;
use crate::spec::{ImageSpec, VmSpec};
use crate::state::dir::StateDir;
use crate::state::disk::{Disk, DiskError};
use crate::workload;

/// At most ten progress events a second: enough for a bar that moves.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The root file system cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot use the image")]
    Layout(#[from] LayoutError),
    #[error("cannot put a layer into the cache")]
    Layer(#[from] CacheError),
    #[error("cannot make the place for what the box writes")]
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

/// How much longer a service manager is asked to wait while something moves.
const PROGRESS_MARGIN: Duration = Duration::from_secs(90);

/// Who is told of an unpacking, and who may end it.
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

/// What keeps the layers from being removed for as long as the process lives.
#[derive(Debug)]
enum Layers {
    None,
    Cached(Arc<CachedStack>),
    /// Without the cache, whose directories lead to the rest of the host.
    Held {
        _leases: Stack,
    },
}

/// Layers, and the cache that they are in.
#[derive(Debug)]
struct CachedStack {
    cache: LayerCache,
    stack: Stack,
    retention: Retention,
}

/// Makes and mounts the root of the box at `state.root()`. Without an image it is empty.
pub(crate) fn mount(
    spec: &VmSpec,
    state: &StateDir,
    observers: Observers<'_>,
) -> Result<Root, RootfsError> {
    let events = observers.events;
    let start = Instant::now();
    let image = spec.image.as_ref().map(resolve).transpose()?;
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
    let layers = layers.map_or(Layers::None, |layers| Layers::Cached(Arc::new(layers)));
    Ok(Root { image: image.map(|(_, image)| image), layers })
}

impl Root {
    /// Puts the layers on the disk, so that they survive a crash of the machine.
    pub(crate) fn sync(&self) -> Result<(), RootfsError> {
        if let Layers::Cached(layers) = &self.layers { layers.sync() } else { Ok(()) }
    }

    /// The same, while the VM starts. A confined shim has no thread that is not, so it syncs at once.
    pub(crate) fn sync_meanwhile(&mut self, level: ConfinementLevel) -> Result<(), RootfsError> {
        if level != ConfinementLevel::None {
            self.sync()?;
            self.let_go_of_cache();
            return Ok(());
        }
        let Layers::Cached(layers) = &self.layers else { return Ok(()) };
        let layers = Arc::clone(layers);
        let sync = move || {
            if let Err(error) = layers.sync() {
                tracing::warn!(error = &error as &dyn std::error::Error, "layers are not kept");
            }
        };
        // Without the thread the layers are unpacked again after a crash of the machine.
        let _handle = std::thread::Builder::new().name("layer sync".into()).spawn(sync);
        Ok(())
    }

    fn let_go_of_cache(&mut self) {
        if let Layers::Cached(layers) = std::mem::replace(&mut self.layers, Layers::None) {
            let held = Arc::into_inner(layers).map(|layers| Layers::Held { _leases: layers.stack });
            self.layers = held.unwrap_or(Layers::None);
        }
    }
}

impl CachedStack {
    /// Syncs the layers, and makes room if that took some.
    fn sync(&self) -> Result<(), RootfsError> {
        if self.cache.sync(&self.stack)? && self.retention != Retention::default() {
            let collected = self.cache.collect(&self.retention)?;
            tracing::info!(?collected, "the layer cache is within its limits");
        }
        Ok(())
    }
}

/// Mounts the layers' root, with what is written to it on `disk`.
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

/// Undoes [`mount`] for `--prepare`.
pub(crate) fn unmount(state: &StateDir) -> Result<(), RootfsError> {
    let unmount = |path: &Path| umount2(path, MntFlags::MNT_DETACH);
    unmount(&state.root()).map_err(|errno| RootfsError::Unmount(errno.into()))?;
    match unmount(&state.disk()) {
        // Nothing was mounted there.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(RootfsError::Unmount(errno.into())),
    }
}

/// Finds the image of a config.
pub(crate) fn resolve(image: &ImageSpec) -> Result<(Layout, Image), LayoutError> {
    let layout = Layout::open(&image.layout)?;
    let resolved = layout.resolve(image.reference.as_deref(), &image.platform)?;
    Ok((layout, resolved))
}

fn unpack(
    spec: &VmSpec,
    layout: &Layout,
    image: &Image,
    observers: Observers<'_>,
) -> Result<CachedStack, RootfsError> {
    let cache = LayerCache::open(&spec.paths.cache_dir)?;
    let mut stopped = None;
    let mut meter = Meter { observers, layers: &image.layers, done: HashMap::new(), last: None };
    let mut on_progress = |layer, progress| {
        meter.report(layer, progress);
        stopped = stopped.or_else(|| observers.signals.next());
        if stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let composed = cache.compose(layout, &image.layers, &mut on_progress);
    match stopped {
        Some(request) => Err(RootfsError::Stopped(request)),
        None => Ok(CachedStack { stack: composed?, cache, retention: spec.retention }),
    }
}

/// Turns the progress on layers into events.
struct Meter<'a> {
    observers: Observers<'a>,
    layers: &'a [Layer],
    /// Bytes done of each layer, by its index.
    done: HashMap<usize, u64>,
    last: Option<Instant>,
}

impl Meter<'_> {
    fn report(&mut self, index: usize, progress: Progress) {
        let Some(layer) = self.layers.get(index) else { return };
        let bytes_done = match progress {
            Progress::Waiting => 0,
            Progress::Unpacking { read_bytes, .. } => read_bytes,
            Progress::Publishing | Progress::OnTop | Progress::Cached => layer.size_bytes,
        };
        self.done.insert(index, bytes_done);
        if progress == Progress::Cached
            || self.last.is_some_and(|last| last.elapsed() < PROGRESS_INTERVAL)
        {
            return;
        }
        self.last = Some(Instant::now());
        self.observers.service_manager.extend_timeout(PROGRESS_MARGIN);
        self.observers.events.emit(EventKind::RootfsProgress {
            layer: layer.digest.to_string(),
            layer_number: count(index + 1),
            layers: count(self.layers.len()),
            bytes_done,
            bytes_total: layer.size_bytes,
            image_bytes_done: self.done.values().sum(),
            image_bytes_total: self.layers.iter().map(|layer| layer.size_bytes).sum(),
        });
    }
}

/// A number of layers: the manifest is bounded far below this.
fn count(layers: usize) -> u32 {
    u32::try_from(layers).unwrap_or(u32::MAX)
}
