//! The whole run of a box in a bounded number of cells of equal length.
//!
//! A picture has about a thousand columns. A box that was busy a million times therefore does not
//! need a million spans. When time passes the last cell, each pair of cells is merged into one.

use super::span::Span;

/// Most cells. After a merge at least half of them are in use, so the chart of a picture, which is
/// 808 pixels wide, always has a cell for each pixel. The number is even, because cells are merged
/// in pairs.
const MAX_CELLS: usize = 2048;

/// What a box does, as the strip `state` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    Booting,
    Ready,
    Busy,
    Compacting,
    Stopping,
}

impl Activity {
    pub(crate) const ALL: [Self; 5] =
        [Self::Booting, Self::Ready, Self::Busy, Self::Compacting, Self::Stopping];

    /// Returns whether the box has booted and is not stopping.
    pub(crate) fn is_running(self) -> bool {
        !matches!(self, Self::Booting | Self::Stopping)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Compacting => "compacting",
            Self::Stopping => "stopping",
        }
    }
}

/// The result of the health checks, as the strip `health` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Starting,
    Healthy,
    Unhealthy,
}

impl Health {
    pub(crate) const ALL: [Self; 3] = [Self::Starting, Self::Healthy, Self::Unhealthy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// An event that is drawn as a mark at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkKind {
    Error,
    Truncated,
    Dropped,
    Notified,
}

impl MarkKind {
    pub(crate) const ALL: [Self; 4] = [Self::Error, Self::Truncated, Self::Dropped, Self::Notified];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Truncated => "output lost",
            Self::Dropped => "events lost",
            Self::Notified => "notified",
        }
    }
}

/// What happened during one cell. Times are in milliseconds. They have fractions, because
/// [`Grid::resample`] divides cells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cell {
    /// Time in each [`Activity`].
    pub(crate) activity_ms: [f64; Activity::ALL.len()],
    /// Time in each [`Health`].
    pub(crate) health_ms: [f64; Health::ALL.len()],
    /// Number of each [`MarkKind`].
    pub(crate) marks: [u64; MarkKind::ALL.len()],
    /// Peak of the memory; 0 if the cell has no sample.
    pub(crate) memory_kib: u64,
    /// CPU time that was used, and the wall clock time in which it was used.
    pub(crate) cpu_ms: f64,
    pub(crate) cpu_over_ms: f64,
}

impl Cell {
    pub(crate) fn activity(&self, of: Activity) -> f64 {
        self.activity_ms[of as usize]
    }

    pub(crate) fn health(&self, of: Health) -> f64 {
        self.health_ms[of as usize]
    }

    pub(crate) fn mark(&self, of: MarkKind) -> u64 {
        self.marks[of as usize]
    }

    /// Returns how many CPUs were busy on average, or `None` without a sample.
    pub(crate) fn cpus(&self) -> Option<f64> {
        (self.cpu_over_ms > 0.0).then(|| self.cpu_ms / self.cpu_over_ms)
    }

    /// Adds the fraction `part` of the times of `other`, and all its marks and its memory.
    fn add(&mut self, other: &Self, part: f64) {
        let times = self.activity_ms.iter_mut().chain(&mut self.health_ms);
        for (time, more) in times.zip(other.activity_ms.iter().chain(&other.health_ms)) {
            *time += more * part;
        }
        // Counts come from a file that may be hostile, so they saturate.
        for (count, more) in self.marks.iter_mut().zip(other.marks) {
            *count = count.saturating_add(more);
        }
        self.memory_kib = self.memory_kib.max(other.memory_kib);
        self.cpu_ms += other.cpu_ms * part;
        self.cpu_over_ms += other.cpu_over_ms * part;
    }
}

/// The cells of a run.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    origin_ms: u64,
    cell_ms: u64,
    cells: Vec<Cell>,
}

impl Grid {
    pub(crate) fn new(origin_ms: u64) -> Self {
        Self { origin_ms, cell_ms: 1, cells: Vec::new() }
    }

    /// Returns the cells with their times.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (Span, &Cell)> {
        self.cells.iter().enumerate().map(|(index, cell)| (self.span(index), cell))
    }

    fn span(&self, index: usize) -> Span {
        let past = self.cell_ms.saturating_mul(index as u64);
        let from_ms = self.origin_ms.saturating_add(past);
        Span { from_ms, to_ms: from_ms.saturating_add(self.cell_ms) }
    }

    /// Calls `add` for each cell that `span` overlaps, with the length of the overlap.
    pub(crate) fn spread(&mut self, span: Span, mut add: impl FnMut(&mut Cell, f64)) {
        // An empty span has no last millisecond.
        if span.ms() == 0 {
            return;
        }
        // The last index is computed first: it may merge cells, which changes the first index.
        let last = self.index(span.to_ms - 1);
        let first = self.index(span.from_ms);
        for index in first..=last {
            let of = self.span(index);
            let shared = of.to_ms.min(span.to_ms).saturating_sub(of.from_ms.max(span.from_ms));
            if let Some(cell) = self.cells.get_mut(index) {
                add(cell, shared as f64);
            }
        }
    }

    /// Returns the cell that contains a time.
    pub(crate) fn cell_at(&mut self, ms: u64) -> Option<&mut Cell> {
        let index = self.index(ms);
        self.cells.get_mut(index)
    }

    /// Returns the index of the cell that contains a time. Adds cells, and merges them, as needed.
    fn index(&mut self, ms: u64) -> usize {
        let past = ms.saturating_sub(self.origin_ms);
        // Each merge doubles `cell_ms`, so at most 64 of them reach any time.
        while past / self.cell_ms >= MAX_CELLS as u64 {
            self.merge_pairs();
        }
        let index = usize::try_from(past / self.cell_ms).unwrap_or(MAX_CELLS);
        if self.cells.len() <= index {
            self.cells.resize(index + 1, Cell::default());
        }
        index
    }

    /// Merges each pair of cells into one, so that the cells cover twice the time.
    fn merge_pairs(&mut self) {
        self.cells = self
            .cells
            .chunks(2)
            .map(|pair| {
                let mut whole = Cell::default();
                pair.iter().for_each(|cell| whole.add(cell, 1.0));
                whole
            })
            .collect();
        self.cell_ms = self.cell_ms.saturating_mul(2);
    }

    /// Returns `span` in `columns` cells of equal length.
    ///
    /// The times of a cell are divided among the columns that it overlaps. Its marks and its peak
    /// of memory go to the first of these columns only, because dividing a count has no meaning.
    pub(crate) fn resample(&self, span: Span, columns: usize) -> Vec<Cell> {
        let mut sampled = vec![Cell::default(); columns];
        // The span may be empty. Its width must not be 0, as it is a divisor.
        let width = span.ms().max(1) as f64 / columns as f64;
        for (of, cell) in self.cells() {
            if of.to_ms <= span.from_ms || of.from_ms > span.to_ms {
                continue;
            }
            let first = span.place(of.from_ms, columns).min(columns.saturating_sub(1));
            let last = span.place(of.to_ms, columns).min(columns.saturating_sub(1));
            for index in first..=last {
                let from = span.from_ms as f64 + width * index as f64;
                let shared = (from + width).min(of.to_ms as f64) - from.max(of.from_ms as f64);
                let mut part = *cell;
                if index != first {
                    part.marks = <[u64; MarkKind::ALL.len()]>::default();
                    part.memory_kib = 0;
                }
                if let Some(column) = sampled.get_mut(index) {
                    column.add(&part, shared.max(0.0) / of.ms().max(1) as f64);
                }
            }
        }
        sampled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(cell: &mut Cell, ms: f64) {
        cell.activity_ms[Activity::Busy as usize] += ms;
    }

    fn sum(cells: &[Cell]) -> f64 {
        cells.iter().map(|cell| cell.activity(Activity::Busy)).sum()
    }

    #[test]
    fn bounds_the_cells_of_a_long_run() {
        let mut grid = Grid::new(5);
        for day in 0..1000 {
            let from = 5 + day * 86_400_000;
            grid.spread(Span::new(from, from + 1234), busy);
            grid.cell_at(from).unwrap().marks[MarkKind::Error as usize] += 1;
        }
        assert!(grid.cells.len() <= MAX_CELLS && grid.cells.len() > MAX_CELLS / 4);
        assert!((sum(&grid.cells) - 1_234_000.0).abs() < 1.0);
        assert_eq!(grid.cells.iter().map(|cell| cell.mark(MarkKind::Error)).sum::<u64>(), 1000);
    }

    #[test]
    fn accepts_the_largest_time() {
        let mut grid = Grid::new(0);
        grid.spread(Span::new(0, u64::MAX), busy);
        assert!(grid.cell_at(u64::MAX).is_some());
        assert!(grid.cells.len() <= MAX_CELLS);
    }

    #[test]
    fn resampling_preserves_times_and_marks() {
        let mut grid = Grid::new(0);
        grid.spread(Span::new(2, 4), busy);
        grid.cell_at(3).unwrap().marks[0] = 1;
        for columns in [1, 2, 3, 10, 100] {
            let sampled = grid.resample(Span::new(0, 10), columns);
            assert!((sum(&sampled) - 2.0).abs() < 1e-6, "{columns}");
            assert_eq!(sampled.iter().map(|cell| cell.marks[0]).sum::<u64>(), 1);
        }
        let sampled = grid.resample(Span::new(0, 10), 5);
        assert!((sampled[1].activity(Activity::Busy) - 2.0).abs() < 1e-6);
    }
}
