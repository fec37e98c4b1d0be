//! Reaps all children. PID 1 becomes the parent of every orphan of the guest, and must reap it.
//!
//! No other code may wait for a child. It could take the wait status of the workload, which the
//! kernel returns only once.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::libc::pid_t;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::yield_now;

use crate::syscall::{self, Reaped, Status};

/// Number of children that are reaped before other tasks run. Otherwise a guest full of processes
/// that start and end would keep PID 1 from reading the shim's orders.
const BATCH: usize = 64;

/// All children of this process: the workload and the orphans.
#[derive(Debug)]
pub(crate) struct Children {
    signal: Signal,
    exits: Exits,
}

/// The children whose ends other tasks wait for. All clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exits(Arc<Mutex<HashMap<pid_t, oneshot::Sender<Status>>>>);

impl Exits {
    /// Returns the receiver of a child's status.
    ///
    /// Must be called before the first `await` after the start of the child: whoever reaps runs on
    /// the same thread, and discards a status that nobody expects.
    pub(crate) fn expect(&self, pid: pid_t) -> oneshot::Receiver<Status> {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(pid, sender);
        receiver
    }

    /// Sends a signal to a child that [`expect`](Self::expect) was called for. Returns false if it
    /// was reaped already, after which its PID may belong to another process.
    pub(crate) fn signal(&self, pid: pid_t, signal: i32) -> io::Result<bool> {
        // The lock keeps the child from being reaped between the check and the signal.
        let expected = self.lock();
        if !expected.contains_key(&pid) {
            return Ok(false);
        }
        syscall::send_signal(pid, signal).map(|()| true)
    }

    /// Sends a signal to the process group of such a child, as [`signal`](Self::signal) does.
    pub(crate) fn signal_group(&self, leader: pid_t, signal: i32) -> io::Result<bool> {
        let expected = self.lock();
        if !expected.contains_key(&leader) {
            return Ok(false);
        }
        syscall::send_signal_to_group(leader, signal).map(|()| true)
    }

    /// Reaps one child as [`syscall::reap_any`] does, and reports its status.
    fn reap(&self) -> Reaped {
        let mut expected = self.lock();
        let reaped = syscall::reap_any();
        if let Reaped::Ended(pid, status) = reaped
            && let Some(sender) = expected.remove(&pid)
        {
            // The receiver is gone if nobody waits any more.
            let _ignored = sender.send(status);
        }
        reaped
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<pid_t, oneshot::Sender<Status>>> {
        // Each change of the map is one call, so a panic elsewhere leaves no half-made one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Children {
    /// Starts to catch SIGCHLD. Must be called before the first child starts.
    pub(crate) fn watch() -> io::Result<Self> {
        Ok(Self { signal: signal(SignalKind::child())?, exits: Exits::default() })
    }

    /// Returns the registry of children whose ends other tasks wait for.
    pub(crate) fn exits(&self) -> Exits {
        self.exits.clone()
    }

    /// Reaps children until the child `pid` has ended, and returns its status.
    ///
    /// Loses no status when it is cancelled: the status is returned without another `await`.
    pub(crate) async fn wait_for(&mut self, pid: pid_t) -> Status {
        loop {
            match reap_batch(&self.exits, Some(pid)) {
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
            match reap_batch(&self.exits, None) {
                Batch::Full => yield_now().await,
                Batch::Found(_) | Batch::Waiting | Batch::Empty => self.changed().await,
            }
        }
    }

    /// Reaps children until there are none.
    pub(crate) async fn wait_for_all(&mut self) {
        loop {
            match reap_batch(&self.exits, None) {
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
fn reap_batch(exits: &Exits, wanted: Option<pid_t>) -> Batch {
    for _ in 0..BATCH {
        match exits.reap() {
            Reaped::Ended(pid, status) if Some(pid) == wanted => return Batch::Found(status),
            // `Exits` has reported the status if a task waits for it. That of an orphan is of no
            // interest, but a zombie would keep its PID.
            Reaped::Ended(..) => {}
            Reaped::NotYet => return Batch::Waiting,
            Reaped::NoChildren => return Batch::Empty,
        }
    }
    Batch::Full
}
