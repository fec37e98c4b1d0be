//! The log: `tracing`, and libkrun's `log` records, in the journal or as lines on standard error.
//!
//! | variable | values |
//! |---|---|
//! | `A3S_BOX_LOG` | `off`, `error`, `warn` (default), `info`, `debug`, `trace` |
//! | `A3S_BOX_LOG_TO` | `journal`, `stderr`; absent: the journal where standard error is connected to it |
//! | `A3S_BOX_LOG_FORMAT` | the form on standard error: `text` (default), `json` |
//!
//! Every record names the box and the phase that it is in, also one of a thread of libkrun: both are
//! the process's, not a span's. What the guest's kernel prints is shown from `info` on: its amount is
//! the guest's to choose.
//!
//! # Invariants
//! libkrun logs on threads that the VM waits for: a record that cannot be written at once is lost.

mod journal;
mod lines;
mod phase;

use std::env;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::stat::fstat;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use self::journal::Journal;
use self::lines::{Form, Lines};
pub(crate) use self::phase::Phase;

/// Target of libkrun's records that hold the guest's console (`port_io.rs`, libkrun 1.19.7).
const GUEST_KERNEL: &str = "init_or_kernel";

/// Target of libkrun's records about vsock connections: at each end of one it warns that it forgets
/// the connection a little later (`muxer_thread.rs`, 1.19.7).
const VSOCK: &str = "krun_devices::virtio::vsock";

static BOX_ID: OnceLock<String> = OnceLock::new();
static PHASE: AtomicUsize = AtomicUsize::new(Phase::Config as usize);
static JOURNAL: OnceLock<Journal> = OnceLock::new();

/// The phase that the process is in.
fn phase() -> Phase {
    Phase::ALL.get(PHASE.load(Ordering::Relaxed)).copied().unwrap_or(Phase::Stopping)
}

/// Sets the log up for the whole process; to be called before any thread exists. A setting that is
/// wrong counts as absent, and is warned of.
pub(crate) fn install() {
    let level = setting("A3S_BOX_LOG", |text| text.parse().ok());
    let form = setting("A3S_BOX_LOG_FORMAT", |text| match text {
        "text" => Some(Form::Text),
        "json" => Some(Form::Json),
        _ => None,
    });
    let place = setting("A3S_BOX_LOG_TO", |text| match text {
        "journal" => Some(Place::Journal),
        "stderr" => Some(Place::Stderr),
        _ => None,
    });
    let journal = match place.value.unwrap_or_else(Place::of_stderr) {
        Place::Journal => Journal::open().map(|journal| _ = JOURNAL.get_or_init(|| journal)),
        Place::Stderr => Ok(()),
    };
    let level_filter = level.value.unwrap_or(LevelFilter::WARN);
    let sink = Sink(Lines::new(form.value.unwrap_or(Form::Text)));
    // Only fails when a logger exists already, which then goes on.
    let _installed =
        tracing_subscriber::registry().with(targets(level_filter)).with(sink).try_init();
    for wrong in [level.wrong, form.wrong, place.wrong].into_iter().flatten() {
        tracing::warn!("unknown {wrong}");
    }
    if let Err(error) = journal {
        tracing::warn!("no journal, so the log is on standard error: {error}");
    }
}

/// Where the journal's records are sent to, if that is where they go.
pub(crate) fn journal_socket() -> Option<&'static Path> {
    JOURNAL.get().map(|_| Path::new(journal::SOCKET))
}

/// Names the box in all later records. Only the first name counts.
pub(crate) fn name(box_id: &str) {
    let named = BOX_ID.set(box_id.to_owned());
    let (Ok(()), Some(journal)) = (named, JOURNAL.get()) else { return };
    if let Err(error) = journal.name(box_id) {
        tracing::warn!("the journal is lost, so the log is on standard error: {error}");
    }
}

/// Says in all later records that the box is in this phase. It never goes back to an earlier one.
pub(crate) fn enter(phase: Phase) {
    let before = PHASE.fetch_max(phase as usize, Ordering::Relaxed);
    if before < phase as usize {
        tracing::info!("phase {}", phase.name());
    }
}

/// Which records are kept.
fn targets(level: LevelFilter) -> Targets {
    let kernel = if level >= LevelFilter::INFO { level } else { LevelFilter::OFF };
    let vsock = if level >= LevelFilter::INFO { level } else { level.min(LevelFilter::ERROR) };
    Targets::new().with_default(level).with_target(GUEST_KERNEL, kernel).with_target(VSOCK, vsock)
}

/// An environment variable: its value, or what is wrong with it.
struct Setting<T> {
    value: Option<T>,
    wrong: Option<String>,
}

fn setting<T>(name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Setting<T> {
    let text = env::var_os(name).filter(|text| !text.is_empty());
    let text = text.map(|text| text.to_string_lossy().into_owned());
    let value = text.as_deref().and_then(parse);
    let wrong = text.filter(|_| value.is_none()).map(|text| format!("{name}={text}"));
    Setting { value, wrong }
}

/// Where records go.
#[derive(Clone, Copy)]
enum Place {
    Journal,
    Stderr,
}

impl Place {
    /// Where standard error leads: `$JOURNAL_STREAM` names its device and inode where it is the
    /// journal (systemd.exec(5)).
    fn of_stderr() -> Self {
        let stream = env::var("JOURNAL_STREAM").unwrap_or_default();
        match fstat(std::io::stderr().as_fd()) {
            Ok(file) if stream == format!("{}:{}", file.st_dev, file.st_ino) => Self::Journal,
            _ => Self::Stderr,
        }
    }
}

/// Hands each record to the journal, or to standard error.
struct Sink(Lines);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Sink {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(journal) = JOURNAL.get() {
            journal.for_spans().on_new_span(attributes, id, context);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(journal) = JOURNAL.get() {
            journal.for_spans().on_record(id, values, context);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let phase = phase();
        match JOURNAL.get().and_then(|journal| journal.for_events(phase)) {
            Some(journal) => journal.on_event(event, context),
            None => self.0.write(event, BOX_ID.get().map_or("", String::as_str), phase),
        }
    }
}
