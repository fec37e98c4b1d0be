//! Turns the events of one run into its [`Timeline`], in bounded memory.

use a3s_box_core::Event;
use a3s_box_core::event::EventKind;

use super::boot::Boot;
use super::life::Life;
use super::model::{Note, RunNumber, RunOutcome, Timeline, Weight};
use super::plain::PlainText;
use super::span::Span;
use super::stop::StopTimeline;

/// Most characters of an id, version, reference or time that are shown.
const NAME_CHARS: usize = 64;

/// Characters of a digest that are shown, including its algorithm: enough to distinguish images.
const DIGEST_CHARS: usize = "sha256:0123456789ab".len();

/// The record of one run so far.
#[derive(Debug)]
pub(crate) struct Recorder {
    box_id: PlainText,
    image: Option<PlainText>,
    version: Option<PlainText>,
    started: PlainText,
    begin_ms: u64,
    last_ms: u64,
    next_seq: u64,
    /// Events that the shim numbered and the file does not contain.
    missing: u64,
    boot: Boot,
    stop: StopTimeline,
    life: Life,
}

impl Recorder {
    /// Starts a record at the time of `first`. The caller passes `first` to `record` as well.
    pub(crate) fn new(first: &Event) -> Self {
        // The first event of a shim has `seq` 0. A rotated file may begin with a later one, and
        // then the time before it is unknown.
        let begin_ms = if first.seq == 0 { 0 } else { first.elapsed_ms };
        Self {
            box_id: PlainText::default(),
            image: None,
            version: None,
            started: PlainText::new(&first.time, NAME_CHARS),
            begin_ms,
            last_ms: begin_ms,
            next_seq: first.seq,
            missing: 0,
            boot: Boot::default(),
            stop: StopTimeline::default(),
            life: Life::new(begin_ms),
        }
    }

    /// Records the next event.
    pub(crate) fn record(&mut self, event: &Event) {
        // A damaged file may have times that go back. All spans rely on times that do not.
        let ms = event.elapsed_ms.max(self.last_ms);
        self.last_ms = ms;
        self.missing = self.missing.saturating_add(event.seq.saturating_sub(self.next_seq));
        self.next_seq = event.seq.saturating_add(1);
        self.box_id = PlainText::new(&event.box_id, NAME_CHARS);
        match &event.kind {
            EventKind::ShimStarted { version, .. } => {
                self.version = Some(PlainText::new(version, NAME_CHARS));
            }
            EventKind::ImageResolved { image, reference, .. } => {
                let digest = || PlainText::new(image, DIGEST_CHARS);
                let name = reference.as_ref().map(|name| PlainText::new(name, NAME_CHARS));
                self.image = Some(name.unwrap_or_else(digest));
            }
            EventKind::RootfsReady { image: Some(image), .. } => {
                self.image.get_or_insert_with(|| PlainText::new(image, DIGEST_CHARS));
            }
            _ => {}
        }
        self.boot.record(ms, &event.kind);
        self.stop.record(ms, &event.kind);
        self.life.record(ms, event);
    }

    /// Returns the timeline of the recorded events.
    pub(crate) fn finish(self, run: RunNumber) -> Timeline {
        let life = Span::new(self.begin_ms, self.last_ms);
        let stop_ms = self.stop.begin_ms().filter(|ms| *ms <= life.to_ms);
        // A box that was not ready when its stop began never became ready: its boot ended there.
        let boot_end_ms = self.boot.ready_ms.or(stop_ms).unwrap_or(life.to_ms);
        let (grid, totals, marks, mut notes) = self.life.finish(life.to_ms);
        if self.begin_ms > 0 {
            let text = "the file begins here; the file before it has the rest".to_owned();
            let time = self.started.clone();
            notes.insert(0, Note { at_ms: life.from_ms, time, weight: Weight::Neutral, text });
        }
        if self.missing > 0 {
            let text = format!("{} events are not in the file", self.missing);
            let time = PlainText::default();
            notes.push(Note { at_ms: life.to_ms, time, weight: Weight::Neutral, text });
        }
        // A file without its beginning may still have the boot's durations, from the metrics.
        let has_boot = self.begin_ms == 0 || self.boot.ready_ms.is_some();
        // Preparing an image and maintenance run no box, so they have no stop.
        let is_without_box = self.stop.ending() == RunOutcome::Done;
        Timeline {
            run,
            box_id: self.box_id,
            image: self.image,
            version: self.version,
            started: self.started,
            life,
            boot_end_ms,
            is_ready: self.boot.ready_ms.is_some(),
            boot: if has_boot { self.boot.bars(boot_end_ms) } else { Vec::new() },
            stop: if is_without_box { Vec::new() } else { self.stop.bars(life.to_ms) },
            grid,
            totals,
            marks,
            notes,
            ending: self.stop.ending(),
        }
    }
}
