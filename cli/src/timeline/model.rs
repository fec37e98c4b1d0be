//! What happened to a box, as a person wants to know it.

use a3s_box_core::event::StopReason;
use a3s_box_core::exit;
use serde::Serialize;

use super::grid::{Activity, Grid, Health, MarkKind};
use super::plain::Plain;
use super::span::Span;

/// One run of a box.
#[derive(Debug)]
pub(crate) struct Timeline {
    pub(crate) run: RunNumber,
    pub(crate) box_id: Plain,
    /// What the image was asked for by, else the start of its digest.
    pub(crate) image: Option<Plain>,
    /// Version of the shim.
    pub(crate) version: Option<Plain>,
    /// Wall clock of the first event.
    pub(crate) started: Plain,
    /// What the file tells about. It begins later than at 0 if the file does.
    pub(crate) life: Span,
    /// When the box was ready, else when its boot failed or was given up.
    pub(crate) boot_end_ms: u64,
    pub(crate) is_ready: bool,
    /// Phases of the boot and layers, in the order of their start.
    pub(crate) boot: Vec<Bar>,
    /// Steps of the stop, in their order.
    pub(crate) stop: Vec<Bar>,
    pub(crate) grid: Grid,
    pub(crate) totals: Totals,
    /// The first marks with their exact times, for the boot, where a cell may be too coarse.
    pub(crate) marks: Vec<(u64, MarkKind)>,
    /// What is to be told in words, by time.
    pub(crate) notes: Vec<Note>,
    pub(crate) ending: RunOutcome,
}

/// Which run in the file, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunNumber {
    pub(crate) number: u64,
    pub(crate) of: u64,
}

/// A phase, layer or step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) kind: BarKind,
    pub(crate) label: String,
    /// More about it; empty if there is no more.
    pub(crate) detail: String,
    pub(crate) span: Span,
    /// How long it took: as long as its span, unless it stands for several.
    pub(crate) took_ms: u64,
    /// Whether its end is known: else the events end, or the boot failed, while it went on.
    pub(crate) is_finished: bool,
}

/// What a bar is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarKind {
    Config,
    Rootfs,
    Layer,
    Vm,
    Kernel,
    Agent,
    Grace,
    Kill,
    Shutdown,
}

/// Time in each state, exact however coarse the grid is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) activity_ms: [u64; Activity::ALL.len()],
    pub(crate) health_ms: [u64; Health::ALL.len()],
}

impl Totals {
    pub(crate) fn activity(&self, of: Activity) -> u64 {
        self.activity_ms[of as usize]
    }

    pub(crate) fn health(&self, of: Health) -> u64 {
        self.health_ms[of as usize]
    }
}

/// Something told in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) at_ms: u64,
    /// Wall clock.
    pub(crate) time: Plain,
    pub(crate) weight: Weight,
    pub(crate) text: String,
}

/// How much a note matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    Bad,
    Good,
    Neutral,
}

/// The last word of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunOutcome {
    /// `box.stopped`.
    Stopped { reason: StopReason, exit_code: Option<u8>, signal: Option<u8> },
    /// The shim was not to run a box, and did what it was to do.
    Done,
    /// There is none.
    Open,
}

impl RunOutcome {
    pub(crate) fn is_bad(self) -> bool {
        match self {
            Self::Stopped { reason, .. } => {
                !matches!(reason, StopReason::Exited | StopReason::Stopped)
            }
            Self::Done => false,
            Self::Open => true,
        }
    }

    pub(crate) fn text(self) -> String {
        match self {
            Self::Done => "done".to_owned(),
            Self::Open => "no last event: the shim was killed, or still runs".to_owned(),
            Self::Stopped { reason, exit_code, signal } => {
                let how = match reason {
                    StopReason::Exited => "ended by itself",
                    StopReason::Stopped => "stopped as asked",
                    StopReason::Timeout => "ended by its timeout",
                    StopReason::Unhealthy => "ended as unhealthy",
                    StopReason::Failed => "failed",
                    StopReason::Killed => "killed",
                    _ => "ended",
                };
                let mut text = how.to_owned();
                if let Some(signal) = signal {
                    text.push_str(&format!(", signal {signal}"));
                }
                // The usual status after a signal says nothing more than the signal.
                let told = exit_code.filter(|code| signal.map(exit::for_signal) != Some(*code));
                if let Some(code) = told {
                    text.push_str(&format!(", exit status {code}"));
                }
                text
            }
        }
    }
}

/// The name of a value of the contract, as it is on the wire.
pub(crate) fn wire_name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        // Only names are asked for.
        _ => String::new(),
    }
}
