//! The control thread: everything that happens while the VM runs.
//!
//! ```text
//!  signals ──────────┐
//!  guest (vsock) ────┤                            ┌──► events
//!  health (gRPC) ────┼──► Monitor: input ─► part, ┼──► messages to the guest
//!  deadlines ────────┤    decisions ◄────┘  loop  ├──► deadlines
//!  liveness ─────────┤                            ├──► service manager, log
//!  gate and passt ───┤                            └──► exit status, to the `_exit` hook
//!  libkrun's _exit ──┘
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `monitor`, `inputs`, `decision` | the loop, what it waits for, what it carries out |
//! | `lifecycle` | the parts that follow a box through its life, and the order in which they decide |
//! | `readiness` | boot phases and the milestone that makes the box ready |
//! | `throttled`: `activity`, `reported`, `output` | the box's state, notifications, output: events the guest can cause without end |
//! | `watch`: `health`, `liveness` | health checks, and the probe for a halted guest |
//! | `stopping`, `stop_progress`, `verdict` | the way to the end, its steps, and how the box ended |
//! | `metrics`, `usage` | figures |
//! | `process_end` | exit record, last events, exit status |
//! | `link`, `agent`, `connection` | the two connections to the guest |
//!
//! One thread with one current-thread runtime owns all of it, so that no two things happen at the
//! same time. Each part owns its state and returns decisions; no part knows the loop.
//!
//! If the VM ends by itself, libkrun calls `_exit` on the main thread. The hook passes the code to
//! this thread and waits for the exit status. If the VM does not end by itself, this thread ends
//! the process.

mod activity;
mod agent;
mod connection;
mod deadlines;
mod decision;
mod health;
mod inputs;
mod lifecycle;
mod link;
mod liveness;
mod metrics;
mod monitor;
mod output;
mod process_end;
mod readiness;
mod reported;
mod setup;
mod stop_progress;
mod stopping;
mod throttle;
mod throttled;
mod usage;
mod verdict;
mod watch;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use a3s_box_core::{ErrorReport, exit};
use tokio::sync::mpsc;

use self::deadlines::{Deadlines, Due};
use self::inputs::Sources;
use self::lifecycle::Lifecycle;
use self::metrics::Metrics;
use self::monitor::Monitor;
use self::process_end::ProcessEnd;
use self::readiness::Readiness;
pub(crate) use self::setup::Setup;
use self::setup::VmNews;
pub(crate) use self::stop_progress::StopProgress;
use self::stopping::Stopping;
use self::throttled::Throttled;
use self::watch::Watch;

/// How long the `_exit` hook waits for the control thread, which itself waits for the console (2 s)
/// and for the reader of events (2 s).
const VERDICT_TIMEOUT: Duration = Duration::from_secs(10);

/// The control thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("cannot listen on `{}`", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot start the control thread")]
    Thread(#[source] io::Error),
}

/// The running control thread, as the main thread sees it.
#[derive(Debug)]
pub(crate) struct Control {
    vm_news: mpsc::UnboundedSender<VmNews>,
    /// The status that the process ends with if the control thread has decided it and does not end
    /// the process in time.
    exit_status: Arc<AtomicU8>,
}

impl Control {
    /// Starts the thread. From here on only it ends the process.
    pub(crate) fn start(setup: Setup<'_>) -> Result<Self, ControlError> {
        let socket = setup.state.control_socket();
        // The socket exists before the VM does, so that PID 1 can connect at its first attempt.
        let listener = UnixListener::bind(&socket)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| ControlError::Listen { path: socket, source })?;
        let (vm_news, news) = mpsc::unbounded_channel();
        let exit_status = Arc::new(AtomicU8::new(exit::FAILED));
        let (monitor, sources) = assemble(setup, listener, news, Arc::clone(&exit_status));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ControlError::Thread)?;
        thread::Builder::new()
            .name("control".into())
            .spawn(move || runtime.block_on(monitor.run(sources)))
            .map_err(ControlError::Thread)?;
        Ok(Self { vm_news, exit_status })
    }

    /// Makes libkrun's `_exit` end the process with the verdict of the control thread. Callers
    /// enter libkrun right after it.
    pub(crate) fn entering(&self) {
        let (news, exit_status) = (self.vm_news.clone(), Arc::clone(&self.exit_status));
        // The send fails only if the control thread is ending the process already.
        let _ending = news.send(VmNews::Entering);
        a3s_box_krun::exit::intercept(move |code| {
            hand_over(&news, VmNews::Exited(code));
            exit_status.load(Ordering::Acquire)
        });
    }

    /// Reports that libkrun has refused the machine, and ends the process.
    pub(crate) fn finish(self, report: ErrorReport) -> ! {
        hand_over(&self.vm_news, VmNews::Refused(report));
        a3s_box_sys::exit::now(exit::FAILED)
    }
}

/// Makes the loop with its parts, and the sources that it waits for.
fn assemble(
    setup: Setup<'_>,
    listener: UnixListener,
    vm_news: mpsc::UnboundedReceiver<VmNews>,
    exit_status: Arc<AtomicU8>,
) -> (Monitor, Sources) {
    let Setup { spec, state, guest, console, carrier, signals, .. } = setup;
    let Setup { service_manager, events, configured_ms, .. } = setup;
    let mut deadlines = Deadlines::default();
    deadlines.set(Due::Boot, spec.agent.boot_timeout);
    if let Some(timeout) = spec.timeout {
        // The timeout counts from the start of the shim, and the phases so far have used part of
        // it.
        deadlines.set(Due::Timeout, timeout.saturating_sub(events.elapsed()));
    }
    if let Some(interval) = service_manager.watchdog_interval() {
        deadlines.set(Due::Watchdog, interval);
    }
    let rootfs_ms = events.elapsed_ms().saturating_sub(configured_ms);
    let lifecycle = Lifecycle {
        readiness: Readiness::new(spec.agent.readiness, configured_ms, rootfs_ms),
        throttled: Throttled::new(),
        watch: Watch::new(state.agent_socket(), spec.agent.health),
        stopping: Stopping::new(guest.stop_signal, spec.stop_grace),
    };
    let truncated = console.truncation();
    let sources = Sources { listener, signals, vm_news, truncated, carrier };
    let metrics = Metrics::new(spec.events.metrics_interval);
    let end = ProcessEnd::new(exit_status, state.cleanup());
    let monitor = Monitor { events, service_manager, console, deadlines, lifecycle, metrics, end };
    (monitor, sources)
}

/// Sends the end of the VM to the control thread, which then ends the process. Returns only if the
/// control thread does not end it in time.
fn hand_over(vm_news: &mpsc::UnboundedSender<VmNews>, end: VmNews) {
    // The send fails only if the control thread is ending the process already.
    let _ending = vm_news.send(end);
    thread::sleep(VERDICT_TIMEOUT);
}
