//! Spans of time, the ticks of an axis over them, and the formats of durations and amounts.

const SECOND_MS: u64 = 1000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Durations from here on do not fit into their column. A box does not run that long, so they come
/// from a damaged or hostile file.
const TOO_LONG_MS: u64 = 10_000 * DAY_MS;

/// Round distances between the ticks of an axis. Longer ones are 1, 2 or 5 times a power of ten in
/// days.
const STEPS_MS: [u64; 29] = [
    1,
    2,
    5,
    10,
    20,
    50,
    100,
    200,
    500,
    SECOND_MS,
    2 * SECOND_MS,
    5 * SECOND_MS,
    10 * SECOND_MS,
    15 * SECOND_MS,
    30 * SECOND_MS,
    MINUTE_MS,
    2 * MINUTE_MS,
    5 * MINUTE_MS,
    10 * MINUTE_MS,
    15 * MINUTE_MS,
    30 * MINUTE_MS,
    HOUR_MS,
    2 * HOUR_MS,
    3 * HOUR_MS,
    6 * HOUR_MS,
    12 * HOUR_MS,
    DAY_MS,
    2 * DAY_MS,
    5 * DAY_MS,
];

/// A span of time, in milliseconds since the shim started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from_ms: u64,
    pub(crate) to_ms: u64,
}

impl Span {
    /// Returns the span between two times. It is empty if `to_ms` is before `from_ms`.
    pub(crate) fn new(from_ms: u64, to_ms: u64) -> Self {
        Self { from_ms, to_ms: to_ms.max(from_ms) }
    }

    /// Returns the length in milliseconds.
    pub(crate) fn ms(self) -> u64 {
        self.to_ms.saturating_sub(self.from_ms)
    }

    /// Returns the position of `ms` in this span, as a number from 0 to `units`.
    pub(crate) fn place(self, ms: u64, units: usize) -> usize {
        let past = ms.clamp(self.from_ms, self.to_ms) - self.from_ms;
        // 128 bits, because the product of a time and a width can exceed 64.
        let place = u128::from(past) * units as u128 / u128::from(self.ms().max(1));
        usize::try_from(place).unwrap_or(units)
    }

    /// Returns the position of `ms` in this span, as a number from 0 to 1.
    pub(crate) fn fraction(self, ms: u64) -> f64 {
        let past = ms.clamp(self.from_ms, self.to_ms) - self.from_ms;
        past as f64 / self.ms().max(1) as f64
    }

    /// Returns the times of the ticks of an axis over this span: at most `most` + 1.
    pub(crate) fn ticks(self, most: u64) -> Vec<u64> {
        let fits = |step: &u64| self.ms() / step <= most;
        let step = STEPS_MS.iter().copied().find(fits).unwrap_or_else(|| {
            let tens = std::iter::successors(Some(10 * DAY_MS), |step| step.checked_mul(10));
            let mut steps =
                tens.flat_map(|ten| [ten, ten.saturating_mul(2), ten.saturating_mul(5)]);
            steps.find(fits).unwrap_or(u64::MAX)
        });
        let first = self.from_ms.div_ceil(step).checked_mul(step);
        std::iter::successors(first, |tick| tick.checked_add(step))
            .take_while(|tick| *tick <= self.to_ms)
            .collect()
    }
}

/// Formats a duration: with at most three digits below a minute, in two units above.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..SECOND_MS => format!("{ms} ms"),
        // Three digits, truncated instead of rounded, so that no text exceeds the true duration.
        SECOND_MS..10_000 => format!("{}.{:02} s", ms / SECOND_MS, ms % SECOND_MS / 10),
        10_000..MINUTE_MS => format!("{}.{} s", ms / SECOND_MS, ms % SECOND_MS / 100),
        MINUTE_MS..HOUR_MS => two_units(ms, (MINUTE_MS, "min"), (SECOND_MS, "s")),
        HOUR_MS..DAY_MS => two_units(ms, (HOUR_MS, "h"), (MINUTE_MS, "min")),
        DAY_MS..TOO_LONG_MS => two_units(ms, (DAY_MS, "d"), (HOUR_MS, "h")),
        TOO_LONG_MS.. => ">9999 d".to_owned(),
    }
}

/// Formats a duration in two units, or in the larger one alone if there is no rest.
fn two_units(ms: u64, large: (u64, &str), small: (u64, &str)) -> String {
    match (ms / large.0, ms % large.0 / small.0) {
        (count, 0) => format!("{count} {}", large.1),
        (count, rest) => format!("{count} {} {rest} {}", large.1, small.1),
    }
}

/// Formats the time of a tick: exactly, and without trailing zeros.
pub(crate) fn tick(ms: u64) -> String {
    match ms {
        0 => "0".to_owned(),
        SECOND_MS..MINUTE_MS if !ms.is_multiple_of(SECOND_MS) => {
            let digits = format!("{:03}", ms % SECOND_MS);
            format!("{}.{} s", ms / SECOND_MS, digits.trim_end_matches('0'))
        }
        SECOND_MS..MINUTE_MS => format!("{} s", ms / SECOND_MS),
        _ => duration(ms),
    }
}

/// Formats a part of a whole in per cent.
pub(crate) fn share(part_ms: u64, whole_ms: u64) -> String {
    match u128::from(part_ms) * 1000 / u128::from(whole_ms.max(1)) {
        1000 => "100 %".to_owned(),
        // A part larger than its whole comes from inconsistent events. It must fit its column.
        10_000.. => ">999 %".to_owned(),
        tenths => format!("{}.{} %", tenths / 10, tenths % 10),
    }
}

/// Formats a number of busy CPUs in per cent: one CPU is 100 %.
pub(crate) fn percent(cpus: f64) -> String {
    // A larger number comes from inconsistent events. It must fit its column.
    if cpus < 1000.0 { format!("{:.0} %", cpus * 100.0) } else { ">99999 %".to_owned() }
}

/// Formats an amount of memory or data, with a binary prefix.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = [
        (1 << 60, "EiB"),
        (1 << 50, "PiB"),
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes / unit < 10 => {
            format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit)
        }
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_durations_shares_and_amounts() {
        let cases = [
            (0, "0 ms"),
            (999, "999 ms"),
            (4_319, "4.31 s"),
            (59_999, "59.9 s"),
            (60_000, "1 min"),
            (754_000, "12 min 34 s"),
            (3_600_000, "1 h"),
            (86_399_999, "23 h 59 min"),
            (273_600_000, "3 d 4 h"),
            (u64::MAX, ">9999 d"),
        ];
        for (ms, text) in cases {
            assert_eq!(duration(ms), text);
        }
        assert_eq!(tick(1_250), "1.25 s");
        assert_eq!(tick(2_000), "2 s");
        assert_eq!(share(1, 3), "33.3 %");
        assert_eq!(share(3, 3), "100 %");
        assert_eq!(share(5, 0), "500.0 %");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3 * 1024 * 1024 / 2), "1.5 MiB");
        assert_eq!(bytes(u64::MAX), "15 EiB");
        assert_eq!([0.5, 3.999, 1e30].map(percent), ["50 %", "400 %", ">99999 %"]);
    }

    #[test]
    fn an_axis_has_at_most_one_tick_more_than_asked_for() {
        assert_eq!(Span::new(0, 60).ticks(10), [0, 10, 20, 30, 40, 50, 60]);
        assert_eq!(Span::new(1_500, 4_310).ticks(10), [1500, 2000, 2500, 3000, 3500, 4000]);
        assert_eq!(Span::new(0, 0).ticks(10), [0]);
        for ms in [1, 10, 999, 86_400_000, 10 * DAY_MS, 400 * DAY_MS, u64::MAX / 3, u64::MAX] {
            let ticks = Span::new(0, ms).ticks(10);
            assert!((1..=11).contains(&ticks.len()), "{ms}: {ticks:?}");
        }
    }

    #[test]
    fn positions_stay_in_the_span() {
        let span = Span::new(10, 110);
        assert_eq!([0, 10, 60, 110, 999].map(|ms| span.place(ms, 50)), [0, 0, 25, 50, 50]);
        assert_eq!(Span::new(7, 3), Span::new(7, 7));
        assert_eq!(Span::new(0, u64::MAX).place(u64::MAX, 100), 100);
    }
}
