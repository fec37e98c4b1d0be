//! Reaps all children. PID 1 becomes the parent of every orphan of the guest, and must reap it.
//!
//! No other code may wait for a child. It could take the wait status of the workload, which the
//! kernel returns only once.

use std::io;

use nix::libc::pid_t;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::yield_now;

use crate::syscall::{self, Reaped, Status};

/// Number of children that are reaped before other tasks run. Otherwise a guest full of processes
/// that start and end would keep PID 1 from reading the shim's orders.
const BATCH: usize = 64;

/// All children of this process: the workload and the orphans.
#[derive(Debug)]
pub(crate) struct Children {
    signal: Signal,
}

impl Children {
    /// Starts to catch SIGCHLD. Must be called before the first child starts.
    pub(crate) fn watch() -> io::Result<Self> {
        Ok(Self { signal: signal(SignalKind::child())? })
    }

    /// Reaps children until the child `pid` has ended, and returns its status.
    ///
    /// Loses no status when it is cancelled: the status is returned without another `await`.
    pub(crate) async fn wait_for(&mut self, pid: pid_t) -> Status {
        loop {
            match reap_batch(Some(pid)) {
                Batch::Found(status) => return status,
                // SIGCHLD may have come for all of them already, so this must not wait for it.
                Batch::Full => yield_now().await,
                Batch::Waiting | Batch::Empty => self.changed().await,
            }
        }
    }

    /// Reaps children for ever.
    pub(crate) async fn reap_forever(&mut self) {
        loop {
            match reap_batch(None) {
                Batch::Full => yield_now().await,
                Batch::Found(_) | Batch::Waiting | Batch::Empty => self.changed().await,
            }
        }
    }

    /// Reaps children until there are none.
    pub(crate) async fn wait_for_all(&mut self) {
        loop {
            match reap_batch(None) {
                Batch::Empty => return,
                Batch::Full => yield_now().await,
                Batch::Found(_) | Batch::Waiting => self.changed().await,
            }
        }
    }

    /// Waits for SIGCHLD. One signal can stand for several children, because the kernel does not
    /// queue it (`signal(7)`). Callers therefore reap until no child is left that has ended.
    async fn changed(&mut self) {
        // tokio never ends this stream, so the result cannot be `None`.
        let _ = self.signal.recv().await;
    }
}

/// The reason why a batch of reaping ended.
enum Batch {
    /// The wanted child has ended.
    Found(Status),
    /// [`BATCH`] children were reaped, and more may have ended.
    Full,
    /// No other child has ended.
    Waiting,
    /// There are no children.
    Empty,
}

/// Reaps up to [`BATCH`] children, and stops after the wanted one.
fn reap_batch(wanted: Option<pid_t>) -> Batch {
    for _ in 0..BATCH {
        match syscall::reap_any() {
            Reaped::Ended(pid, status) if Some(pid) == wanted => return Batch::Found(status),
            // The status of an orphan is of no interest, but a zombie would keep its PID.
            Reaped::Ended(..) => {}
            Reaped::NotYet => return Batch::Waiting,
            Reaped::NoChildren => return Batch::Empty,
        }
    }
    Batch::Full
}
