//! Reports the progress of unpacking as events, and extends the timeout of the service manager.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use a3s_box_core::event::EventKind;
use a3s_box_oci::{Layer, Progress};

use crate::report::events::EventWriter;
use crate::report::service_manager::ServiceManager;

/// Shortest time between two progress events. Ten a second suffice for a progress bar that moves.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Time that the service manager is asked to wait from each progress on. It is as long as systemd's
/// default timeout of a start.
const PROGRESS_MARGIN: Duration = Duration::from_secs(90);

/// Turns the progress of layers into events.
pub(super) struct Meter<'a> {
    events: &'a EventWriter,
    service_manager: &'a ServiceManager,
    layers: &'a [Layer],
    /// Number of bytes that are done of each layer, by the index of the layer.
    done: HashMap<usize, u64>,
    /// Time of the last event.
    last: Option<Instant>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(
        events: &'a EventWriter,
        service_manager: &'a ServiceManager,
        layers: &'a [Layer],
    ) -> Self {
        Self { events, service_manager, layers, done: HashMap::new(), last: None }
    }

    /// Records the progress of the layer `index`, and emits an event unless the last one is too
    /// recent.
    pub(super) fn report(&mut self, index: usize, progress: Progress) {
        let Some(layer) = self.layers.get(index) else { return };
        let bytes_done = match progress {
            Progress::Waiting => 0,
            Progress::Unpacking { read_bytes, .. } => read_bytes,
            Progress::Publishing | Progress::OnTop | Progress::Cached => layer.size_bytes,
        };
        self.done.insert(index, bytes_done);
        // A layer that was in the cache already is counted, but is no progress to report.
        if progress == Progress::Cached
            || self.last.is_some_and(|last| last.elapsed() < PROGRESS_INTERVAL)
        {
            return;
        }
        self.last = Some(Instant::now());
        self.service_manager.extend_timeout(PROGRESS_MARGIN);
        self.events.emit(EventKind::RootfsProgress {
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

/// Converts a number of layers. It always fits, because the size of a manifest is limited.
pub(super) fn count(layers: usize) -> u32 {
    u32::try_from(layers).unwrap_or(u32::MAX)
}
