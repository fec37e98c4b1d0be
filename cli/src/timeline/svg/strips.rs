//! Draws the strips of states and health, the curves and the marks.

use std::fmt::Write;

use super::chart::place;
use super::style;
use crate::timeline::canvas::{Area, Canvas, rectangle_path};
use crate::timeline::grid::{Activity, Cell, Grid, Health, MarkKind};
use crate::timeline::model::Timeline;
use crate::timeline::span::Span;

/// Least width of an unhealthy time and least distance of marks, in pixels.
const MIN_VISIBLE: f64 = 2.0;

/// The order of the states in a strip, from its bottom to its top. Heights are easiest to compare
/// at the bottom, so the busy time, which matters most, is there.
const STACK: [Activity; 5] =
    [Activity::Busy, Activity::Compacting, Activity::Booting, Activity::Stopping, Activity::Ready];

/// Draws the states. In each cell they are stacked, each with its share of the cell as its height.
pub(super) fn activity(canvas: &mut Canvas, timeline: &Timeline, axis: Span, chart: Area) {
    canvas.rect(chart, "track", "");
    // One path for each state keeps the document small: a rectangle for each cell would be an
    // element of its own.
    let mut paths = STACK.map(|of| (of, MergedAreas::default()));
    for (span, cell) in timeline.grid.cells() {
        let sum: f64 = cell.activity_ms.iter().sum();
        let mut bottom = chart.bottom();
        for (of, areas) in &mut paths {
            if sum <= 0.0 || cell.activity(*of) <= 0.0 {
                continue;
            }
            let height = chart.height * cell.activity(*of) / sum;
            bottom -= height;
            areas.add(part(axis, span, Area { y: bottom, height, ..chart }));
        }
    }
    for (of, areas) in paths {
        canvas.path(style::activity(of), &areas.finish());
    }
}

/// Draws the health. Each cell has the colour of the worst health in it.
pub(super) fn health(canvas: &mut Canvas, timeline: &Timeline, axis: Span, chart: Area) {
    canvas.rect(chart, "track", "");
    let worst = |cell: &Cell| {
        let order = [Health::Unhealthy, Health::Healthy, Health::Starting];
        order.into_iter().find(|of| cell.health(*of) > 0.0)
    };
    for of in [Health::Starting, Health::Healthy, Health::Unhealthy] {
        let mut areas = MergedAreas::default();
        for (span, _) in timeline.grid.cells().filter(|(_, cell)| worst(cell) == Some(of)) {
            let mut area = part(axis, span, chart);
            // A short unhealthy time must not disappear in a long run.
            if of == Health::Unhealthy {
                area.width = area.width.max(MIN_VISIBLE);
                area.x = area.x.min(chart.right() - area.width);
            }
            areas.add(area);
        }
        canvas.path(style::health(of), &areas.finish());
    }
}

/// Returns the part of a chart that belongs to a cell.
fn part(axis: Span, span: Span, chart: Area) -> Area {
    let x = place(axis, span.from_ms);
    Area { x, width: place(axis, span.to_ms) - x, ..chart }
}

/// Areas of one colour. Neighbours of the same height are merged, which keeps the document small.
#[derive(Debug, Default)]
struct MergedAreas {
    last: Option<Area>,
    commands: String,
}

impl MergedAreas {
    fn add(&mut self, area: Area) {
        // Coordinates are written with one decimal, so a smaller difference is invisible.
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
                    self.commands.push_str(&rectangle_path(done));
                }
            }
        }
    }

    /// Returns the commands of the path of all areas.
    fn finish(mut self) -> String {
        if let Some(last) = self.last {
            self.commands.push_str(&rectangle_path(last));
        }
        self.commands
    }
}

/// Draws the memory as a curve from sample to sample.
pub(super) fn memory(canvas: &mut Canvas, grid: &Grid, peak_kib: u64, at: (Span, Area)) {
    let seen = grid.cells().filter(|(_, cell)| cell.memory_kib > 0);
    let heights = seen.map(|(span, cell)| (span, cell.memory_kib as f64 / peak_kib as f64));
    curve(canvas, "memory", heights, at);
}

/// Draws the average number of busy CPUs as a curve.
pub(super) fn cpu(canvas: &mut Canvas, grid: &Grid, peak: f64, at: (Span, Area)) {
    let heights = grid.cells().filter_map(|(span, cell)| Some((span, cell.cpus()? / peak)));
    curve(canvas, "cpu", heights, at);
}

/// Draws a filled curve. Heights are from 0 to 1.
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
            // Writing to a string cannot fail.
            let _written = write!(commands, "M{x:.1} {:.1}", chart.bottom());
        }
        let _written = write!(commands, "L{x:.1} {y:.1}");
        // A cell wider than two pixels is a step. Narrower ones are points of a line.
        if end_x - x > MIN_VISIBLE {
            let _written = write!(commands, "H{end_x:.1}");
        }
    }
    if !commands.is_empty() {
        let _written = write!(commands, "V{:.1}Z", chart.bottom());
        canvas.path(class, &commands);
    }
}

/// Draws marks as triangles whose tips are at their times. Marks of one kind that are closer than
/// [`MIN_VISIBLE`] share a triangle.
pub(super) fn marks(canvas: &mut Canvas, marks: &[(u64, MarkKind)], (axis, chart): (Span, Area)) {
    // SVG paints in document order. The first kind, errors, is drawn last and thus on top.
    for kind in MarkKind::ALL.into_iter().rev() {
        let mut commands = String::new();
        let mut last_x = f64::NEG_INFINITY;
        for (ms, _) in marks.iter().filter(|(_, of)| *of == kind) {
            let x = place(axis, *ms);
            if x - last_x < MIN_VISIBLE {
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
