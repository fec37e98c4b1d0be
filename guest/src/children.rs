//! The one place that reaps: PID 1 is the parent of every orphan of the box.
//!
//! Nothing else may wait for a child, or the workload's status could go to someone who does
//! not report it.

use std::io;

use nix::libc::pid_t;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::yield_now;

use crate::syscall::{self, Reaped, Status};

/// How many are reaped before others get their turn: a box full of processes that start and
/// end must not keep PID 1 from hearing the shim.
const BATCH: usize = 64;

/// All children, the workload and the orphans.
#[derive(Debug)]
pub(crate) struct Children {
    signal: Signal,
}

impl Children {
    /// Starts to watch. Must come before the first child.
    pub(crate) fn watch() -> io::Result<Self> {
        Ok(Self { signal: signal(SignalKind::child())? })
    }

    /// Reaps until this child has ended. Loses no status when it is cancelled.
    pub(crate) async fn wait_for(&mut self, pid: pid_t) -> Status {
        loop {
            match reap_batch(Some(pid)) {
                Batch::Found(status) => return status,
                Batch::Full => yield_now().await,
                Batch::Waiting | Batch::Empty => self.changed().await,
            }
        }
    }

    /// Reaps, and never ends.
    pub(crate) async fn reap_forever(&mut self) {
        loop {
            match reap_batch(None) {
                Batch::Full => yield_now().await,
                Batch::Found(_) | Batch::Waiting | Batch::Empty => self.changed().await,
            }
        }
    }

    /// Reaps until there are no children.
    pub(crate) async fn wait_for_all(&mut self) {
        loop {
            match reap_batch(None) {
                Batch::Empty => return,
                Batch::Full => yield_now().await,
                Batch::Found(_) | Batch::Waiting => self.changed().await,
            }
        }
    }

    async fn changed(&mut self) {
        // `None` cannot be: tokio ends this stream with the process.
        let _ = self.signal.recv().await;
    }
}

enum Batch {
    Found(Status),
    Full,
    Waiting,
    Empty,
}

fn reap_batch(wanted: Option<pid_t>) -> Batch {
    for _ in 0..BATCH {
        match syscall::reap_any() {
            Reaped::Ended(pid, status) if Some(pid) == wanted => return Batch::Found(status),
            Reaped::Ended(..) => {}
            Reaped::NotYet => return Batch::Waiting,
            Reaped::NoChildren => return Batch::Empty,
        }
    }
    Batch::Full
}
