//! A whole life in a bounded number of cells, each as long as all others.
//!
//! A picture has a thousand columns, so a box that was busy a million times needs no million spans.
//! When time goes beyond the last cell, each two become one.

use super::span::Span;

/// Cells: at least half of them are in use once there was one such doubling, and a picture's chart is
/// 850 pixels wide. Even.
const CELLS: usize = 2048;

/// What a box does, as a strip shows it.
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

    /// Whether it is more than a way to or from the others.
    pub(crate) fn is_lived(self) -> bool {
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

/// What health checks say, as a strip shows it.
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

/// What is marked at a time.
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

/// What happened in a cell. Times are in milliseconds; fractions come from cells that are divided.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cell {
    /// Time in each [`Activity`].
    pub(crate) activity_ms: [f64; Activity::ALL.len()],
    /// Time in each [`Health`].
    pub(crate) health_ms: [f64; Health::ALL.len()],
    /// Number of each [`MarkKind`].
    pub(crate) marks: [u64; MarkKind::ALL.len()],
    /// Most memory that was seen; 0: nobody looked.
    pub(crate) memory_kib: u64,
    /// CPU time, and the time in which it was used.
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

    /// CPUs that were busy on average; `None` when nobody looked.
    pub(crate) fn cpus(&self) -> Option<f64> {
        (self.cpu_over_ms > 0.0).then(|| self.cpu_ms / self.cpu_over_ms)
    }

    fn add(&mut self, other: &Self, part: f64) {
        let times = self.activity_ms.iter_mut().chain(&mut self.health_ms);
        for (time, more) in times.zip(other.activity_ms.iter().chain(&other.health_ms)) {
            *time += more * part;
        }
        for (count, more) in self.marks.iter_mut().zip(other.marks) {
            *count = count.saturating_add(more);
        }
        self.memory_kib = self.memory_kib.max(other.memory_kib);
        self.cpu_ms += other.cpu_ms * part;
        self.cpu_over_ms += other.cpu_over_ms * part;
    }
}

/// The cells of a life.
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

    /// The cells with their times.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (Span, &Cell)> {
        self.cells.iter().enumerate().map(|(index, cell)| (self.span(index), cell))
    }

    fn span(&self, index: usize) -> Span {
        let past = self.cell_ms.saturating_mul(index as u64);
        let from_ms = self.origin_ms.saturating_add(past);
        Span { from_ms, to_ms: from_ms.saturating_add(self.cell_ms) }
    }

    /// Adds to each cell of `span`, with the time that the two share.
    pub(crate) fn spread(&mut self, span: Span, mut add: impl FnMut(&mut Cell, f64)) {
        if span.ms() == 0 {
            return;
        }
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

    /// The cell of a time.
    pub(crate) fn at(&mut self, ms: u64) -> Option<&mut Cell> {
        let index = self.index(ms);
        self.cells.get_mut(index)
    }

    /// The index of a time's cell, which exists afterwards.
    fn index(&mut self, ms: u64) -> usize {
        let past = ms.saturating_sub(self.origin_ms);
        while past / self.cell_ms >= CELLS as u64 {
            self.halve();
        }
        let index = usize::try_from(past / self.cell_ms).unwrap_or(CELLS);
        if self.cells.len() <= index {
            self.cells.resize(index + 1, Cell::default());
        }
        index
    }

    fn halve(&mut self) {
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

    /// The same over `span`, in as many cells as asked for. Marks and memory go where their cell
    /// begins, times are divided.
    pub(crate) fn resample(&self, span: Span, columns: usize) -> Vec<Cell> {
        let mut sampled = vec![Cell::default(); columns];
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
    fn a_long_life_takes_no_more_cells_than_a_short_one() {
        let mut grid = Grid::new(5);
        for day in 0..1000 {
            let from = 5 + day * 86_400_000;
            grid.spread(Span::new(from, from + 1234), busy);
            grid.at(from).unwrap().marks[MarkKind::Error as usize] += 1;
        }
        assert!(grid.cells.len() <= CELLS && grid.cells.len() > CELLS / 4);
        assert!((sum(&grid.cells) - 1_234_000.0).abs() < 1.0);
        assert_eq!(grid.cells.iter().map(|cell| cell.mark(MarkKind::Error)).sum::<u64>(), 1000);
    }

    #[test]
    fn the_end_of_time_is_a_time() {
        let mut grid = Grid::new(0);
        grid.spread(Span::new(0, u64::MAX), busy);
        assert!(grid.at(u64::MAX).is_some());
        assert!(grid.cells.len() <= CELLS);
    }

    #[test]
    fn columns_share_what_cells_hold() {
        let mut grid = Grid::new(0);
        grid.spread(Span::new(2, 4), busy);
        grid.at(3).unwrap().marks[0] = 1;
        for columns in [1, 2, 3, 10, 100] {
            let sampled = grid.resample(Span::new(0, 10), columns);
            assert!((sum(&sampled) - 2.0).abs() < 1e-6, "{columns}");
            assert_eq!(sampled.iter().map(|cell| cell.marks[0]).sum::<u64>(), 1);
        }
        let sampled = grid.resample(Span::new(0, 10), 5);
        assert!((sampled[1].activity(Activity::Busy) - 2.0).abs() < 1e-6);
    }
}
