//! A timeline as text: a waterfall of block characters, as wide as the terminal.

use super::grid::{Activity, Cell, Health, MarkKind};
use super::model::{Bar, BarKind, Note, Timeline, Weight};
use super::panel::{self, Panel, Row};
use super::plain;
use super::span::{self, Span};

/// Width when the environment does not say it.
pub(crate) const DEFAULT_COLUMNS: usize = 100;

/// Widths that make sense: numbers and some bar, and what lines of text are still read at.
const MIN_COLUMNS: usize = 70;
const MAX_COLUMNS: usize = 400;

/// Columns of names, starts, durations and shares, with the spaces after them.
const NAME: usize = 16;
const START: usize = 14;
const DURATION: usize = 13;
const SHARE: usize = 9;

/// Columns before the bars.
const LEFT: usize = NAME + START + DURATION + SHARE;

/// A column that is filled from the left by 1 to 8 eighths.
const FROM_LEFT: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];

/// A column that is filled from below by 1 to 8 eighths.
const FROM_BELOW: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws `timeline` in `columns` columns.
pub(crate) fn render(timeline: &Timeline, columns: usize) -> String {
    let columns = columns.clamp(MIN_COLUMNS, MAX_COLUMNS);
    let mut page = Page { lines: Vec::new(), width: columns - LEFT };
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

/// The box, if it has a name: a config that could not be read has none.
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
        let title = if panel.title.len() < NAME {
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
                    let known = cells.iter().map(|cell| cell.cpus().unwrap_or(0.0));
                    let curve = levels(known.map(|cpus| cpus / peak));
                    self.row("cpu", ["", &span::percent(*peak), "at most"], &curve);
                }
                Row::Marks(marks) => self.marks(marks, panel.span),
            }
        }
    }

    fn row(&mut self, name: &str, [start, duration, share]: [&str; 3], drawn: &str) {
        let name = format!("{name:<NAME$}");
        let (start, duration) = (right(start, START), right(duration, DURATION));
        self.lines.push(format!("{name}{start}{duration}{}{drawn}", right(share, SHARE)));
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
            // In the last column if there is none after it.
            let kept = drawn.chars().take(self.width - 1);
            drawn = kept.chain(['…']).collect();
        }
        let drawn = beside(drawn, &bar.detail, self.width);
        self.row(&name, [&start, &duration, &share], &drawn);
    }

    fn activities(&mut self, timeline: &Timeline, axis: Span) {
        let cells = timeline.grid.resample(axis, self.width);
        let sum = |cell: &Cell| cell.activity_ms.iter().sum::<f64>();
        // Boot and stop have bars.
        for of in Activity::ALL.into_iter().filter(|of| of.is_lived()) {
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
        let at = right(&span::duration(note.at_ms), START);
        let head = format!("{sign} {at}{:<24}  ", note.time);
        let indent = plain::columns(&head);
        for (index, line) in plain::wrap(&note.text, columns - indent).iter().enumerate() {
            let before = if index == 0 { head.clone() } else { " ".repeat(indent) };
            self.lines.push(format!("{before}{line}"));
        }
    }
}

/// A number at the right of its column, with two spaces after it.
fn right(text: &str, width: usize) -> String {
    format!("{text:>width$}  ", width = width - 2)
}

fn part(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// The last value that was known, where none is.
fn carried(values: impl Iterator<Item = Option<f64>>) -> impl Iterator<Item = f64> {
    values.scan(0.0, |last, value| {
        *last = value.unwrap_or(*last);
        Some(*last)
    })
}

/// Columns of a height from 0 to 1. What is not nothing is seen.
fn levels(heights: impl Iterator<Item = f64>) -> String {
    heights
        .map(|height| {
            let filled = |level: &usize| height <= (*level as f64 + 1.5) / 8.0;
            let level = (0..FROM_BELOW.len()).find(filled).unwrap_or(FROM_BELOW.len() - 1);
            // A share is a quotient of sums.
            if height > 1e-9 { FROM_BELOW[level] } else { ' ' }
        })
        .collect()
}

/// A bar with a resolution of an eighth of a column at its end. One that takes no time is seen, too.
fn blocks(span: Span, axis: Span, width: usize) -> String {
    let from = axis.place(span.from_ms, width * 8).min(width * 8 - 1);
    let to = axis.place(span.to_ms, width * 8).max(from + 1);
    let (first, last) = (from / 8, (to - 1) / 8);
    let mut drawn = " ".repeat(first);
    for column in first..=last {
        let until = (to - column * 8).min(8);
        let is_late = column == first && from % 8 >= 4 && until == 8;
        drawn.push(if is_late { '▐' } else { FROM_LEFT[until - 1] });
    }
    drawn
}

/// A bar with a text right of it, else left of it, where there is room.
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

/// Ticks with their times, as many as have room.
fn axis(panel: &Panel, width: usize) -> String {
    let mut drawn = String::new();
    let mut used = 0;
    for (ms, label) in panel.ticks(6) {
        let at = panel.span.place(ms, width);
        let label = format!("|{label}");
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
    fn bars_are_where_their_time_is() {
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
    fn heights_are_seen() {
        assert_eq!(levels([0.0, 0.001, 0.5, 1.0, 7.0].into_iter()), " ▁▄██");
    }

    #[test]
    fn ticks_have_room() {
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
