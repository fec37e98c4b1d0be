//! Draws a timeline as text: a waterfall of block characters, as wide as the terminal.

use super::grid::{Activity, Cell, Health, MarkKind};
use super::model::{Bar, BarKind, Note, Timeline, Weight};
use super::panel::{self, Panel, Row};
use super::plain;
use super::span::{self, Span};

/// Width if the environment variable `COLUMNS` is absent or invalid.
pub(crate) const DEFAULT_COLUMNS: usize = 100;

/// Bounds of the width. The smaller one leaves some columns for the bars beside the numbers. Lines
/// beyond the larger one are hard to read.
const MIN_COLUMNS: usize = 70;
const MAX_COLUMNS: usize = 400;

/// Widths of the columns of names, starts, durations and shares, including the spaces after them.
const NAME_COLUMNS: usize = 16;
const START_COLUMNS: usize = 14;
const DURATION_COLUMNS: usize = 13;
const SHARE_COLUMNS: usize = 9;

/// Width of all columns before the bars.
const LEFT_COLUMNS: usize = NAME_COLUMNS + START_COLUMNS + DURATION_COLUMNS + SHARE_COLUMNS;

/// Characters filled by 1 to 8 eighths from the left.
const FROM_LEFT: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];

/// Characters filled by 1 to 8 eighths from below.
const FROM_BELOW: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Returns `timeline` as text of at most `columns` columns, within the bounds above.
pub(crate) fn render(timeline: &Timeline, columns: usize) -> String {
    let columns = columns.clamp(MIN_COLUMNS, MAX_COLUMNS);
    let mut page = Page { lines: Vec::new(), width: columns - LEFT_COLUMNS };
    page.wrapped(&format!("box {}", name(timeline)), columns);
    page.wrapped(&panel::about(timeline), columns);
    page.wrapped(&panel::summary(timeline), columns);
    for panel in panel::panels(timeline) {
        page.panel(timeline, &panel);
    }
    if !timeline.notes.is_empty() {
        page.lines.push(String::new());
        page.lines.push("What happened".to_owned());
        timeline.notes.iter().for_each(|note| page.note(note, columns));
    }
    let mut text = String::new();
    for line in page.lines {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns the id of the box, or a placeholder: the id is in the config, which may be invalid.
pub(crate) fn name(timeline: &Timeline) -> &str {
    match timeline.box_id.as_str() {
        "" => "(without a name)",
        id => id,
    }
}

#[derive(Debug)]
struct Page {
    lines: Vec<String>,
    /// Columns of the bars.
    width: usize,
}

impl Page {
    fn wrapped(&mut self, text: &str, columns: usize) {
        if !text.is_empty() {
            self.lines.append(&mut plain::wrap(text, columns));
        }
    }

    fn panel(&mut self, timeline: &Timeline, panel: &Panel) {
        self.lines.push(String::new());
        let axis = axis(panel, self.width);
        // A title that does not fit into the column of names has a line of its own.
        let title = if panel.title.len() < NAME_COLUMNS {
            panel.title.as_str()
        } else {
            self.lines.push(panel.title.clone());
            ""
        };
        self.row(title, ["start", "duration", "share"], &axis);
        for row in &panel.rows {
            match row {
                Row::Bar { bar, whole_ms } => self.bar(bar, *whole_ms, panel),
                Row::Activity => self.activities(timeline, panel.span),
                Row::Health => self.healths(timeline, panel.span),
                Row::Memory { peak_kib } => {
                    // A sample of memory is in one cell only, so it is carried on to the next one.
                    let cells = timeline.grid.resample(panel.span, self.width);
                    let known = carried(
                        cells
                            .iter()
                            .map(|cell| (cell.memory_kib > 0).then_some(cell.memory_kib as f64)),
                    );
                    let curve = levels(known.map(|kib| kib / *peak_kib as f64));
                    let peak = span::bytes(peak_kib.saturating_mul(1024));
                    self.row("memory", ["", &peak, "at most"], &curve);
                }
                Row::Cpu { peak } => {
                    let cells = timeline.grid.resample(panel.span, self.width);
                    // Each sample of CPU time covers all cells since the previous one, so a cell
                    // without a value has none to carry on.
                    let known = cells.iter().map(|cell| cell.cpus().unwrap_or(0.0));
                    let curve = levels(known.map(|cpus| cpus / peak));
                    self.row("cpu", ["", &span::percent(*peak), "at most"], &curve);
                }
                Row::Marks(marks) => self.marks(marks, panel.span),
            }
        }
    }

    fn row(&mut self, name: &str, [start, duration, share]: [&str; 3], drawn: &str) {
        let name = format!("{name:<NAME_COLUMNS$}");
        let (start, duration) = (right(start, START_COLUMNS), right(duration, DURATION_COLUMNS));
        self.lines.push(format!("{name}{start}{duration}{}{drawn}", right(share, SHARE_COLUMNS)));
    }

    fn bar(&mut self, bar: &Bar, whole_ms: u64, panel: &Panel) {
        let name = match bar.kind {
            BarKind::Layer => format!("  {}", bar.label),
            _ => bar.label.clone(),
        };
        let start = panel.start(bar.span.from_ms);
        let duration = span::duration(bar.took_ms);
        let share = span::share(bar.took_ms, whole_ms);
        let mut drawn = blocks(bar.span, panel.span, self.width);
        if !bar.is_finished {
            // The ellipsis follows the bar, or replaces its last column if there is no room.
            let kept = drawn.chars().take(self.width - 1);
            drawn = kept.chain(['…']).collect();
        }
        let drawn = beside(drawn, &bar.detail, self.width);
        self.row(&name, [&start, &duration, &share], &drawn);
    }

    fn activities(&mut self, timeline: &Timeline, axis: Span) {
        let cells = timeline.grid.resample(axis, self.width);
        let sum = |cell: &Cell| cell.activity_ms.iter().sum::<f64>();
        // Booting and stopping are left out, because they are bars.
        for of in Activity::ALL.into_iter().filter(|of| of.is_running()) {
            let drawn = levels(cells.iter().map(|cell| part(cell.activity(of), sum(cell))));
            self.total(of.name(), timeline.totals.activity(of), axis, &drawn);
        }
    }

    fn healths(&mut self, timeline: &Timeline, axis: Span) {
        let cells = timeline.grid.resample(axis, self.width);
        let sum = |cell: &Cell| cell.health_ms.iter().sum::<f64>();
        for of in [Health::Healthy, Health::Unhealthy] {
            let drawn = levels(cells.iter().map(|cell| part(cell.health(of), sum(cell))));
            self.total(of.name(), timeline.totals.health(of), axis, &drawn);
        }
    }

    fn total(&mut self, name: &str, total_ms: u64, axis: Span, drawn: &str) {
        if total_ms > 0 {
            let share = span::share(total_ms, axis.ms());
            self.row(name, ["", &span::duration(total_ms), &share], drawn);
        }
    }

    fn marks(&mut self, marks: &[(u64, MarkKind)], axis: Span) {
        for kind in MarkKind::ALL {
            let mut drawn = vec![' '; self.width];
            let mut first_ms = None;
            for (ms, _) in marks.iter().filter(|(_, of)| *of == kind) {
                first_ms.get_or_insert(*ms);
                let at = axis.place(*ms, self.width).min(self.width - 1);
                if let Some(column) = drawn.get_mut(at) {
                    *column = '▲';
                }
            }
            if let Some(first_ms) = first_ms {
                let drawn: String = drawn.into_iter().collect();
                self.row(kind.name(), [&span::duration(first_ms), "", ""], &drawn);
            }
        }
    }

    fn note(&mut self, note: &Note, columns: usize) {
        let sign = match note.weight {
            Weight::Bad => '!',
            Weight::Good => '+',
            Weight::Neutral => '-',
        };
        let at = right(&span::duration(note.at_ms), START_COLUMNS);
        let head = format!("{sign} {at}{:<24}  ", note.time);
        let indent = plain::columns(&head);
        for (index, line) in plain::wrap(&note.text, columns - indent).iter().enumerate() {
            let before = if index == 0 { head.clone() } else { " ".repeat(indent) };
            self.lines.push(format!("{before}{line}"));
        }
    }
}

/// Aligns a text to the right of its column, with two spaces after it.
fn right(text: &str, width: usize) -> String {
    format!("{text:>width$}  ", width = width - 2)
}

/// Returns a part as a fraction of its whole. A cell without data has a whole of 0.
fn part(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Replaces each missing value by the last known one, or by 0.
fn carried(values: impl Iterator<Item = Option<f64>>) -> impl Iterator<Item = f64> {
    values.scan(0.0, |last, value| {
        *last = value.unwrap_or(*last);
        Some(*last)
    })
}

/// Draws heights from 0 to 1. A height above 0 is visible, however small it is.
fn levels(heights: impl Iterator<Item = f64>) -> String {
    heights
        .map(|height| {
            // Rounds to the nearest eighth, except that the lowest level begins above 0.
            let filled = |level: &usize| height <= (*level as f64 + 1.5) / 8.0;
            let level = (0..FROM_BELOW.len()).find(filled).unwrap_or(FROM_BELOW.len() - 1);
            // A share is a quotient of sums of fractions, so 0 may come with a rounding error.
            if height > 1e-9 { FROM_BELOW[level] } else { ' ' }
        })
        .collect()
}

/// Draws a bar whose end has a resolution of an eighth of a column. A span of 0 ms takes an eighth.
fn blocks(span: Span, axis: Span, width: usize) -> String {
    let from = axis.place(span.from_ms, width * 8).min(width * 8 - 1);
    let to = axis.place(span.to_ms, width * 8).max(from + 1);
    let (first, last) = (from / 8, (to - 1) / 8);
    let mut drawn = " ".repeat(first);
    for column in first..=last {
        let until = (to - column * 8).min(8);
        // The start has a resolution of half a column: Unicode has a right half block and no blocks
        // for other parts on the right.
        let is_late = column == first && from % 8 >= 4 && until == 8;
        drawn.push(if is_late { '▐' } else { FROM_LEFT[until - 1] });
    }
    drawn
}

/// Adds a text to the right of a bar, or to its left, or not at all if neither has room.
fn beside(mut bar: String, text: &str, width: usize) -> String {
    let needed = plain::columns(text) + 1;
    let before = bar.chars().take_while(|column| *column == ' ').count();
    if text.is_empty() {
        return bar;
    }
    if plain::columns(&bar) + needed <= width {
        bar.push_str(&format!(" {text}"));
    } else if before > needed {
        bar.replace_range(before - needed..before, &format!("{text} "));
    }
    bar
}

/// Draws the ticks of an axis with their times. Leaves out each tick that has no room.
fn axis(panel: &Panel, width: usize) -> String {
    let mut drawn = String::new();
    let mut used = 0;
    for (ms, label) in panel.ticks(6) {
        let at = panel.span.place(ms, width);
        let label = format!("|{label}");
        // Labels are ASCII, so their length in bytes is their width.
        if (at > used || used == 0) && at + label.len() <= width {
            drawn.push_str(&" ".repeat(at - used));
            drawn.push_str(&label);
            used = at + label.len();
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_bars_at_their_times() {
        let axis = Span::new(0, 80);
        let cases = [
            ((0, 80), "██████████"),
            ((0, 0), "▏"),
            ((0, 4), "▌"),
            ((8, 20), " █▌"),
            ((12, 24), " ▐█"),
            ((80, 80), "         ▐"),
        ];
        for ((from_ms, to_ms), drawn) in cases {
            assert_eq!(blocks(Span::new(from_ms, to_ms), axis, 10), drawn, "{from_ms} to {to_ms}");
        }
    }

    #[test]
    fn draws_small_heights_above_zero() {
        assert_eq!(levels([0.0, 0.001, 0.5, 1.0, 7.0].into_iter()), " ▁▄██");
    }

    #[test]
    fn labels_of_ticks_do_not_overlap() {
        let panel = |from_ms, zero_ms| Panel {
            title: String::new(),
            span: Span::new(from_ms, from_ms + 4_000),
            zero_ms,
            rows: Vec::new(),
            ready_ms: None,
        };
        assert_eq!(axis(&panel(0, None), 40), "|0        |1 s      |2 s      |3 s");
        assert_eq!(axis(&panel(7, Some(7)), 40), "|+0       |+1 s     |+2 s     |+3 s");
    }
}
