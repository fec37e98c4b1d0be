//! [`Follower`]: the task that owns a shim. It relays the events, ends the shim on a termination,
//! and reaps it.
//!
//! ```text
//!             ┌───── event ──► relayed to the observers
//!   following ┼───── termination ──► SIGTERM, and SIGKILL after its time ────┐
//!             ├───── manager dropped, or a line that is no event ──► SIGKILL ┤
//!             ├───── box.stopped, or end of stream ──► SIGKILL after 10 s ───┤
//!             └───── exit of the shim ◄──────────────────────────────────────┘
//!                      └──► rest of the stream ──► box.stopped is relayed
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

use crate::lines::{EventLines, StreamError};
use crate::record;
use crate::relay::{EventRelay, ShimLost};

/// Time limit of a shim after its last event. The shim itself waits 2 s for a slow reader of the
/// last events before it exits.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for reading the rest of the stream after the shim has exited. The rest is already in
/// the pipe. Only a process that has inherited the pipe can keep it open.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);

/// A request of the manager to end the shim: SIGTERM, and SIGKILL after a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Termination {
    /// Time from SIGTERM to SIGKILL.
    pub(crate) patience: Duration,
}

/// The owner of one shim. Only it signals and reaps the process.
#[derive(Debug)]
pub(crate) struct Follower {
    child: Child,
    pid: u32,
    /// `None` if the shim refuses the id or the state directory.
    directory: Option<BoxDir>,
    /// `None` once the last event was read.
    lines: Option<EventLines<ChildStdout>>,
    /// `None` once the manager was dropped, which closes the channel.
    terminations: Option<mpsc::Receiver<Termination>>,
    relay: EventRelay,
    /// Time at which the shim is killed, and the reason.
    deadline: Option<(Instant, ShimLost)>,
    /// The reason, if the shim was killed.
    killed: Option<ShimLost>,
}

/// An input of the follower.
enum Input {
    Line(Result<Option<Event>, StreamError>),
    Termination(Option<Termination>),
    Deadline,
    Exit(io::Result<ExitStatus>),
}

impl Follower {
    /// Makes the follower of `child`, which ends the shim when the sender of `terminations` is
    /// dropped.
    pub(crate) fn new(
        mut child: Child,
        directory: Option<BoxDir>,
        terminations: mpsc::Receiver<Termination>,
        relay: EventRelay,
    ) -> Self {
        let lines = child.stdout.take().map(EventLines::new);
        // The child was not reaped yet, so it has a pid.
        let pid = child.id().unwrap_or_default();
        let terminations = Some(terminations);
        Self { child, pid, directory, lines, terminations, relay, deadline: None, killed: None }
    }

    /// Follows the shim until it is reaped and the final status is set.
    pub(crate) async fn run(mut self) {
        let exit = loop {
            match self.next_input().await {
                Input::Line(line) => self.on_line(line),
                Input::Termination(Some(termination)) => self.on_termination(termination),
                Input::Termination(None) => {
                    self.terminations = None;
                    self.kill_after(Duration::ZERO, ShimLost::Abandoned);
                }
                Input::Deadline => self.kill(),
                Input::Exit(exit) => break exit,
            }
        };
        // The shim has exited, so a stream that does not end is not waited for.
        let _elapsed = timeout(DRAIN_TIMEOUT, self.drain()).await;
        if !self.relay.has_terminal() {
            let (directory, id, pid) = (self.directory, self.relay.box_id().to_owned(), self.pid);
            let reading = spawn_blocking(move || record::exit_record_of(&directory?, &id, pid));
            // The read fails only if the tokio runtime ends, which also ends this task.
            if let Ok(Some(record)) = reading.await {
                self.relay.relay_record(record);
            }
        }
        self.relay.finish(exit, self.killed);
    }

    async fn next_input(&mut self) -> Input {
        let at = self.deadline.as_ref().map(|(at, _)| *at);
        // The macro drops the futures that are not ready. None of them loses an input by that:
        // `recv` and `wait` of tokio do not, and `EventLines::next` documents the same.
        tokio::select! {
            line = next_event(&mut self.lines) => Input::Line(line),
            termination = next_termination(&mut self.terminations) => {
                Input::Termination(termination)
            }
            () = reached(at) => Input::Deadline,
            exit = self.child.wait() => Input::Exit(exit),
        }
    }

    /// Relays the rest of the stream.
    async fn drain(&mut self) {
        while self.lines.is_some() {
            let line = next_event(&mut self.lines).await;
            self.on_line(line);
        }
    }

    fn on_line(&mut self, line: Result<Option<Event>, StreamError>) {
        match line {
            Ok(Some(event)) => {
                self.relay.relay(event);
                if self.relay.has_terminal() {
                    self.end_stream(EXIT_TIMEOUT, ShimLost::Lingering);
                }
            }
            Ok(None) => self.end_stream(EXIT_TIMEOUT, ShimLost::Lingering),
            Err(source) => self.end_stream(Duration::ZERO, ShimLost::Protocol { source }),
        }
    }

    /// Reads no more events, and kills the shim if it has not exited after `timeout`.
    fn end_stream(&mut self, timeout: Duration, reason: ShimLost) {
        self.lines = None;
        self.kill_after(timeout, reason);
    }

    fn on_termination(&mut self, termination: Termination) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // The call fails only if the shim has exited, which the next `wait` returns. The shim
            // was not reaped yet, so the pid cannot belong to another process.
            let _exited = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        self.kill_after(termination.patience, ShimLost::Overdue);
    }

    /// Sets the deadline at which the shim is killed, unless an earlier one is set.
    fn kill_after(&mut self, patience: Duration, reason: ShimLost) {
        let at = Instant::now() + patience;
        let is_first = self.deadline.as_ref().is_none_or(|(earlier, _)| at < *earlier);
        if is_first && self.killed.is_none() {
            self.deadline = Some((at, reason));
        }
    }

    fn kill(&mut self) {
        self.killed = self.deadline.take().map(|(_, reason)| reason);
        // The call fails only if the shim has exited.
        let _exited = self.child.start_kill();
    }
}

/// Waits for the next event; without a stream, for ever.
async fn next_event(
    lines: &mut Option<EventLines<ChildStdout>>,
) -> Result<Option<Event>, StreamError> {
    match lines {
        Some(lines) => lines.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for the next termination; without a channel, for ever. Returns `None` if the channel is
/// closed.
async fn next_termination(
    terminations: &mut Option<mpsc::Receiver<Termination>>,
) -> Option<Termination> {
    match terminations {
        Some(terminations) => terminations.recv().await,
        None => std::future::pending().await,
    }
}

/// Waits until the deadline; without one, for ever.
async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
