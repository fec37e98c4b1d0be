//! What is drawn from a grid: strips of states and health, curves, and marks.

use std::fmt::Write;

use super::chart::place;
use super::style;
use crate::timeline::canvas::{Area, Canvas, boxed};
use crate::timeline::grid::{Activity, Cell, Grid, Health, MarkKind};
use crate::timeline::model::Timeline;
use crate::timeline::span::Span;

/// Narrowest part of what must not be overlooked.
const SEEN: f64 = 2.0;

/// From the bottom of a strip to its top: what matters stands on the ground.
const STACK: [Activity; 5] =
    [Activity::Busy, Activity::Compacting, Activity::Booting, Activity::Stopping, Activity::Ready];

/// The states, stacked by their share of each cell.
pub(super) fn activity(canvas: &mut Canvas, timeline: &Timeline, axis: Span, chart: Area) {
    canvas.rect(chart, "track", "");
    let mut paths = STACK.map(|of| (of, Run::default()));
    for (span, cell) in timeline.grid.cells() {
        let sum: f64 = cell.activity_ms.iter().sum();
        let mut bottom = chart.bottom();
        for (of, run) in &mut paths {
            if sum <= 0.0 || cell.activity(*of) <= 0.0 {
                continue;
            }
            let height = chart.height * cell.activity(*of) / sum;
            bottom -= height;
            run.add(part(axis, span, Area { y: bottom, height, ..chart }));
        }
    }
    for (of, run) in paths {
        canvas.path(style::activity(of), &run.finish());
    }
}

/// The health: of each cell, the worst.
pub(super) fn health(canvas: &mut Canvas, timeline: &Timeline, axis: Span, chart: Area) {
    canvas.rect(chart, "track", "");
    let worst = |cell: &Cell| {
        let order = [Health::Unhealthy, Health::Healthy, Health::Starting];
        order.into_iter().find(|of| cell.health(*of) > 0.0)
    };
    for of in [Health::Starting, Health::Healthy, Health::Unhealthy] {
        let mut run = Run::default();
        for (span, _) in timeline.grid.cells().filter(|(_, cell)| worst(cell) == Some(of)) {
            let mut area = part(axis, span, chart);
            if of == Health::Unhealthy {
                area.width = area.width.max(SEEN);
                area.x = area.x.min(chart.right() - area.width);
            }
            run.add(area);
        }
        canvas.path(style::health(of), &run.finish());
    }
}

/// A cell's part of a chart.
fn part(axis: Span, span: Span, chart: Area) -> Area {
    let x = place(axis, span.from_ms);
    Area { x, width: place(axis, span.to_ms) - x, ..chart }
}

/// Areas of one colour, those that touch and are of one height in one piece.
#[derive(Debug, Default)]
struct Run {
    last: Option<Area>,
    commands: String,
}

impl Run {
    fn add(&mut self, area: Area) {
        // Coordinates have one digit after the point.
        let same = |one: f64, other: f64| (one - other).abs() < 0.05;
        match &mut self.last {
            Some(last)
                if same(last.right(), area.x)
                    && same(last.y, area.y)
                    && same(last.height, area.height) =>
            {
                last.width = area.right() - last.x;
            }
            last => {
                if let Some(done) = last.replace(area) {
                    self.commands.push_str(&boxed(done));
                }
            }
        }
    }

    fn finish(mut self) -> String {
        if let Some(last) = self.last {
            self.commands.push_str(&boxed(last));
        }
        self.commands
    }
}

/// Memory, from sample to sample.
pub(super) fn memory(canvas: &mut Canvas, grid: &Grid, peak_kib: u64, at: (Span, Area)) {
    let seen = grid.cells().filter(|(_, cell)| cell.memory_kib > 0);
    let heights = seen.map(|(span, cell)| (span, cell.memory_kib as f64 / peak_kib as f64));
    curve(canvas, "memory", heights, at);
}

/// CPUs, as they were busy on average.
pub(super) fn cpu(canvas: &mut Canvas, grid: &Grid, peak: f64, at: (Span, Area)) {
    let heights = grid.cells().filter_map(|(span, cell)| Some((span, cell.cpus()? / peak)));
    curve(canvas, "cpu", heights, at);
}

fn curve(
    canvas: &mut Canvas,
    class: &str,
    heights: impl Iterator<Item = (Span, f64)>,
    (axis, chart): (Span, Area),
) {
    canvas.rect(chart, "track", "");
    let mut commands = String::new();
    for (span, height) in heights {
        let (x, end_x) = (place(axis, span.from_ms), place(axis, span.to_ms));
        let y = chart.bottom() - chart.height * height;
        if commands.is_empty() {
            // Nothing to fail: a string grows.
            let _written = write!(commands, "M{x:.1} {:.1}", chart.bottom());
        }
        let _written = write!(commands, "L{x:.1} {y:.1}");
        if end_x - x > SEEN {
            let _written = write!(commands, "H{end_x:.1}");
        }
    }
    if !commands.is_empty() {
        let _written = write!(commands, "V{:.1}Z", chart.bottom());
        canvas.path(class, &commands);
    }
}

/// Marks as triangles that point at their time, one for all of a kind that are at one place.
pub(super) fn marks(canvas: &mut Canvas, marks: &[(u64, MarkKind)], (axis, chart): (Span, Area)) {
    // The first kind is drawn last, and so is on top.
    for kind in MarkKind::ALL.into_iter().rev() {
        let mut commands = String::new();
        let mut last_x = f64::NEG_INFINITY;
        for (ms, _) in marks.iter().filter(|(_, of)| *of == kind) {
            let x = place(axis, *ms);
            if x - last_x < SEEN {
                continue;
            }
            last_x = x;
            let (top, bottom) = (chart.y + 2.0, chart.bottom() - 2.0);
            let (left, right) = (x - 4.5, x + 4.5);
            let _written = write!(commands, "M{x:.1} {top:.1}L{right:.1} {bottom:.1}H{left:.1}Z");
        }
        canvas.path(style::mark(kind), &commands);
    }
}
