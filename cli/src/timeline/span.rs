//! Spans of time: how they are written, and the axes on which they are drawn.

/// A second.
const S: u64 = 1000;
/// A minute.
const MIN: u64 = 60 * S;
/// An hour.
const H: u64 = 60 * MIN;
/// A day.
const D: u64 = 24 * H;

/// Longer than any box lives, and too long for a column.
const LONGEST: u64 = 10_000 * D;

/// Distances between ticks that people read easily; longer ones are made from days.
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
    S,
    2 * S,
    5 * S,
    10 * S,
    15 * S,
    30 * S,
    MIN,
    2 * MIN,
    5 * MIN,
    10 * MIN,
    15 * MIN,
    30 * MIN,
    H,
    2 * H,
    3 * H,
    6 * H,
    12 * H,
    D,
    2 * D,
    5 * D,
];

/// From one time to another, in milliseconds since the shim started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from_ms: u64,
    pub(crate) to_ms: u64,
}

impl Span {
    /// From the earlier to the later, even if `to_ms` is before `from_ms`: then it is empty.
    pub(crate) fn new(from_ms: u64, to_ms: u64) -> Self {
        Self { from_ms, to_ms: to_ms.max(from_ms) }
    }

    pub(crate) fn ms(self) -> u64 {
        self.to_ms.saturating_sub(self.from_ms)
    }

    /// Where `ms` is in this span, from 0 to `units`.
    pub(crate) fn place(self, ms: u64, units: usize) -> usize {
        let past = ms.clamp(self.from_ms, self.to_ms) - self.from_ms;
        let place = u128::from(past) * units as u128 / u128::from(self.ms().max(1));
        usize::try_from(place).unwrap_or(units)
    }

    /// The same as a number between 0 and 1.
    pub(crate) fn fraction(self, ms: u64) -> f64 {
        let past = ms.clamp(self.from_ms, self.to_ms) - self.from_ms;
        past as f64 / self.ms().max(1) as f64
    }

    /// Times of the ticks of an axis, at most `most` and one.
    pub(crate) fn ticks(self, most: u64) -> Vec<u64> {
        let fits = |step: &u64| self.ms() / step <= most;
        let step = STEPS_MS.iter().copied().find(fits).unwrap_or_else(|| {
            let tens = std::iter::successors(Some(10 * D), |step| step.checked_mul(10));
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

/// A duration with as many digits as one reads.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..S => format!("{ms} ms"),
        // Three digits, cut and not rounded, so that no text says a time that was not reached.
        S..10_000 => format!("{}.{:02} s", ms / S, ms % S / 10),
        10_000..MIN => format!("{}.{} s", ms / S, ms % S / 100),
        MIN..H => two(ms, (MIN, "min"), (S, "s")),
        H..D => two(ms, (H, "h"), (MIN, "min")),
        D..LONGEST => two(ms, (D, "d"), (H, "h")),
        LONGEST.. => ">9999 d".to_owned(),
    }
}

fn two(ms: u64, large: (u64, &str), small: (u64, &str)) -> String {
    match (ms / large.0, ms % large.0 / small.0) {
        (count, 0) => format!("{count} {}", large.1),
        (count, rest) => format!("{count} {} {rest} {}", large.1, small.1),
    }
}

/// A tick's time: exact, without zeros that say nothing.
pub(crate) fn tick(ms: u64) -> String {
    match ms {
        0 => "0".to_owned(),
        S..MIN if !ms.is_multiple_of(S) => {
            let digits = format!("{:03}", ms % S);
            format!("{}.{} s", ms / S, digits.trim_end_matches('0'))
        }
        S..MIN => format!("{} s", ms / S),
        _ => duration(ms),
    }
}

/// A part of a whole, in per cent.
pub(crate) fn share(part_ms: u64, whole_ms: u64) -> String {
    match u128::from(part_ms) * 1000 / u128::from(whole_ms.max(1)) {
        1000 => "100 %".to_owned(),
        // Figures that do not fit each other.
        10_000.. => ">999 %".to_owned(),
        tenths => format!("{}.{} %", tenths / 10, tenths % 10),
    }
}

/// CPUs, of which one is a hundred per cent.
pub(crate) fn percent(cpus: f64) -> String {
    // More than a thousand CPUs no host has.
    if cpus < 1000.0 { format!("{:.0} %", cpus * 100.0) } else { ">99999 %".to_owned() }
}

/// An amount of memory or data.
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
    fn durations_read_well() {
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
    fn an_axis_has_few_round_ticks() {
        assert_eq!(Span::new(0, 60).ticks(10), [0, 10, 20, 30, 40, 50, 60]);
        assert_eq!(Span::new(1_500, 4_310).ticks(10), [1500, 2000, 2500, 3000, 3500, 4000]);
        assert_eq!(Span::new(0, 0).ticks(10), [0]);
        for ms in [1, 10, 999, 86_400_000, 10 * D, 400 * D, u64::MAX / 3, u64::MAX] {
            let ticks = Span::new(0, ms).ticks(10);
            assert!((1..=11).contains(&ticks.len()), "{ms}: {ticks:?}");
        }
    }

    #[test]
    fn places_stay_in_the_span() {
        let span = Span::new(10, 110);
        assert_eq!([0, 10, 60, 110, 999].map(|ms| span.place(ms, 50)), [0, 0, 25, 50, 50]);
        assert_eq!(Span::new(7, 3), Span::new(7, 7));
        assert_eq!(Span::new(0, u64::MAX).place(u64::MAX, 100), 100);
    }
}
