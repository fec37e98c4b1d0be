//! Events of one run in, its [`Timeline`] out, in bounded memory.

use a3s_box_core::Event;
use a3s_box_core::event::EventKind;

use super::boot::Boot;
use super::life::Life;
use super::model::{Note, RunNumber, RunOutcome, Timeline, Weight};
use super::plain::Plain;
use super::span::Span;
use super::stop::StopTimeline;

/// Characters of an id, version, reference or time that are shown.
const NAME_CHARS: usize = 64;

/// Characters of a digest that tell images apart, its algorithm included.
const DIGEST_CHARS: usize = "sha256:0123456789ab".len();

/// One run, so far.
#[derive(Debug)]
pub(crate) struct Recorder {
    box_id: Plain,
    image: Option<Plain>,
    version: Option<Plain>,
    started: Plain,
    begin_ms: u64,
    last_ms: u64,
    next_seq: u64,
    /// Lines that the file does not have, though the shim wrote them.
    missing: u64,
    boot: Boot,
    stop: StopTimeline,
    life: Life,
}

impl Recorder {
    /// Begins with `first`, which is still to be recorded.
    pub(crate) fn new(first: &Event) -> Self {
        // A file that was rotated begins anywhere.
        let begin_ms = if first.seq == 0 { 0 } else { first.elapsed_ms };
        Self {
            box_id: Plain::default(),
            image: None,
            version: None,
            started: Plain::new(&first.time, NAME_CHARS),
            begin_ms,
            last_ms: begin_ms,
            next_seq: first.seq,
            missing: 0,
            boot: Boot::default(),
            stop: StopTimeline::default(),
            life: Life::new(begin_ms),
        }
    }

    /// Takes the next event. Its time is not before that of the one before it.
    pub(crate) fn record(&mut self, event: &Event) {
        let ms = event.elapsed_ms.max(self.last_ms);
        self.last_ms = ms;
        self.missing = self.missing.saturating_add(event.seq.saturating_sub(self.next_seq));
        self.next_seq = event.seq.saturating_add(1);
        self.box_id = Plain::new(&event.box_id, NAME_CHARS);
        match &event.kind {
            EventKind::ShimStarted { version, .. } => {
                self.version = Some(Plain::new(version, NAME_CHARS));
            }
            EventKind::ImageResolved { image, reference, .. } => {
                let digest = || Plain::new(image, DIGEST_CHARS);
                let name = reference.as_ref().map(|name| Plain::new(name, NAME_CHARS));
                self.image = Some(name.unwrap_or_else(digest));
            }
            EventKind::RootfsReady { image: Some(image), .. } => {
                self.image.get_or_insert_with(|| Plain::new(image, DIGEST_CHARS));
            }
            _ => {}
        }
        self.boot.record(ms, &event.kind);
        self.stop.record(ms, &event.kind);
        self.life.record(ms, event);
    }

    /// All that is known.
    pub(crate) fn finish(self, run: RunNumber) -> Timeline {
        let life = Span::new(self.begin_ms, self.last_ms);
        let stop_ms = self.stop.begin_ms().filter(|ms| *ms <= life.to_ms);
        // What the box did not reach before it was to stop, it did not reach.
        let boot_end_ms = self.boot.ready_ms.or(stop_ms).unwrap_or(life.to_ms);
        let (grid, totals, marks, mut notes) = self.life.finish(life.to_ms);
        if self.begin_ms > 0 {
            let text = "the file begins here; the file before it has the rest".to_owned();
            let time = self.started.clone();
            notes.insert(0, Note { at_ms: life.from_ms, time, weight: Weight::Neutral, text });
        }
        if self.missing > 0 {
            let text = format!("{} events are not in the file", self.missing);
            let time = Plain::default();
            notes.push(Note { at_ms: life.to_ms, time, weight: Weight::Neutral, text });
        }
        let has_boot = self.begin_ms == 0 || self.boot.ready_ms.is_some();
        let is_upkeep = self.stop.ending() == RunOutcome::Done;
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
            stop: if is_upkeep { Vec::new() } else { self.stop.bars(life.to_ms) },
            grid,
            totals,
            marks,
            notes,
            ending: self.stop.ending(),
        }
    }
}
