//! The facts of one run of a box that a page shows, independent of how they are drawn.

use a3s_box_core::event::StopReason;
use a3s_box_core::exit;
use serde::Serialize;

use super::grid::{Activity, Grid, Health, MarkKind};
use super::plain::PlainText;
use super::span::Span;

/// One run of a box.
#[derive(Debug)]
pub(crate) struct Timeline {
    pub(crate) run: RunNumber,
    pub(crate) box_id: PlainText,
    /// Reference of the image in the config, or the start of its digest if there is none.
    pub(crate) image: Option<PlainText>,
    /// Version of the shim.
    pub(crate) version: Option<PlainText>,
    /// Wall clock time of the first event.
    pub(crate) started: PlainText,
    /// The time that the file covers. It begins after 0 if the file has lost its beginning.
    pub(crate) life: Span,
    /// When the box was ready, or when its boot failed or was aborted.
    pub(crate) boot_end_ms: u64,
    pub(crate) is_ready: bool,
    /// Phases of the boot and layers, in the order of their start.
    pub(crate) boot: Vec<Bar>,
    /// Steps of the stop, in their order.
    pub(crate) stop: Vec<Bar>,
    pub(crate) grid: Grid,
    pub(crate) totals: Totals,
    /// The first marks with their exact times. The boot needs them, as a cell may be too coarse.
    pub(crate) marks: Vec<(u64, MarkKind)>,
    /// Notes in words, by time.
    pub(crate) notes: Vec<Note>,
    pub(crate) ending: RunOutcome,
}

/// The number of a run in the file, from 1, and the number of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunNumber {
    pub(crate) number: u64,
    pub(crate) of: u64,
}

/// A phase of the boot, a layer, or a step of the stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) kind: BarKind,
    pub(crate) label: String,
    /// A description; may be empty.
    pub(crate) detail: String,
    pub(crate) span: Span,
    /// Duration. It differs from the length of the span if the bar stands for several layers.
    pub(crate) took_ms: u64,
    /// Whether its end is known. It is not if the events end or the boot fails before it.
    pub(crate) is_finished: bool,
}

/// What a bar stands for.
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

/// Time in each state. It is exact, unlike the grid, whose cells may be long.
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

/// An event described in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) at_ms: u64,
    /// Wall clock time.
    pub(crate) time: PlainText,
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

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunOutcome {
    /// The last event is `box.stopped`.
    Stopped { reason: StopReason, exit_code: Option<u8>, signal: Option<u8> },
    /// The shim completed a task that runs no box, such as preparing an image or `--gc`.
    Done,
    /// The events end without an ending.
    Open,
}

impl RunOutcome {
    /// Returns whether the ending is shown as a failure.
    pub(crate) fn is_bad(self) -> bool {
        match self {
            Self::Stopped { reason, .. } => {
                !matches!(reason, StopReason::Exited | StopReason::Stopped)
            }
            Self::Done => false,
            Self::Open => true,
        }
    }

    /// Describes the ending in a few words.
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
                    // The enum is non-exhaustive: later versions may add reasons.
                    _ => "ended",
                };
                let mut text = how.to_owned();
                if let Some(signal) = signal {
                    text.push_str(&format!(", signal {signal}"));
                }
                // The exit status that a signal implies adds nothing to the signal.
                let shown = exit_code.filter(|code| signal.map(exit::for_signal) != Some(*code));
                if let Some(code) = shown {
                    text.push_str(&format!(", exit status {code}"));
                }
                text
            }
        }
    }
}

/// Returns the JSON name of a unit variant of the contract.
pub(crate) fn wire_name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        // All callers pass unit variants, which serialise to strings.
        _ => String::new(),
    }
}
