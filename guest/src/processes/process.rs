//! One process: its start, its input, its output, and its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use a3s_box_proto::process::{Failed, OnDisconnect, Process as Listed, TerminalSize};
use nix::libc::{self, pid_t};
use tokio::sync::{oneshot, watch};
use tokio::task::yield_now;
use tokio::time::sleep;

use super::cgroup::{Cgroup, Cgroups, Usage};
use super::descriptor::{Sink, Source};
use super::failure::{self, ended, invalid};
use super::output::{CHUNK_BYTES, Channel, Output, Phase};
use super::request::Wanted;
use super::streams::{self, OurEnds};
use crate::children::Exits;
use crate::kmsg;
use crate::launch::{self, LaunchError};
use crate::plan;
use crate::syscall::{self, Status};

/// Maximum number of bytes of the arguments that a list has.
const LISTED_BYTES: usize = 4096;

/// The character that a terminal turns into the end of input (`EOT`, Ctrl-D).
const END_OF_TRANSMISSION: u8 = 4;

/// A process that the service has started, or is about to start.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: String,
    pub(super) output: Arc<Output>,
    /// The loss of the stream that started the process does not kill it.
    keep: AtomicBool,
    args: Vec<String>,
    started_unix_ms: u64,
    is_terminal: bool,
    exits: Exits,
    /// Only one writer at a time, so that the bytes of two streams do not mix within a message.
    stdin: tokio::sync::Mutex<Option<Sink>>,
    control: Mutex<Control>,
}

/// What the methods need that end or change the process.
#[derive(Debug, Default)]
struct Control {
    pid: Option<pid_t>,
    cgroup: Option<Cgroup>,
    terminal: Option<OwnedFd>,
    /// The process is to be killed, also if it has not started yet.
    is_killed: bool,
}

/// A process that runs, with what its supervision needs.
struct Running {
    pid: pid_t,
    status: oneshot::Receiver<Status>,
    ends: OurEnds,
}

/// The processes that are signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Process,
    Descendants,
}

impl Process {
    /// Makes a process that has not started.
    pub(super) fn new(id: String, wanted: &Wanted, exits: Exits) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            id,
            output: Output::new(),
            keep: AtomicBool::new(wanted.keep),
            args: listed_args(&wanted.process.args),
            started_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            is_terminal: wanted.terminal.is_some(),
            exits,
            stdin: tokio::sync::Mutex::new(None),
            control: Mutex::default(),
        }
    }

    /// Starts the process, and returns after its end or after the failure to start it.
    pub(super) async fn run(&self, wanted: Wanted, cgroups: Option<Arc<Cgroups>>) {
        let deadline = wanted.deadline_ms.map(Duration::from_millis);
        let supervised = async {
            match self.start(wanted, cgroups).await {
                Ok(running) => {
                    let pid = u32::try_from(running.pid).unwrap_or_default();
                    Some((pid, self.supervise(running).await))
                }
                Err(failed) => {
                    self.output.set_phase(Phase::Failed(failed));
                    None
                }
            }
        };
        tokio::pin!(supervised);
        let expired = async {
            match deadline {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let (ended, is_late) = tokio::select! {
            ended = &mut supervised => (ended, false),
            () = expired => {
                self.kill();
                (supervised.await, true)
            }
        };
        // Removes the cgroup, and closes the terminal.
        *self.control() = Control::default();
        if let Some((pid, status)) = ended {
            // A process that ended by itself in the moment of its deadline was not killed by it.
            let is_late = is_late && matches!(status, Status::Signaled(9));
            self.output.end(pid, status, is_late);
        }
        // Last, because a session may still write to it. The session ends with the event above.
        self.stdin.lock().await.take();
    }

    /// Starts the process and waits until it has executed its program.
    async fn start(
        &self,
        wanted: Wanted,
        cgroups: Option<Arc<Cgroups>>,
    ) -> Result<Running, Failed> {
        let command = plan::plan_process(wanted.process, Path::new("/"))
            .map_err(|error| failure::of_plan(&error))?;
        let (mut ends, child_ends) = match wanted.terminal {
            Some(size) => streams::terminal(size),
            None => streams::pipes(wanted.has_stdin),
        }
        .map_err(|error| failure::setup(&error))?;
        let cgroup = cgroups.map(|cgroups| cgroups.create()).transpose();
        let cgroup = cgroup.map_err(|error| failure::setup(&error))?;
        let procs = cgroup.as_ref().map(Cgroup::procs).transpose();
        let procs = procs.map_err(|error| failure::setup(&error))?;
        let launching = launch::start(&command, child_ends, procs.as_ref().map(AsFd::as_fd))
            .map_err(|error| failure::of_launch(&error))?;
        let pid = launching.pid;
        // No `await` is between the start of the child and this call.
        let status = self.exits.expect(pid);
        drop(procs);
        {
            let mut control = self.control();
            control.pid = Some(pid);
            control.cgroup = cgroup;
            control.terminal = ends.terminal.take();
        }
        *self.stdin.lock().await = ends.stdin.take();
        if let Err(error) = launching.executed(&command).await {
            if let LaunchError::Timeout = error {
                self.kill();
            }
            return Err(failure::of_launch(&error));
        }
        self.output.set_phase(Phase::Running(u32::try_from(pid).unwrap_or_default()));
        if self.control().is_killed {
            // The child may have entered its cgroup after that was killed.
            self.kill();
        }
        Ok(Running { pid, status, ends })
    }

    /// Copies the output until the process has ended and all that it has written is copied.
    async fn supervise(&self, running: Running) -> Status {
        let Running { status, ends, .. } = running;
        let (ended, has_ended) = watch::channel(false);
        let exit = async {
            // The sender is dropped only after it has sent, see `Exits`.
            let status = status.await.unwrap_or(Status::Signaled(0));
            ended.send_replace(true);
            status
        };
        let stderr = async {
            if let Some(stderr) = &ends.stderr {
                pump(&self.output, Channel::Stderr, stderr, has_ended.clone()).await;
            }
        };
        let stdout = pump(&self.output, Channel::Stdout, &ends.stdout, has_ended.clone());
        let (status, (), ()) = tokio::join!(exit, stdout, stderr);
        status
    }

    /// Writes to standard input, and waits while the process does not read. Bytes for a process
    /// that does not read any more are dropped, as its end tells the client more.
    pub(super) async fn write(&self, bytes: &[u8]) {
        let mut stdin = self.stdin.lock().await;
        if let Some(pipe) = &*stdin
            && pipe.write_all(bytes).await.is_err()
        {
            *stdin = None;
        }
    }

    /// Ends standard input.
    pub(super) async fn close_stdin(&self) {
        if self.is_terminal {
            self.write(&[END_OF_TRANSMISSION]).await;
        } else {
            self.stdin.lock().await.take();
        }
    }

    /// Returns whether the process outlives the stream that started it.
    pub(super) fn is_kept(&self) -> bool {
        self.keep.load(Ordering::Relaxed)
    }

    /// Lets the process outlive the stream that started it.
    pub(super) fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }

    /// Sets the size of the terminal.
    pub(super) fn resize(&self, size: TerminalSize) -> Result<(), Failed> {
        if !self.is_terminal {
            return Err(invalid(format!("process `{}` has no terminal", self.id)));
        }
        let control = self.control();
        let terminal = control.terminal.as_ref().ok_or_else(|| ended(&self.id))?;
        streams::resize(terminal.as_fd(), size).map_err(|error| failure::setup(&error))
    }

    /// Kills the process and all its descendants. A process that is being started is killed as soon
    /// as it runs. Does nothing after the end.
    pub(super) fn kill(&self) {
        let mut control = self.control();
        control.is_killed = true;
        let killed = match (&control.cgroup, control.pid) {
            (Some(cgroup), _) => cgroup.kill(),
            // Without cgroups, descendants that have left the process group live on.
            (None, Some(pid)) => self.exits.signal_group(pid, libc::SIGKILL).map(drop),
            (None, None) => Ok(()),
        };
        if let Err(error) = killed {
            kmsg::line(&format!("cannot kill process `{}`: {error}", self.id));
        }
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: i32, scope: Scope) -> Result<(), Failed> {
        let control = self.control();
        let Some(pid) = control.pid else { return Err(ended(&self.id)) };
        let sent = match (&control.cgroup, scope) {
            (_, Scope::Process) => self.exits.signal(pid, signal),
            (Some(cgroup), Scope::Descendants) if signal == libc::SIGKILL => {
                cgroup.kill().map(|()| true)
            }
            (Some(cgroup), Scope::Descendants) => signal_members(cgroup, signal).map(|()| true),
            (None, Scope::Descendants) => self.exits.signal_group(pid, signal),
        };
        match sent {
            Ok(true) => Ok(()),
            Ok(false) => Err(ended(&self.id)),
            Err(error) => Err(failure::setup(&error)),
        }
    }

    /// Returns whether the process has ended or was not started.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.output.phase(), Phase::Failed(_) | Phase::Ended(..))
    }

    /// Returns the entry of the process in a list.
    pub(super) fn listed(&self) -> Listed {
        let (pid, ended) = match self.output.phase() {
            Phase::Starting | Phase::Failed(_) => (0, None),
            Phase::Running(pid) => (pid, None),
            Phase::Ended(pid, ended) => (pid, Some(ended)),
        };
        let usage = self.control().cgroup.as_ref().map_or_else(Usage::default, Cgroup::usage);
        let on_disconnect = if self.is_kept() { OnDisconnect::Keep } else { OnDisconnect::Kill };
        Listed {
            id: self.id.clone(),
            pid,
            args: self.args.clone(),
            started_unix_ms: self.started_unix_ms,
            ended,
            terminal: self.is_terminal,
            on_disconnect: on_disconnect.into(),
            cpu_us: usage.cpu_us,
            memory_bytes: usage.memory_bytes,
            pids: usage.pids,
        }
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        // A panic ends PID 1 and the box with it.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies a stream to the output, to its end or, once the process has ended, as far as the process
/// has written. A descendant may keep the stream open and write for ever.
async fn pump(
    output: &Output,
    channel: Channel,
    from: &Source,
    mut has_ended: watch::Receiver<bool>,
) {
    loop {
        output.room().await;
        let bytes = tokio::select! {
            bytes = from.read(CHUNK_BYTES) => bytes,
            // The result is an error if the sender is gone, which means the same.
            _ = has_ended.wait_for(|over| *over) => break,
        };
        if bytes.is_empty() {
            return;
        }
        output.append(channel, &bytes);
    }
    // What the process wrote before its end waits in the pipe or terminal, and is no more than
    // that holds.
    let mut left = from.capacity();
    while left > 0 {
        output.room().await;
        match from.read_ready(CHUNK_BYTES.min(left)) {
            Some(bytes) if !bytes.is_empty() => {
                left -= bytes.len();
                output.append(channel, &bytes);
            }
            _ => return,
        }
        yield_now().await;
    }
}

/// Sends a signal to all members of a cgroup.
fn signal_members(cgroup: &Cgroup, signal: i32) -> io::Result<()> {
    for pid in cgroup.members()? {
        // ESRCH: the member has ended since. Its PID is used again only after the kernel has used
        // all others, which takes longer than this loop.
        match syscall::send_signal_to_any(pid, signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the first arguments, at most [`LISTED_BYTES`] of them.
fn listed_args(args: &[String]) -> Vec<String> {
    let mut left = LISTED_BYTES;
    let mut listed = Vec::new();
    for arg in args {
        let end = arg.floor_char_boundary(left);
        listed.push(arg[..end].to_owned());
        // An empty argument counts, too, so that their number is limited.
        left = left.saturating_sub(end + 1);
        if end < arg.len() || left == 0 {
            break;
        }
    }
    listed
}
