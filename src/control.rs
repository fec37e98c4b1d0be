//! The control thread: everything that happens while the VM runs.
//!
//! ```text
//!  signals ──────────┐
//!  guest (vsock) ────┤                         ┌──► events
//!  health (gRPC) ────┼──► Monitor::run, ───────┼──► Stop, Kill, Acknowledged to the guest
//!  deadlines ────────┤    one select loop      └──► exit status, to the `_exit` hook
//!  liveness ─────────┤
//!  gate and passt ───┤
//!  libkrun's _exit ──┘                         └──► READY, STOPPING, WATCHDOG to the service manager
//! ```
//!
//! One thread with one current-thread runtime owns all of it, so that no two things can happen at
//! once. When the VM ends by itself, libkrun calls `_exit` on the main thread: the hook hands the
//! code over and waits for the exit status. When the VM does not end by itself, this thread ends
//! the process.

mod agent;
mod deadlines;
mod health;
mod line;
mod link;
mod liveness;
mod monitor;
mod stopping;
mod throttle;
mod usage;
mod verdict;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use a3s_box_core::{ErrorReport, exit};
use tokio::sync::mpsc;

use self::monitor::Monitor;
pub(crate) use self::stopping::Stopping;
use crate::console::Relay;
use crate::host::process::Signals;
use crate::machine::Guest;
use crate::network::Carrier;
use crate::report::events::EventWriter;
use crate::report::service_manager::ServiceManager;
use crate::spec::VmSpec;
use crate::state::dir::StateDir;

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

/// What the main thread tells.
#[derive(Debug)]
pub(crate) enum VmNews {
    /// It enters libkrun now.
    Entering,
    /// libkrun called `_exit` with this code.
    Exited(i32),
    /// libkrun refused to start.
    Refused(ErrorReport),
}

/// What the control thread needs.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) spec: &'a VmSpec,
    pub(crate) state: &'a StateDir,
    pub(crate) guest: &'a Guest,
    pub(crate) console: Relay,
    pub(crate) carrier: Option<Carrier>,
    pub(crate) signals: Signals,
    pub(crate) supervisor: ServiceManager,
    pub(crate) events: Arc<EventWriter>,
    pub(crate) configured_ms: u64,
}

/// The running control thread, as the main thread sees it.
#[derive(Debug)]
pub(crate) struct Control {
    vm_news: mpsc::UnboundedSender<VmNews>,
    /// What the process ends with should the control thread know it and not come to it.
    exit_status: Arc<AtomicU8>,
}

impl Control {
    /// Starts the thread. From here on only it ends the process.
    pub(crate) fn start(setup: Setup<'_>) -> Result<Self, ControlError> {
        let socket = setup.state.control_socket();
        let listener = UnixListener::bind(&socket)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| ControlError::Listen { path: socket, source })?;
        let (vm_news, news) = mpsc::unbounded_channel();
        let exit_status = Arc::new(AtomicU8::new(exit::FAILED));
        let monitor = Monitor::new(setup, listener, news, Arc::clone(&exit_status));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ControlError::Thread)?;
        thread::Builder::new()
            .name("control".into())
            .spawn(move || runtime.block_on(monitor.run()))
            .map_err(ControlError::Thread)?;
        Ok(Self { vm_news, exit_status })
    }

    /// To be called right before libkrun is entered: lets its `_exit` end the process with the
    /// control thread's verdict.
    pub(crate) fn entering(&self) {
        let (news, exit_status) = (self.vm_news.clone(), Arc::clone(&self.exit_status));
        // Without a receiver the control thread is ending the process already.
        let _ending = news.send(VmNews::Entering);
        a3s_box_krun::exit::intercept(move |code| {
            hand_over(&news, VmNews::Exited(code));
            exit_status.load(Ordering::Acquire)
        });
    }

    /// Tells that libkrun refused the machine, and ends the process.
    pub(crate) fn finish(self, report: ErrorReport) -> ! {
        hand_over(&self.vm_news, VmNews::Refused(report));
        a3s_box_sys::exit::now(exit::FAILED)
    }
}

/// Gives the control thread the time to end the process. Comes back only if it does not.
fn hand_over(vm_news: &mpsc::UnboundedSender<VmNews>, end: VmNews) {
    // Without a receiver the control thread is ending the process already.
    let _ending = vm_news.send(end);
    thread::sleep(VERDICT_TIMEOUT);
}
