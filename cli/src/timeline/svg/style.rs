//! The style sheet of a picture, and the CSS classes of its elements.

use crate::timeline::grid::{Activity, Health, MarkKind};
use crate::timeline::model::{BarKind, Weight};

/// The style sheet. The page is light, because pictures are printed and pasted into reports.
pub(super) const STYLE: &str = r##"<defs><pattern id="hatch" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="4" height="8" fill="#ffffff" fill-opacity="0.55"/></pattern></defs>
<style>
text { font: 12px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; fill: #24303c }
.page { fill: #ffffff }
.title { font-size: 22px; font-weight: 600 }
.heading { font-size: 14px; font-weight: 600 }
.summary { font-size: 13px }
.quiet { fill: #66727f }
.name { fill: #24303c }
.minor { font-size: 11px; fill: #66727f }
.number { text-anchor: end; fill: #4a5662; font-variant-numeric: tabular-nums }
.tick { text-anchor: middle; font-size: 11px; fill: #7a8591 }
.detail { font-size: 11px; fill: #55616d }
.inside { fill: #ffffff }
.on-pale { fill: #1c3347 }
.before { text-anchor: end }
.ready { text-anchor: middle; font-weight: 600; fill: #2e7d4f }
.ready-line { stroke: #2e7d4f; stroke-width: 1.5; stroke-dasharray: 4 3; fill: none }
.grid { stroke: #e6eaee; stroke-width: 1; fill: none }
.base { fill: #c3cad2 }
.track { fill: #f3f5f7 }
.config { fill: #7d8a99 }
.rootfs { fill: #2f6f9f }
.layer { fill: #8dbcdc }
.vm { fill: #d98a2b }
.kernel { fill: #b5543c }
.agent { fill: #4f8f5b }
.grace { fill: #c9a227 }
.kill { fill: #c0392b }
.shutdown { fill: #7d8a99 }
.open { fill: url(#hatch) }
.cut { stroke: #c0392b; stroke-width: 2; fill: none }
.booting { fill: #c9d1d9 }
.is-ready { fill: #b9dcc0 }
.busy { fill: #2f6f9f }
.compacting { fill: #8a63b5 }
.stopping { fill: #c9a227 }
.starting { fill: #d5dbe1 }
.healthy { fill: #7fbf8e }
.unhealthy { fill: #c0392b }
.error { fill: #c0392b }
.truncated { fill: #d98a2b }
.dropped { fill: #7d8a99 }
.notified { fill: #2f6f9f }
.memory { fill: #a9c9e0; stroke: #2f6f9f; stroke-width: 1 }
.cpu { fill: #ecc9a0; stroke: #d98a2b; stroke-width: 1 }
.bad { fill: #a93226 }
.good-dot { fill: #4f8f5b }
.neutral-dot { fill: #9aa5b0 }
.strip { shape-rendering: crispEdges }
</style>
"##;

/// Returns the CSS class of a bar.
pub(super) fn bar(kind: BarKind) -> &'static str {
    match kind {
        BarKind::Config => "config",
        BarKind::Rootfs => "rootfs",
        BarKind::Layer => "layer",
        BarKind::Vm => "vm",
        BarKind::Kernel => "kernel",
        BarKind::Agent => "agent",
        BarKind::Grace => "grace",
        BarKind::Kill => "kill",
        BarKind::Shutdown => "shutdown",
    }
}

/// Returns the CSS classes of a state. The class `strip` turns anti-aliasing off, which would leave
/// light gaps between neighbouring cells.
pub(super) fn activity(of: Activity) -> &'static str {
    match of {
        Activity::Booting => "strip booting",
        Activity::Ready => "strip is-ready",
        Activity::Busy => "strip busy",
        Activity::Compacting => "strip compacting",
        Activity::Stopping => "strip stopping",
    }
}

/// Returns the CSS classes of a health.
pub(super) fn health(of: Health) -> &'static str {
    match of {
        Health::Starting => "strip starting",
        Health::Healthy => "strip healthy",
        Health::Unhealthy => "strip unhealthy",
    }
}

/// Returns the CSS class of a mark.
pub(super) fn mark(of: MarkKind) -> &'static str {
    match of {
        MarkKind::Error => "error",
        MarkKind::Truncated => "truncated",
        MarkKind::Dropped => "dropped",
        MarkKind::Notified => "notified",
    }
}

/// Returns the CSS class of the dot of a note.
pub(super) fn weight(of: Weight) -> &'static str {
    match of {
        Weight::Bad => "bad",
        Weight::Good => "good-dot",
        Weight::Neutral => "neutral-dot",
    }
}
