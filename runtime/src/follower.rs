//! The task that owns a shim: follows its events, stops it when asked, reaps it.
//!
//! ```text
//!             ┌───── event ──► told to the observers
//!   following ┼───── order ──► SIGTERM, and SIGKILL when the grace is over ──┐
//!             ├───── no manager any more, or not an event ──► SIGKILL ───────┤
//!             ├───── box.stopped, end of stream ──► SIGKILL if it lingers ───┤
//!             └───── exit ◄──────────────────────────────────────────────────┘
//!                      └──► rest of the stream ──► the end is told
//! ```

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use a3s_box_core::{BoxDir, Event};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdout};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};

use crate::chronicle::{Chronicle, ShimLost};
use crate::lines::{EventLines, StreamError};
use crate::record;

/// How long a shim may live after its last event: five times what it gives itself to write it.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the rest of the stream is read after the shim has gone. It is in the pipe already;
/// only a process that inherited the pipe could add to it.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);

/// Asks the shim to stop. The manager's end of this channel is its claim on the shim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Termination {
    /// Time until SIGKILL.
    pub(crate) patience: Duration,
}

/// Owns one shim.
#[derive(Debug)]
pub(crate) struct Follower {
    child: Child,
    pid: u32,
    directory: Option<BoxDir>,
    /// Until the last event was read.
    lines: Option<EventLines<ChildStdout>>,
    /// Until the manager was dropped.
    orders: Option<mpsc::Receiver<Termination>>,
    chronicle: Chronicle,
    /// When the shim is killed, and why.
    deadline: Option<(Instant, ShimLost)>,
    /// Why it was killed.
    killed: Option<ShimLost>,
}

/// What the follower waits for.
enum Input {
    Line(Result<Option<Event>, StreamError>),
    Order(Option<Termination>),
    Deadline,
    Exit(io::Result<ExitStatus>),
}

impl Follower {
    pub(crate) fn new(
        mut child: Child,
        directory: Option<BoxDir>,
        orders: mpsc::Receiver<Termination>,
        chronicle: Chronicle,
    ) -> Self {
        let lines = child.stdout.take().map(EventLines::new);
        // A child that was not reaped has a pid.
        let pid = child.id().unwrap_or_default();
        let orders = Some(orders);
        Self { child, pid, directory, lines, orders, chronicle, deadline: None, killed: None }
    }

    /// Follows the shim to its end.
    pub(crate) async fn run(mut self) {
        let exit = loop {
            match self.next_input().await {
                Input::Line(line) => self.on_line(line),
                Input::Order(Some(order)) => self.on_stop(order),
                Input::Order(None) => {
                    self.orders = None;
                    self.kill_after(Duration::ZERO, ShimLost::Abandoned);
                }
                Input::Deadline => self.kill(),
                Input::Exit(exit) => break exit,
            }
        };
        // Nothing to do about a stream that does not end: the shim itself has.
        let _gave_up = timeout(DRAIN_TIMEOUT, self.drain()).await;
        if !self.chronicle.is_told() {
            let (directory, id, pid) =
                (self.directory, self.chronicle.box_id().to_owned(), self.pid);
            let reading = spawn_blocking(move || record::left_by(&directory?, &id, pid));
            // Not read when the runtime ends, and then this task ends, too.
            if let Ok(Some(record)) = reading.await {
                self.chronicle.recall(record);
            }
        }
        self.chronicle.finish(exit, self.killed);
    }

    async fn next_input(&mut self) -> Input {
        let at = self.deadline.as_ref().map(|(at, _)| *at);
        tokio::select! {
            line = next_event(&mut self.lines) => Input::Line(line),
            order = next_order(&mut self.orders) => Input::Order(order),
            () = reached(at) => Input::Deadline,
            exit = self.child.wait() => Input::Exit(exit),
        }
    }

    async fn drain(&mut self) {
        while self.lines.is_some() {
            let line = next_event(&mut self.lines).await;
            self.on_line(line);
        }
    }

    fn on_line(&mut self, line: Result<Option<Event>, StreamError>) {
        match line {
            Ok(Some(event)) => {
                self.chronicle.tell(event);
                if self.chronicle.is_told() {
                    self.end_stream(EXIT_TIMEOUT, ShimLost::Lingering);
                }
            }
            Ok(None) => self.end_stream(EXIT_TIMEOUT, ShimLost::Lingering),
            Err(source) => self.end_stream(Duration::ZERO, ShimLost::Protocol { source }),
        }
    }

    fn end_stream(&mut self, timeout: Duration, reason: ShimLost) {
        self.lines = None;
        self.kill_after(timeout, reason);
    }

    fn on_stop(&mut self, order: Termination) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // Fails only for a shim that has ended, and then `wait` says so. It was not reaped
            // yet, so the pid is still its own.
            let _ended = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        self.kill_after(order.patience, ShimLost::Overdue);
    }

    /// The earliest deadline counts.
    fn kill_after(&mut self, patience: Duration, reason: ShimLost) {
        let at = Instant::now() + patience;
        let is_first = self.deadline.as_ref().is_none_or(|(earlier, _)| at < *earlier);
        if is_first && self.killed.is_none() {
            self.deadline = Some((at, reason));
        }
    }

    fn kill(&mut self) {
        self.killed = self.deadline.take().map(|(_, reason)| reason);
        // Fails only for a shim that has ended.
        let _ended = self.child.start_kill();
    }
}

async fn next_event(
    lines: &mut Option<EventLines<ChildStdout>>,
) -> Result<Option<Event>, StreamError> {
    match lines {
        Some(lines) => lines.next().await,
        None => std::future::pending().await,
    }
}

async fn next_order(orders: &mut Option<mpsc::Receiver<Termination>>) -> Option<Termination> {
    match orders {
        Some(orders) => orders.recv().await,
        None => std::future::pending().await,
    }
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
