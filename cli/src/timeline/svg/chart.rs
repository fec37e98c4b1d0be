//! The position of the charts on the page, in pixels.

use crate::timeline::span::Span;

/// Width of the page. A browser window on a common screen shows it without scrolling.
pub(super) const WIDTH: f64 = 1120.0;

/// Margin on all sides of the page.
pub(super) const MARGIN: f64 = 28.0;

/// Left edge and width of the charts.
pub(super) const CHART_X: f64 = 284.0;
pub(super) const CHART_WIDTH: f64 = WIDTH - MARGIN - CHART_X;

/// Returns the horizontal position of a time on a chart.
pub(super) fn place(axis: Span, ms: u64) -> f64 {
    CHART_X + CHART_WIDTH * axis.fraction(ms)
}
