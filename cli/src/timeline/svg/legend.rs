//! The legend of a row: the meaning of its colours, and the total time of each.

use super::style;
use crate::timeline::grid::{Activity, Health, MarkKind};
use crate::timeline::model::Timeline;
use crate::timeline::panel::Row;
use crate::timeline::span;

/// Returns the texts of the legend with the CSS classes of their colours.
///
/// Bars and curves have none, because their names are beside them.
pub(super) fn entries(timeline: &Timeline, row: &Row) -> Vec<(String, &'static str)> {
    let totals = &timeline.totals;
    match row {
        Row::Activity => {
            let entry = |of: Activity| {
                let text = entry_text(timeline, of.name(), totals.activity(of), of.is_running())?;
                Some((text, style::activity(of)))
            };
            Activity::ALL.into_iter().filter_map(entry).collect()
        }
        Row::Health => {
            let entry = |of: Health| {
                let is_part = of != Health::Starting;
                let text = entry_text(timeline, of.name(), totals.health(of), is_part)?;
                Some((text, style::health(of)))
            };
            Health::ALL.into_iter().filter_map(entry).collect()
        }
        Row::Marks(marks) => {
            let is_there = |of: &MarkKind| marks.iter().any(|(_, kind)| kind == of);
            let entry = |of: MarkKind| (of.name().to_owned(), style::mark(of));
            MarkKind::ALL.into_iter().filter(is_there).map(entry).collect()
        }
        Row::Bar { .. } | Row::Memory { .. } | Row::Cpu { .. } => Vec::new(),
    }
}

/// Formats a state with its total time, and with its share of the run if `is_part`. Returns `None`
/// for a state that the box was never in.
fn entry_text(timeline: &Timeline, name: &str, ms: u64, is_part: bool) -> Option<String> {
    let share =
        if is_part { format!(" ({})", span::share(ms, timeline.life.ms())) } else { String::new() };
    (ms > 0).then(|| format!("{name} {}{share}", span::duration(ms)))
}
