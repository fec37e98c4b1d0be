//! The log: records of `tracing` and of libkrun's `log`, in the journal or as lines on standard
//! error.
//!
//! | variable | values |
//! |---|---|
//! | `A3S_BOX_LOG` | `off`, `error`, `warn` (default), `info`, `debug`, `trace` |
//! | `A3S_BOX_LOG_TO` | `journal`, `stderr`; absent: the journal if standard error is connected to it |
//! | `A3S_BOX_LOG_FORMAT` | the form on standard error: `text` (default), `json` |
//!
//! Every record names the box and its phase. Both are kept for the process and not in a span, so
//! that records of libkrun's threads have them as well. The output of the guest kernel is logged
//! only from level `info` on, because a guest can print without limit.
//!
//! # Invariants
//! A record that cannot be written without blocking is lost, because libkrun logs on threads that
//! the VM waits for.

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

/// Target of libkrun's records about vsock connections. libkrun logs a warning at the end of each
/// connection, which is no sign of a problem (`muxer_thread.rs`, 1.19.7).
const VSOCK: &str = "krun_devices::virtio::vsock";

static BOX_ID: OnceLock<String> = OnceLock::new();
static PHASE: AtomicUsize = AtomicUsize::new(Phase::Config as usize);
static JOURNAL: OnceLock<Journal> = OnceLock::new();

/// Returns the current phase.
fn current_phase() -> Phase {
    Phase::ALL.get(PHASE.load(Ordering::Relaxed)).copied().unwrap_or(Phase::Stopping)
}

/// Sets up the log of the whole process. An invalid setting counts as absent and is logged as a
/// warning.
///
/// Callers must not have started a thread, because [`Journal::open`] finds its socket by comparing
/// the process's fds before and after, which a thread could change.
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
    // `try_init` also installs the bridge for records of the crate `log`, which libkrun uses.
    // It fails only if a logger is installed already, which then stays.
    let _installed =
        tracing_subscriber::registry().with(targets(level_filter)).with(sink).try_init();
    // The warnings come last, because the log must be installed before it can take them.
    for invalid in [level.invalid, form.invalid, place.invalid].into_iter().flatten() {
        tracing::warn!("unknown {invalid}");
    }
    if let Err(error) = journal {
        tracing::warn!("no journal, so the log is on standard error: {error}");
    }
}

/// Returns the path of the journal's socket if records are sent to the journal. A process that
/// changes its root must keep this path.
pub(crate) fn journal_socket() -> Option<&'static Path> {
    JOURNAL.get().map(|_| Path::new(journal::SOCKET))
}

/// Sets the box id of all later records. Only the first call has an effect.
pub(crate) fn name(box_id: &str) {
    let named = BOX_ID.set(box_id.to_owned());
    let (Ok(()), Some(journal)) = (named, JOURNAL.get()) else { return };
    if let Err(error) = journal.name(box_id) {
        tracing::warn!("the journal is lost, so the log is on standard error: {error}");
    }
}

/// Sets the phase of all later records. A call with an earlier phase has no effect.
pub(crate) fn enter(phase: Phase) {
    // Threads can set phases in any order: the control thread sets `Stopping` during a boot.
    let before = PHASE.fetch_max(phase as usize, Ordering::Relaxed);
    if before < phase as usize {
        tracing::info!("phase {}", phase.name());
    }
}

/// Returns the filter of records for a level.
fn targets(level: LevelFilter) -> Targets {
    let kernel = if level >= LevelFilter::INFO { level } else { LevelFilter::OFF };
    let vsock = if level >= LevelFilter::INFO { level } else { level.min(LevelFilter::ERROR) };
    Targets::new().with_default(level).with_target(GUEST_KERNEL, kernel).with_target(VSOCK, vsock)
}

/// The value of an environment variable, or a text that shows its invalid value.
struct Setting<T> {
    value: Option<T>,
    invalid: Option<String>,
}

fn setting<T>(name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Setting<T> {
    let text = env::var_os(name).filter(|text| !text.is_empty());
    let text = text.map(|text| text.to_string_lossy().into_owned());
    let value = text.as_deref().and_then(parse);
    let invalid = text.filter(|_| value.is_none()).map(|text| format!("{name}={text}"));
    Setting { value, invalid }
}

/// Where records are written to.
#[derive(Clone, Copy)]
enum Place {
    Journal,
    Stderr,
}

impl Place {
    /// Returns the journal if standard error is connected to it: systemd sets `$JOURNAL_STREAM` to
    /// the device and inode of that connection (systemd.exec(5)).
    fn of_stderr() -> Self {
        let stream = env::var("JOURNAL_STREAM").unwrap_or_default();
        match fstat(std::io::stderr().as_fd()) {
            Ok(file) if stream == format!("{}:{}", file.st_dev, file.st_ino) => Self::Journal,
            _ => Self::Stderr,
        }
    }
}

/// Writes each record to the journal or to standard error.
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
        let phase = current_phase();
        match JOURNAL.get().and_then(|journal| journal.for_events(phase)) {
            Some(journal) => journal.on_event(event, context),
            None => self.0.write(event, BOX_ID.get().map_or("", String::as_str), phase),
        }
    }
}
