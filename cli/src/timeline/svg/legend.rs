//! What the colours of a row mean, and how long each of them lasted.

use super::style;
use crate::timeline::grid::{Activity, Health, MarkKind};
use crate::timeline::model::Timeline;
use crate::timeline::panel::Row;
use crate::timeline::span;

/// Texts with the classes of their colours. Bars have their names beside them, and need none.
pub(super) fn entries(timeline: &Timeline, row: &Row) -> Vec<(String, &'static str)> {
    let totals = &timeline.totals;
    match row {
        Row::Activity => {
            let entry = |of: Activity| {
                let text = told(timeline, of.name(), totals.activity(of), of.is_lived())?;
                Some((text, style::activity(of)))
            };
            Activity::ALL.into_iter().filter_map(entry).collect()
        }
        Row::Health => {
            let entry = |of: Health| {
                let text = told(timeline, of.name(), totals.health(of), of != Health::Starting)?;
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

/// A state with its time, and with its share of the life if it is a part of that.
fn told(timeline: &Timeline, name: &str, ms: u64, is_part: bool) -> Option<String> {
    let share =
        if is_part { format!(" ({})", span::share(ms, timeline.life.ms())) } else { String::new() };
    (ms > 0).then(|| format!("{name} {}{share}", span::duration(ms)))
}
