//! Everything that the control thread waits for.

use std::io;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use a3s_box_core::event::{EventKind, GuestMetrics, ProcessMetrics};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::deadlines::{Deadlines, Due};
use super::health::{Check, Checks};
use super::link::{Link, LinkEvent};
use super::metrics::Metrics;
use super::setup::VmNews;
use super::watch::Watch;
use crate::console::Truncation;
use crate::host::process::{Signals, StopRequest};
use crate::network::{Carrier, Refusals};

/// Time between two looks at a slow reader of events and at the console, which cannot wake this
/// thread.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// One thing that has happened.
#[derive(Debug)]
pub(super) enum Input {
    /// A stop was requested.
    Stop(StopRequest),
    /// The guest sent a message, or its connection ended.
    Guest(LinkEvent),
    /// A health check ended.
    Checked(Check),
    /// The guest has halted.
    Halted,
    /// Figures were gathered.
    Figures(ProcessMetrics, Option<GuestMetrics>),
    /// The console has discarded output.
    Truncated(Truncation),
    /// An event that was held back is due.
    Throttled,
    /// A deadline has passed.
    Due(Due),
    /// The main thread has news.
    Vm(VmNews),
    /// The guest's network has ended, with the last words of its process.
    NetworkLost(String),
    /// The gate has refused a destination of the guest.
    Refused(EventKind),
    /// It is time to look at what cannot wake this thread.
    Tick,
}

/// The sources that only this module reads.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) link: Link,
    signals: AsyncFd<Signals>,
    vm_news: mpsc::UnboundedReceiver<VmNews>,
    truncated: watch::Receiver<Option<Truncation>>,
    network: Option<JoinHandle<String>>,
    refusals: Option<Refusals>,
}

/// The sources, before there is a runtime.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) listener: UnixListener,
    pub(super) signals: Signals,
    pub(super) vm_news: mpsc::UnboundedReceiver<VmNews>,
    pub(super) truncated: watch::Receiver<Option<Truncation>>,
    pub(super) carrier: Option<Carrier>,
}

/// The sources that the parts of the loop own, and when the loop must wake.
#[derive(Debug)]
pub(super) struct Wakeups<'a> {
    pub(super) deadlines: &'a mut Deadlines,
    pub(super) watch: &'a mut Watch,
    pub(super) metrics: &'a mut Metrics,
    /// The time at which an event that was held back is due.
    pub(super) throttled: Option<Instant>,
    /// Whether a truncation is held back. Later ones can wait until it was emitted.
    pub(super) holds_truncation: bool,
    /// Whether something must be looked at that cannot wake this thread.
    pub(super) is_ticking: bool,
}

impl Inputs {
    /// Registers the sources with the runtime of the calling task.
    pub(super) fn new(sources: Sources) -> io::Result<Self> {
        let Sources { listener, signals, vm_news, truncated, mut carrier } = sources;
        #[expect(
            deprecated,
            reason = "`register` is unsafe; `Signals` owns its fd, as `new` needs"
        )]
        let signals = AsyncFd::new(signals)?;
        let refusals = carrier.as_mut().map(Carrier::take_refusals).transpose()?.flatten();
        let network = carrier.map(|carrier| tokio::spawn(carrier.end()));
        let link = Link::listen(listener)?;
        Ok(Self { link, signals, vm_news, truncated, network, refusals })
    }

    /// Waits for the next input. The guest's messages come last, because the guest can send them
    /// without end, and they must not delay anything else. What the gate refused comes just before
    /// them, so that the stream has it before an ending that it may have caused.
    pub(super) async fn next(&mut self, wakeups: Wakeups<'_>) -> io::Result<Input> {
        let Wakeups { deadlines, watch, metrics, .. } = wakeups;
        tokio::select! {
            biased;
            // The main thread waits in the `_exit` hook for a limited time, so its news come first.
            Some(news) = self.vm_news.recv() => Ok(Input::Vm(news)),
            guard = self.signals.readable() => {
                let mut guard = guard?;
                let request = guard.get_inner().next();
                // Several signals may wait in the fd. It stays ready until it is empty.
                if request.is_none() {
                    guard.clear_ready();
                }
                Ok(request.map_or(Input::Tick, Input::Stop))
            }
            due = deadlines.next() => Ok(Input::Due(due)),
            _halted = finished(&mut watch.liveness) => Ok(Input::Halted),
            Some((process, guest)) = finished(&mut metrics.gathering) => {
                Ok(Input::Figures(process, guest))
            }
            Some(last_words) = finished(&mut self.network) => Ok(Input::NetworkLost(last_words)),
            () = reached(wakeups.throttled) => Ok(Input::Throttled),
            () = sleep(TICK), if wakeups.is_ticking => Ok(Input::Tick),
            check = next_check(&mut watch.checks) => Ok(Input::Checked(check)),
            Ok(()) = self.truncated.changed(), if !wakeups.holds_truncation => {
                let truncation = *self.truncated.borrow_and_update();
                Ok(truncation.map_or(Input::Tick, Input::Truncated))
            }
            refused = next_refusal(&mut self.refusals) => Ok(Input::Refused(refused)),
            event = self.link.next() => Ok(Input::Guest(event)),
        }
    }
}

/// Waits for a task to end, and forgets it. Waits for ever if there is none. Returns nothing if the
/// task was cancelled.
async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> Option<T> {
    match task {
        None => std::future::pending().await,
        Some(handle) => {
            // No task panics, because a panic aborts the process, and none is cancelled.
            let done = handle.await.ok();
            *task = None;
            done
        }
    }
}

async fn next_check(checks: &mut Option<Checks>) -> Check {
    match checks {
        None => std::future::pending().await,
        Some(checks) => checks.next().await,
    }
}

async fn next_refusal(refusals: &mut Option<Refusals>) -> EventKind {
    match refusals {
        None => std::future::pending().await,
        Some(refusals) => refusals.next().await,
    }
}

async fn reached(at: Option<Instant>) {
    match at {
        None => std::future::pending().await,
        Some(at) => sleep_until(at).await,
    }
}
