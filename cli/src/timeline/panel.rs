//! The panels of a page, each with an axis of its own.
//!
//! A boot of a few seconds is less than one pixel of a run of days, and so is a stop. Therefore
//! boot and stop have panels of their own, unless the run is short enough to show all on one axis.
//!
//! ```text
//! short life:  Boot and life ├─config─┼──rootfs──┼─kernel─┼──ready──┼─stop─┤
//! long life:   Boot ├─config─┼──rootfs──┼─kernel─┤
//!              Life ├─────────────────ready, busy, unhealthy, …────────────┤
//!              Stop ├─stopping──┼─shutting down─┤
//! ```

use super::grid::{Activity, Health, MarkKind};
use super::model::{Bar, BarKind, RunOutcome, Timeline};
use super::span::{self, Span};

/// A boot stays on the axis of the run if it takes at least one part in this many of the run. Its
/// five phases then share more than a hundred pixels.
const READABLE_BOOT: u64 = 6;

/// The same for a stop. It has at most three steps, so it needs less room.
const READABLE_STOP: u64 = 8;

/// Most rows for layers, so that a panel fits on a screen.
const MAX_LAYER_ROWS: usize = 16;

/// Rows on one axis.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) span: Span,
    /// The time from which this panel counts. `None`: from the start of the shim.
    pub(crate) zero_ms: Option<u64>,
    pub(crate) rows: Vec<Row>,
    /// When the box was ready, if this panel shows it.
    pub(crate) ready_ms: Option<u64>,
}

/// A row of a panel.
#[derive(Debug)]
pub(crate) enum Row {
    /// A bar, and the duration to which its share refers.
    Bar { bar: Bar, whole_ms: u64 },
    /// The states, from the grid.
    Activity,
    /// The health, from the grid.
    Health,
    /// Memory, from the grid, with its peak.
    Memory { peak_kib: u64 },
    /// Busy CPUs, from the grid, with their peak.
    Cpu { peak: f64 },
    /// Marks with their times.
    Marks(Vec<(u64, MarkKind)>),
}

impl Panel {
    fn new(title: &str, span: Span, rows: Vec<Row>, ready_ms: Option<u64>) -> Self {
        Self { title: title.to_owned(), span, zero_ms: None, rows, ready_ms }
    }

    /// Returns the times and labels of the ticks of the axis: at most `most` + 1.
    pub(crate) fn ticks(&self, most: u64) -> Vec<(u64, String)> {
        match self.zero_ms {
            None => self.span.ticks(most).into_iter().map(|ms| (ms, span::tick(ms))).collect(),
            Some(zero_ms) => {
                let ticks = Span::new(0, self.span.to_ms - zero_ms).ticks(most);
                ticks.into_iter().map(|ms| (zero_ms + ms, format!("+{}", span::tick(ms)))).collect()
            }
        }
    }

    /// Formats a time as this panel counts it.
    pub(crate) fn start(&self, ms: u64) -> String {
        match self.zero_ms {
            None => span::duration(ms),
            Some(zero_ms) => format!("+{}", span::duration(ms.saturating_sub(zero_ms))),
        }
    }
}

/// Returns the panels of a timeline, in the order in which they are shown.
pub(crate) fn panels(timeline: &Timeline) -> Vec<Panel> {
    let life = timeline.life;
    let boot = boot_rows(timeline);
    let has_boot = !boot.is_empty();
    let is_short = timeline.boot_end_ms.saturating_mul(READABLE_BOOT) >= life.to_ms;
    let stop = stop_span(timeline);
    let ready_ms = timeline.is_ready.then_some(timeline.boot_end_ms);
    // The boot is measured from 0, so it fits on the axis of the run only if that begins at 0.
    if has_boot && is_short && life.from_ms == 0 {
        let rows = boot.into_iter().chain(life_rows(timeline, true)).collect();
        let title = if timeline.is_ready { "Boot and life" } else { "Boot" };
        return vec![Panel::new(title, life, rows, ready_ms)];
    }
    let mut panels = Vec::new();
    if has_boot {
        // Some room after the boot makes its end visible.
        let end_ms = timeline.boot_end_ms.saturating_add(timeline.boot_end_ms / 16);
        let span = Span::new(0, end_ms);
        let marks = marks_in(timeline.marks.iter().copied(), span);
        let rows = boot.into_iter().chain(marks).collect();
        panels.push(Panel::new("Boot", span, rows, ready_ms));
    }
    let has_own_stop =
        stop.ms().saturating_mul(READABLE_STOP) < life.ms() && !timeline.stop.is_empty();
    let rows = life_rows(timeline, !has_own_stop);
    if !rows.is_empty() {
        panels.push(Panel::new("Life", life, rows, None));
    }
    if has_own_stop {
        let rows = bar_rows(&timeline.stop, stop.ms()).collect();
        let title = format!("Stop, after {}", span::duration(stop.from_ms));
        let zero_ms = Some(stop.from_ms);
        panels.push(Panel { zero_ms, ..Panel::new(&title, stop, rows, None) });
    }
    panels
}

fn bar_rows(bars: &[Bar], whole_ms: u64) -> impl Iterator<Item = Row> {
    bars.iter().map(move |bar| Row::Bar { bar: bar.clone(), whole_ms })
}

/// Returns the time of the stop. It is empty and at the end of the run if there is no stop.
fn stop_span(timeline: &Timeline) -> Span {
    let from_ms = timeline.stop.first().map_or(timeline.life.to_ms, |bar| bar.span.from_ms);
    Span::new(from_ms, timeline.life.to_ms)
}

/// Returns the rows of the phases, with the layers below the phase `rootfs`.
fn boot_rows(timeline: &Timeline) -> Vec<Row> {
    let (layers, phases): (Vec<&Bar>, Vec<&Bar>) =
        timeline.boot.iter().partition(|bar| bar.kind == BarKind::Layer);
    let mut shown = Vec::new();
    for phase in phases {
        shown.push(phase.clone());
        if phase.kind == BarKind::Rootfs {
            shown.append(&mut layer_bars(&layers));
        }
    }
    bar_rows(&shown, timeline.boot_end_ms).collect()
}

/// Returns at most [`MAX_LAYER_ROWS`] bars: the layers that took longest, and one bar for the
/// others.
fn layer_bars(layers: &[&Bar]) -> Vec<Bar> {
    if layers.len() <= MAX_LAYER_ROWS {
        return layers.iter().map(|&bar| bar.clone()).collect();
    }
    // The longest layers are chosen by their index, so that they can be put back in their order.
    let mut by_length: Vec<usize> = (0..layers.len()).collect();
    by_length.sort_by_key(|&index| layers.get(index).map(|bar| u64::MAX - bar.span.ms()));
    let others = by_length.split_off(MAX_LAYER_ROWS - 1);
    by_length.sort_unstable();
    let chosen = |indices: Vec<usize>| indices.into_iter().filter_map(|index| layers.get(index));
    let mut bars: Vec<Bar> = chosen(by_length).map(|&bar| bar.clone()).collect();
    let others: Vec<&&Bar> = chosen(others).collect();
    let took_ms = others.iter().map(|bar| bar.span.ms()).fold(0, u64::saturating_add);
    let from_ms = others.iter().map(|bar| bar.span.from_ms).min().unwrap_or(0);
    let to_ms = others.iter().map(|bar| bar.span.to_ms).max().unwrap_or(0);
    bars.push(Bar {
        kind: BarKind::Layer,
        label: format!("{} others", others.len()),
        detail: String::new(),
        span: Span::new(from_ms, to_ms),
        took_ms,
        is_finished: others.iter().all(|bar| bar.is_finished),
    });
    bars
}

/// Returns the rows for the time after the boot, with the steps of the stop if `with_stop`.
fn life_rows(timeline: &Timeline, with_stop: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    let totals = &timeline.totals;
    let mut running = Activity::ALL.into_iter().filter(|of| of.is_running());
    if running.any(|of| totals.activity(of) > 0) {
        rows.push(Row::Activity);
    }
    if [Health::Healthy, Health::Unhealthy].iter().any(|of| totals.health(*of) > 0) {
        rows.push(Row::Health);
    }
    if with_stop {
        rows.extend(bar_rows(&timeline.stop, stop_span(timeline).ms()));
    }
    // The kept marks are exact, but there may be more than were kept. Then the cells, which count
    // all of them, give the times.
    let counted = timeline.grid.cells().map(|(_, cell)| cell.marks.iter().sum::<u64>());
    if counted.sum::<u64>() > timeline.marks.len() as u64 {
        let cells = timeline.grid.cells().flat_map(|(span, cell)| {
            let seen = move |kind: &MarkKind| cell.mark(*kind) > 0;
            MarkKind::ALL.into_iter().filter(seen).map(move |kind| (span.from_ms, kind))
        });
        rows.extend(marks_in(cells, timeline.life));
    } else {
        rows.extend(marks_in(timeline.marks.iter().copied(), timeline.life));
    }
    let peak_kib = timeline.grid.cells().map(|(_, cell)| cell.memory_kib).max().unwrap_or(0);
    if peak_kib > 0 {
        rows.push(Row::Memory { peak_kib });
    }
    let peak = timeline.grid.cells().filter_map(|(_, cell)| cell.cpus()).fold(0.0, f64::max);
    if peak > 0.0 {
        rows.push(Row::Cpu { peak });
    }
    rows
}

fn marks_in(marks: impl Iterator<Item = (u64, MarkKind)>, span: Span) -> Option<Row> {
    let marks: Vec<_> = marks.filter(|(ms, _)| (span.from_ms..=span.to_ms).contains(ms)).collect();
    (!marks.is_empty()).then_some(Row::Marks(marks))
}

/// Returns the line below the name of the box: image, shim, start, and number of the run.
pub(crate) fn about(timeline: &Timeline) -> String {
    let image = timeline.image.as_ref().map(|image| format!("image {image}"));
    let version = timeline.version.as_ref().map(|version| format!("shim {version}"));
    let began = if timeline.life.from_ms == 0 { "started" } else { "first event" };
    let started =
        (!timeline.started.as_str().is_empty()).then(|| format!("{began} {}", timeline.started));
    let run = timeline.run;
    let run = (run.of > 1).then(|| format!("run {} of {} in the file", run.number, run.of));
    [image, version, started, run].into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// Summarises the run in one line.
pub(crate) fn summary(timeline: &Timeline) -> String {
    let life_ms = timeline.life.ms();
    let is_whole = timeline.life.from_ms == 0;
    let mut parts = Vec::new();
    if timeline.is_ready {
        parts.push(format!("ready after {}", span::duration(timeline.boot_end_ms)));
    // A file without its beginning may have lost the events that reported the box ready.
    } else if is_whole && timeline.ending != RunOutcome::Done {
        parts.push("never ready".to_owned());
    }
    let lived = if is_whole { "lived" } else { "seen for" };
    parts.push(format!("{lived} {}", span::duration(life_ms)));
    let busy_ms = timeline.totals.activity(Activity::Busy);
    if busy_ms > 0 {
        parts.push(format!("busy {} ({})", span::duration(busy_ms), span::share(busy_ms, life_ms)));
    }
    let unhealthy_ms = timeline.totals.health(Health::Unhealthy);
    if unhealthy_ms > 0 {
        parts.push(format!("unhealthy {}", span::duration(unhealthy_ms)));
    }
    parts.push(timeline.ending.text());
    parts.join(" · ")
}
