//! The boot of a box: its phases, and the layers that were unpacked.
//!
//! The shim measures the phases and reports them when the box is ready. Before that, this module
//! derives them from the times of the events.

use std::collections::BTreeMap;

use a3s_box_core::BoxState;
use a3s_box_core::event::{BootPhases, EventKind};

use super::model::{Bar, BarKind, wire_name};
use super::plain::PlainText;
use super::span::{self, Span};

/// Most layers that are recorded. OverlayFS mounts at most 500, and a typical image has about ten.
/// The bound keeps memory small for a hostile file.
const MAX_LAYERS: usize = 512;

/// Most characters of a layer's label: `layer 500/500`, the longest one that can be mounted.
const LABEL_CHARS: usize = 13;

/// Characters of a digest that are shown, including its algorithm: enough to distinguish layers.
const DIGEST_CHARS: usize = "sha256:0123456789ab".len();

/// What the events of a run report about its boot.
#[derive(Debug, Default)]
pub(crate) struct Boot {
    resolved_ms: Option<u64>,
    root: Option<Root>,
    vm_starting_ms: Option<u64>,
    guest_started_ms: Option<u64>,
    /// The durations that the shim measured itself.
    phases: Option<BootPhases>,
    pub(crate) ready_ms: Option<u64>,
    /// Layers by their number, which starts at 1.
    layers: BTreeMap<u32, Layer>,
    /// Number of layers of the image.
    layer_count: u32,
    /// Number of the layer of the last progress event.
    current: Option<u32>,
}

#[derive(Debug)]
struct Root {
    ready_ms: u64,
    duration_ms: u64,
    detail: String,
}

#[derive(Debug)]
struct Layer {
    digest: PlainText,
    bytes: u64,
    span: Span,
    is_done: bool,
}

impl Boot {
    /// Records an event at `ms`, if it belongs to the boot.
    pub(crate) fn record(&mut self, ms: u64, kind: &EventKind) {
        match kind {
            EventKind::ImageResolved { .. } => self.resolved_ms = Some(ms),
            EventKind::RootfsProgress { .. } => self.record_progress(ms, kind),
            EventKind::RootfsReady { duration_ms, .. } => {
                self.finish_all_layers(ms);
                let detail = root_detail(kind);
                self.root = Some(Root { ready_ms: ms, duration_ms: *duration_ms, detail });
            }
            EventKind::VmStarting { .. } => self.vm_starting_ms = Some(ms),
            EventKind::GuestStarted { .. } => self.guest_started_ms = Some(ms),
            EventKind::AgentReady { phases } => {
                self.phases = Some(*phases);
                self.ready_ms.get_or_insert(ms);
            }
            // A box without an agent emits no `agent.ready`, so its change of state counts. A box
            // with an agent emits both, and the first one wins.
            EventKind::StateChanged { from: BoxState::Created, to } if *to != BoxState::Stopped => {
                self.ready_ms.get_or_insert(ms);
            }
            // A rotated file may begin after the boot. The metrics repeat the durations of the
            // boot.
            EventKind::Metrics(metrics) if self.phases.is_none() && metrics.boot.total_ms > 0 => {
                self.phases = Some(metrics.boot);
                self.ready_ms = Some(metrics.boot.total_ms);
            }
            _ => {}
        }
    }

    fn record_progress(&mut self, ms: u64, kind: &EventKind) {
        let EventKind::RootfsProgress { layer, layer_number, layers, bytes_done, .. } = kind else {
            return;
        };
        let EventKind::RootfsProgress { bytes_total, .. } = kind else { return };
        if self.current.replace(*layer_number).is_some_and(|last| last != *layer_number) {
            self.finish_layers_except(*layer_number, ms);
        }
        self.layer_count = *layers;
        // Progress is emitted at most ten times a second, so the first event of a layer comes late,
        // and events do not show which layers were unpacked at the same time. The picture therefore
        // has them one after the other: each begins when the previous one ends.
        let ends = self.layers.values().map(|layer| layer.span.to_ms);
        let from_ms = ends.max().or(self.resolved_ms).unwrap_or(ms);
        if self.layers.len() >= MAX_LAYERS && !self.layers.contains_key(layer_number) {
            return;
        }
        let entry = self.layers.entry(*layer_number).or_insert_with(|| Layer {
            digest: PlainText::new(layer, DIGEST_CHARS),
            bytes: *bytes_total,
            span: Span::new(from_ms, ms),
            is_done: false,
        });
        entry.span.to_ms = ms;
        entry.is_done = bytes_done >= bytes_total;
    }

    /// Ends all unfinished layers at `ms`, except layer `number`.
    ///
    /// The last progress event of a layer may be missing, because the shim limits their rate.
    /// Therefore an event of another layer counts as the end.
    fn finish_layers_except(&mut self, number: u32, ms: u64) {
        let open = self.layers.iter_mut().filter(|(of, layer)| **of != number && !layer.is_done);
        for (_, layer) in open {
            layer.span.to_ms = ms;
            layer.is_done = true;
        }
    }

    fn finish_all_layers(&mut self, ms: u64) {
        // Layers are numbered from 1, so number 0 excludes none.
        self.finish_layers_except(0, ms);
    }

    /// Returns when the work on the root file system began, from the best source that the file has.
    fn root_begin_ms(&self) -> Option<u64> {
        let root = self.root.as_ref();
        self.resolved_ms
            .or_else(|| self.layers.values().map(|layer| layer.span.from_ms).min())
            .or_else(|| root.map(|root| root.ready_ms.saturating_sub(root.duration_ms)))
            .or(self.vm_starting_ms)
    }

    /// Returns the bars of the phases, with the layers after the root file system.
    ///
    /// A phase or layer without an end lasts until `end_ms` and is marked as unfinished.
    pub(crate) fn bars(&self, end_ms: u64) -> Vec<Bar> {
        let mut bars = match &self.phases {
            Some(phases) => self.measured(phases),
            None => self.observed(end_ms),
        };
        let root = bars.iter().position(|bar| bar.kind == BarKind::Rootfs);
        if let Some(root) = root {
            bars.splice(root + 1..root + 1, self.layer_bars(end_ms));
        }
        bars
    }

    /// Returns the phases that the shim measured. They follow each other without a gap from 0.
    fn measured(&self, phases: &BootPhases) -> Vec<Bar> {
        let mut from_ms = 0;
        let durations = [
            (BarKind::Config, "config", phases.config_ms),
            (BarKind::Rootfs, "rootfs", phases.rootfs_ms),
            (BarKind::Vm, "vm", phases.vm_ms),
            (BarKind::Kernel, "kernel", phases.kernel_ms),
            (BarKind::Agent, "agent", phases.agent_ms),
        ];
        durations
            .into_iter()
            .map(|(kind, label, ms)| {
                let span = Span::new(from_ms, from_ms.saturating_add(ms));
                from_ms = span.to_ms;
                self.bar((kind, label), span, true)
            })
            .collect()
    }

    /// Returns the phases as the times of the events show them.
    ///
    /// No event marks the moment at which the shim entered libkrun. Therefore one bar stands for
    /// the phases `vm` and `kernel`.
    fn observed(&self, end_ms: u64) -> Vec<Bar> {
        let root_from_ms = self.root_begin_ms();
        let phases = [
            ((BarKind::Config, "config"), Some(0), root_from_ms),
            (
                (BarKind::Rootfs, "rootfs"),
                root_from_ms,
                self.vm_starting_ms.or(self.root_ready_ms()),
            ),
            ((BarKind::Kernel, "vm, kernel"), self.vm_starting_ms, self.guest_started_ms),
            ((BarKind::Agent, "agent"), self.guest_started_ms, self.ready_ms),
        ];
        phases
            .into_iter()
            .filter_map(|(name, from_ms, to_ms)| {
                let span = Span::new(from_ms?, to_ms.unwrap_or(end_ms));
                // A box without an agent is ready as soon as its guest has started, so its phase
                // `agent` is empty and is left out.
                let is_none = name.0 == BarKind::Agent && to_ms.is_some() && span.ms() == 0;
                (!is_none).then(|| self.bar(name, span, to_ms.is_some()))
            })
            .collect()
    }

    fn root_ready_ms(&self) -> Option<u64> {
        self.root.as_ref().map(|root| root.ready_ms)
    }

    fn bar(&self, (kind, label): (BarKind, &str), span: Span, is_finished: bool) -> Bar {
        let root = self.root.as_ref().filter(|_| kind == BarKind::Rootfs);
        let detail = root.map(|root| root.detail.clone()).unwrap_or_default();
        Bar { kind, label: label.to_owned(), detail, span, took_ms: span.ms(), is_finished }
    }

    fn layer_bars(&self, end_ms: u64) -> Vec<Bar> {
        let of = self.layer_count;
        let bar = |(number, layer): (&u32, &Layer)| {
            let to_ms = if layer.is_done { layer.span.to_ms } else { end_ms };
            let span = Span::new(layer.span.from_ms, to_ms);
            Bar {
                kind: BarKind::Layer,
                label: PlainText::new(&format!("layer {number}/{of}"), LABEL_CHARS).to_string(),
                detail: format!("{} · {}", span::bytes(layer.bytes), layer.digest),
                span,
                took_ms: span.ms(),
                is_finished: layer.is_done,
            }
        };
        self.layers.iter().map(bar).collect()
    }
}

/// Describes the root: how it was made, its layers, and the bytes that were unpacked for it.
fn root_detail(kind: &EventKind) -> String {
    let EventKind::RootfsReady { layers, cache_hits, unpacked_bytes, root, .. } = kind else {
        return String::new();
    };
    let mut detail = wire_name(root);
    if *layers > 0 {
        let s = if *layers == 1 { "" } else { "s" };
        detail.push_str(&format!(" of {layers} layer{s}, {cache_hits} cached"));
    }
    if *unpacked_bytes > 0 {
        detail.push_str(&format!(" · {} unpacked", span::bytes(*unpacked_bytes)));
    }
    detail
}
