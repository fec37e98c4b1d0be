//! Draws a timeline as a picture: self-contained SVG without scripts, fonts or links.

mod chart;
mod legend;
mod strips;
mod style;

use self::chart::{CHART_WIDTH, CHART_X, MARGIN, WIDTH, place};
use super::canvas::{Area, Canvas};
use super::model::{Bar, BarKind, Note, Timeline, Weight};
use super::panel::{self, Panel, Row};
use super::plain;
use super::span::{self, Span};
use super::text;

/// Right edges of the columns of durations and shares, in pixels. Names are left of them.
const DURATION_X: f64 = 212.0;
const SHARE_X: f64 = 268.0;

/// Heights of rows, and of their bars and curves, in pixels.
const ROW_HEIGHT: f64 = 24.0;
const BAR_HEIGHT: f64 = 16.0;
const LAYER_ROW_HEIGHT: f64 = 19.0;
const LAYER_BAR_HEIGHT: f64 = 13.0;
const CURVE_ROW_HEIGHT: f64 = 48.0;
const CURVE_HEIGHT: f64 = 40.0;

/// Width of the hatched end of an unfinished bar, in pixels.
const HATCH_WIDTH: f64 = 44.0;

/// Left edge of the texts of notes, and the height of their lines, in pixels.
const NOTE_X: f64 = CHART_X;
const NOTE_LINE_HEIGHT: f64 = 17.0;

/// Width of a line of a note, in tenths of a pixel: the width of the charts.
const NOTE_WIDTH_TENTHS: usize = 8_080;

/// Least width of a bar, in pixels, so that a phase of 0 ms is visible.
const MIN_BAR_WIDTH: f64 = 1.5;

/// Returns `timeline` as an SVG document.
pub(crate) fn render(timeline: &Timeline) -> String {
    let mut picture = Picture { canvas: Canvas::default(), y: MARGIN };
    picture.head(timeline);
    for panel in panel::panels(timeline) {
        picture.panel(timeline, &panel);
    }
    picture.notes(&timeline.notes);
    let title = format!("Timeline of box {}", text::name(timeline));
    picture.canvas.finish((WIDTH, picture.y + MARGIN), &title, style::STYLE)
}

#[derive(Debug)]
struct Picture {
    canvas: Canvas,
    /// Top edge of the next element, in pixels.
    y: f64,
}

/// Estimates the width of a text in the small font, in pixels.
fn width(text: &str) -> f64 {
    text.chars().map(tenths).sum::<usize>() as f64 / 10.0
}

/// Estimates the width of a character in tenths of a pixel.
///
/// The font of the viewer is unknown. The numbers fit a wide sans-serif font at 11 pixels. A
/// narrower font leaves a gap, whereas a wider one would overlap the next element.
fn tenths(character: char) -> usize {
    match character {
        'W' | '@' | '%' | 'M' | 'm' | 'w' | '…' | '\u{fffd}' => 112,
        'A'..='Z' | '<' | '>' | '=' | '+' | '#' | '~' | '&' | '^' | '|' => 92,
        'i' | 'j' | 'l' | ' ' | '.' | ',' | ':' | ';' | '\'' | '!' => 36,
        'f' | 'r' | 't' | '(' | ')' | '[' | ']' | '/' | '-' => 46,
        'c' | 's' | 'x' | 'z' => 62,
        _ => 70 * plain::char_columns(character),
    }
}

impl Picture {
    /// Draws the name of the box and the two lines about it.
    fn head(&mut self, timeline: &Timeline) {
        self.canvas.text(MARGIN, self.y + 16.0, "title", text::name(timeline));
        self.canvas.text(MARGIN, self.y + 38.0, "quiet", &panel::about(timeline));
        let class = if timeline.ending.is_bad() { "summary bad" } else { "summary" };
        self.canvas.text(MARGIN, self.y + 60.0, class, &panel::summary(timeline));
        self.y += 78.0;
    }

    fn panel(&mut self, timeline: &Timeline, panel: &Panel) {
        self.y += 18.0;
        self.canvas.text(MARGIN, self.y + 8.0, "heading", &panel.title);
        self.y += 14.0;
        let top = self.y;
        let bottom = self.y + panel.rows.iter().map(row_height).sum::<f64>();
        // SVG paints in document order: the grid lines come first, below the rows, and the line at
        // `ready` comes last, on top of them.
        self.axis(panel, bottom);
        for row in &panel.rows {
            self.row(timeline, panel, row);
        }
        let base = Area { x: CHART_X, y: bottom, width: CHART_WIDTH, height: 1.0 };
        self.canvas.rect(base, "base", "");
        if let Some(ms) = panel.ready_ms {
            self.ready(ms, panel.span, (top, bottom));
        }
        self.legend(timeline, panel);
    }

    /// Draws the labels of the ticks above the rows, and a grid line through the rows for each.
    fn axis(&mut self, panel: &Panel, bottom: f64) {
        // Labels have some 75 pixels each, which is enough for the longest.
        for (ms, label) in panel.ticks(10) {
            let x = place(panel.span, ms);
            self.canvas.down(x, (self.y - 3.0, bottom), "grid");
            self.canvas.text(x, self.y - 7.0, "tick", &label);
        }
    }

    fn row(&mut self, timeline: &Timeline, panel: &Panel, row: &Row) {
        let axis = panel.span;
        let height = row_height(row);
        let chart = |of: f64| Area {
            x: CHART_X,
            y: self.y + (height - of) / 2.0,
            width: CHART_WIDTH,
            height: of,
        };
        match row {
            Row::Bar { bar, whole_ms } => self.bar(bar, *whole_ms, panel),
            Row::Activity => {
                let chart = chart(BAR_HEIGHT);
                self.name("state", "", "", height);
                strips::activity(&mut self.canvas, timeline, axis, chart);
            }
            Row::Health => {
                let chart = chart(BAR_HEIGHT);
                self.name("health", "", "", height);
                strips::health(&mut self.canvas, timeline, axis, chart);
            }
            Row::Memory { peak_kib } => {
                let chart = chart(CURVE_HEIGHT);
                let peak = span::bytes(peak_kib.saturating_mul(1024));
                self.name("memory", &peak, "peak", height);
                strips::memory(&mut self.canvas, &timeline.grid, *peak_kib, (axis, chart));
            }
            Row::Cpu { peak } => {
                let chart = chart(CURVE_HEIGHT);
                let percent = span::percent(*peak);
                self.name("cpu", &percent, "peak", height);
                strips::cpu(&mut self.canvas, &timeline.grid, *peak, (axis, chart));
            }
            Row::Marks(marks) => {
                let chart = chart(BAR_HEIGHT);
                self.name("events", "", "", height);
                strips::marks(&mut self.canvas, marks, (axis, chart));
            }
        }
        self.y += height;
    }

    /// Draws the name and the numbers of a row of height `height`.
    fn name(&mut self, name: &str, duration: &str, share: &str, height: f64) {
        let y = self.y + height / 2.0 + 4.0;
        self.canvas.text(MARGIN, y, "name", name);
        self.numbers(y, duration, share);
    }

    fn numbers(&mut self, y: f64, duration: &str, share: &str) {
        for (x, text) in [(DURATION_X, duration), (SHARE_X, share)] {
            if !text.is_empty() {
                self.canvas.text(x, y, "number", text);
            }
        }
    }

    fn bar(&mut self, bar: &Bar, whole_ms: u64, panel: &Panel) {
        let axis = panel.span;
        let is_layer = bar.kind == BarKind::Layer;
        let (row, height) =
            if is_layer { (LAYER_ROW_HEIGHT, LAYER_BAR_HEIGHT) } else { (ROW_HEIGHT, BAR_HEIGHT) };
        let base = self.y + row / 2.0 + 4.0;
        let (name_x, name) =
            if is_layer { (MARGIN + 14.0, "name minor") } else { (MARGIN, "name") };
        self.canvas.text(name_x, base, name, &bar.label);
        let duration = span::duration(bar.took_ms);
        let share = span::share(bar.took_ms, whole_ms);
        self.numbers(base, &duration, &share);
        // A bar at the end of the axis moves left, so that its least width stays in the chart.
        let x = place(axis, bar.span.from_ms).min(CHART_X + CHART_WIDTH - MIN_BAR_WIDTH);
        let width = (place(axis, bar.span.to_ms) - x).max(MIN_BAR_WIDTH);
        let area = Area { x, y: self.y + (row - height) / 2.0, width, height };
        let from = panel.start(bar.span.from_ms);
        let tip = format!("{}: {duration} from {from} {}", bar.label, bar.detail);
        self.canvas.rect(area, style::bar(bar.kind), tip.trim_end());
        if !bar.is_finished {
            let width = area.width.min(HATCH_WIDTH);
            self.canvas.rect(Area { x: area.right() - width, width, ..area }, "open", "");
            self.canvas.down(area.right(), (area.y - 2.0, area.bottom() + 2.0), "cut");
        }
        let open = if bar.is_finished { "" } else { "not finished" };
        let parts = [open, bar.detail.as_str()];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let ready_x = panel.ready_ms.map(|ms| place(axis, ms));
        self.beside(area, base, &parts.join(" · "), ready_x);
    }

    /// Draws a text to the right of a bar, inside of it, or to the left of it.
    ///
    /// Takes the first of these places that has room and that the line at `ready_x` does not cross.
    /// If the line crosses all places with room, it takes the first of them. Without room it draws
    /// nothing: the tooltip of the bar has the text, too.
    fn beside(&mut self, area: Area, base: f64, text: &str, ready_x: Option<f64>) {
        // A gap of six pixels on both sides.
        let needed = width(text) + 12.0;
        let end = CHART_X + CHART_WIDTH;
        let is_inside = area.width >= needed + HATCH_WIDTH;
        // The bars of layers are pale and need a dark text.
        let inside = if area.height < BAR_HEIGHT { "detail on-pale" } else { "detail inside" };
        let places = [
            (area.right(), area.right() + 6.0, "detail", area.right() + needed <= end),
            (area.x, area.x + 6.0, inside, is_inside),
            (area.x - needed, area.x - 6.0, "detail before", area.x - needed >= CHART_X),
        ];
        let roomy = places.into_iter().filter(|(.., has_room)| *has_room && !text.is_empty());
        let crossed = |from: f64| ready_x.is_some_and(|x| from < x && x < from + needed);
        let free = roomy.clone().find(|(from, ..)| !crossed(*from));
        if let Some((_, x, class, _)) = free.or_else(|| roomy.clone().next()) {
            self.canvas.text(x, base, class, text);
        }
    }

    fn ready(&mut self, ms: u64, axis: Span, (top, bottom): (f64, f64)) {
        let x = place(axis, ms);
        self.canvas.down(x, (top, bottom + 6.0), "ready-line");
        let label = format!("ready after {}", span::duration(ms));
        // The label is centred, so half of its width matters. Its font is larger than the small one
        // and bold, hence 0.65 instead of 0.5.
        let half = width(&label) * 0.65;
        let (low, high) = (CHART_X + half, CHART_X + CHART_WIDTH - half);
        self.canvas.text(x.clamp(low, high), bottom + 18.0, "ready", &label);
        self.y += 22.0;
    }

    /// Draws the legend: a line for each row with colours, with the time of each colour.
    fn legend(&mut self, timeline: &Timeline, panel: &Panel) {
        let rows = panel.rows.iter().map(|row| legend::entries(timeline, row));
        for entries in rows.filter(|entries| !entries.is_empty()) {
            let mut x = CHART_X;
            for (text, class) in entries {
                let needed = 15.0 + width(&text);
                if x + needed > CHART_X + CHART_WIDTH {
                    x = CHART_X;
                    self.y += 17.0;
                }
                let sample = Area { x, y: self.y + 9.0, width: 10.0, height: 10.0 };
                self.canvas.rect(sample, class, "");
                self.canvas.text(x + 15.0, self.y + 18.0, "detail", &text);
                x += needed + 14.0;
            }
            self.y += 17.0;
        }
        self.y += 8.0;
    }

    fn notes(&mut self, notes: &[Note]) {
        if notes.is_empty() {
            return;
        }
        self.y += 20.0;
        self.canvas.text(MARGIN, self.y + 8.0, "heading", "What happened");
        self.y += 16.0;
        for note in notes {
            let class = style::weight(note.weight);
            let dot = Area { x: MARGIN, y: self.y + 5.0, width: 7.0, height: 7.0 };
            self.canvas.rect(dot, class, "");
            let base = self.y + 12.0;
            self.canvas.text(MARGIN + 14.0, base, "name", &span::duration(note.at_ms));
            self.canvas.text(SHARE_X, base, "number", note.time.as_str());
            for line in plain::wrap_by(&note.text, NOTE_WIDTH_TENTHS, tenths) {
                let class = if note.weight == Weight::Bad { "detail bad" } else { "detail" };
                self.canvas.text(NOTE_X, self.y + 12.0, class, &line);
                self.y += NOTE_LINE_HEIGHT;
            }
            self.y += 3.0;
        }
    }
}

/// Returns the height of a row, in pixels.
fn row_height(row: &Row) -> f64 {
    match row {
        Row::Bar { bar, .. } if bar.kind == BarKind::Layer => LAYER_ROW_HEIGHT,
        Row::Memory { .. } | Row::Cpu { .. } => CURVE_ROW_HEIGHT,
        _ => ROW_HEIGHT,
    }
}
