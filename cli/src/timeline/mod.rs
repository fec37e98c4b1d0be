//! `a3s-box timeline`: draws an event file as a picture of where the time of a box went.
//!
//! ```text
//! FILE ─► EventLines ─► Recorder ─────► Timeline ─► Panel* ─► text or SVG
//!         one line at   one per run,    the facts   the rows
//!         a time        bounded memory  of one run  of a page
//! ```

mod boot;
mod canvas;
mod grid;
mod life;
mod lines;
mod model;
mod panel;
mod plain;
mod recorder;
mod span;
mod stop;
mod svg;
#[cfg(test)]
mod tests;
mod text;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use a3s_box_core::Event;
use clap::Args;

use self::lines::{EventLines, LineError};
use self::model::{RunNumber, Timeline};
use self::recorder::Recorder;

/// Draws where the time of a box went, from the events of its shim.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The events, one JSON object a line, as `events.file` holds them; `-` is standard input.
    file: PathBuf,
    /// Write an SVG picture to this file, instead of text on standard output.
    #[arg(long, value_name = "OUT.svg")]
    svg: Option<PathBuf>,
    /// Which run of the box, from 1, when the file holds several; else the last one.
    #[arg(long, value_name = "N")]
    run: Option<NonZeroU64>,
}

/// The timeline could not be drawn.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TimelineError {
    #[error("cannot open `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("`{}`", path.display())]
    Line { path: PathBuf, source: LineError },
    #[error("`{}`: there is no event in it", path.display())]
    Empty { path: PathBuf },
    #[error("`{}`: there is no run {wanted}; it holds {found}", path.display())]
    NoSuchRun { path: PathBuf, wanted: u64, found: u64 },
    #[error("cannot write `{}`", path.display())]
    WriteSvg { path: PathBuf, source: io::Error },
    #[error("cannot write to standard output")]
    WriteText { source: io::Error },
}

/// Reads the event file, draws one run of it, and writes the text or the picture.
pub(crate) fn run(options: &Options, stdout: &mut impl Write) -> Result<(), TimelineError> {
    let timeline = read(&options.file, options.run)?;
    if let Some(path) = &options.svg {
        return fs::write(path, svg::render(&timeline))
            .map_err(|source| TimelineError::WriteSvg { path: path.clone(), source });
    }
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let text = text::render(&timeline, columns.unwrap_or(text::DEFAULT_COLUMNS));
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // A reader that closes the pipe early, like `head`, has all that it wanted.
        Err(source) if source.kind() != ErrorKind::BrokenPipe => {
            Err(TimelineError::WriteText { source })
        }
        _ => Ok(()),
    }
}

fn read(path: &Path, wanted: Option<NonZeroU64>) -> Result<Timeline, TimelineError> {
    let named = |source| TimelineError::Line { path: path.to_owned(), source };
    let mut runs = Runs::new(wanted);
    if path == Path::new("-") {
        runs.read(io::stdin().lock()).map_err(named)?;
    } else {
        let file = File::open(path)
            .map_err(|source| TimelineError::Open { path: path.to_owned(), source })?;
        runs.read(BufReader::new(file)).map_err(named)?;
    }
    let found = runs.count;
    // A file whose events are all of other runs is not empty, so the two errors differ.
    match (runs.finish(), wanted) {
        (Some(timeline), _) => Ok(timeline),
        (None, Some(wanted)) if found > 0 => {
            Err(TimelineError::NoSuchRun { path: path.to_owned(), wanted: wanted.get(), found })
        }
        (None, _) => Err(TimelineError::Empty { path: path.to_owned() }),
    }
}

/// The runs of a box in one file. Only one of them is recorded. The others are counted.
#[derive(Debug)]
struct Runs {
    wanted: Option<NonZeroU64>,
    count: u64,
    last_seq: Option<u64>,
    kept: Option<(u64, Recorder)>,
}

impl Runs {
    fn new(wanted: Option<NonZeroU64>) -> Self {
        Self { wanted, count: 0, last_seq: None, kept: None }
    }

    /// Reads and records all events.
    fn read(&mut self, reader: impl BufRead) -> Result<(), LineError> {
        let mut lines = EventLines::new(reader);
        while let Some(event) = lines.next()? {
            self.record(&event);
        }
        Ok(())
    }

    /// Records an event, if it belongs to the wanted run.
    ///
    /// Without a wanted run, each new run replaces the previous one, so the last one is kept.
    fn record(&mut self, event: &Event) {
        // A shim increments `seq` with each event, so a number that does not increase belongs to
        // the next shim.
        let is_new = self.last_seq.is_none_or(|last| event.seq <= last);
        self.last_seq = Some(event.seq);
        if is_new {
            self.count += 1;
            if self.wanted.is_none_or(|wanted| wanted.get() == self.count) {
                self.kept = Some((self.count, Recorder::new(event)));
            }
        }
        if let Some((number, recorder)) = &mut self.kept
            && *number == self.count
        {
            recorder.record(event);
        }
    }

    fn finish(self) -> Option<Timeline> {
        let (number, recorder) = self.kept?;
        Some(recorder.finish(RunNumber { number, of: self.count }))
    }
}
