//! Unpackers: the processes that work on the bytes of an image.
//!
//! Decompressors and parsers meet the hostile bytes of an image while the shim still has all rights
//! of its user. They therefore run in processes of their own, which first give up their rights
//! ([`worker`]). Each of them does one task: it reads one layer, or merges the layer files of one
//! image. A start whose image is in the cache needs none.
//!
//! ```text
//!   shim                                      unpacker
//!    │ locks the content, makes a directory
//!    │ ── socket: open files, the task ───────► gives up its rights
//!    │ ── pipe: the blob, hashed ─────────────► works
//!    │ ◄─ socket: progress, then the end ──────
//!    │ kills it, waits for its end
//!    │ checks the directory, publishes it
//! ```
//!
//! An unpacker is this same executable. It ends with the shim, however that ends, because the kernel
//! kills it. Until then it holds the lock as well, so that no other shim uses the directory.

mod calls;
pub(super) mod error;
#[cfg(feature = "fake-vm")]
mod fake;
mod jail;
mod message;
mod root;
mod transfer;
mod worker;

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::Duration;

use a3s_box_core::config::SeccompMode;
use a3s_box_oci::{OnTaskProgress, Task, UnpackerFailure, Unpackers};
use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use self::error::{Reported, UnpackerError};
use self::message::{Job, Message};
pub(super) use self::worker::run_if_asked;
use crate::report::printable::printable;

/// Time between two checks whether the box is to stop.
const STOP_INTERVAL: u8 = 20;

/// Longest message. The report of an error has up to 17 texts of some kilobytes.
const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Bytes that are read at once.
const READ_BYTES: usize = 16 * 1024;

/// What is logged of the output of an unpacker, which only has some if it panics.
const LOG_BYTES: u64 = 4096;

/// Time for a process to end after it has closed its socket, and between two looks at it. The kernel
/// closes the socket some microseconds before the process can be waited for.
const END_CHECKS: u32 = 1000;
const END_INTERVAL: Duration = Duration::from_millis(1);

/// Starts unpackers.
#[derive(Debug)]
pub(super) struct Processes {
    pub(super) seccomp: SeccompMode,
}

impl Unpackers for Processes {
    fn run(
        &self,
        task: &Task,
        files: &[BorrowedFd<'_>],
        lock: BorrowedFd<'_>,
        progress: &mut OnTaskProgress<'_>,
    ) -> Result<(), UnpackerFailure> {
        let failure = |error: UnpackerError| UnpackerFailure {
            fault: error.fault(),
            source: Box::new(error),
        };
        let mut unpacker = Unpacker::start().map_err(failure)?;
        let job = Job { task: task.clone(), seccomp: self.seccomp };
        let files: Vec<BorrowedFd<'_>> = files.iter().copied().chain([lock]).collect();
        let sent = transfer::send(&unpacker.socket, &files, &job);
        let outcome = match sent {
            Ok(()) => unpacker.wait(task, progress),
            // An unpacker that has ended already explains more than the broken pipe.
            Err(error) => Err(match unpacker.child.try_wait() {
                Ok(Some(status)) => ended(status),
                _ => HostError::of("send the task to the unpacker")(error).into(),
            }),
        };
        unpacker.end().and(outcome).map_err(failure)
    }
}

/// A running unpacker. It ends when this value is dropped.
#[derive(Debug)]
struct Unpacker {
    child: Child,
    socket: UnixStream,
    /// Its standard output and standard error.
    log: io::PipeReader,
    /// Bytes of a message that is not complete.
    partial: Vec<u8>,
}

impl Unpacker {
    fn start() -> Result<Self, UnpackerError> {
        let (socket, theirs) = UnixStream::pair().map_err(HostError::of("make a socket"))?;
        // It gets a pipe in place of standard error, because it could change mode and owner of a file.
        let (log, output) = io::pipe().map_err(HostError::of("make a pipe"))?;
        let errors = output.try_clone().map_err(HostError::of("make a pipe"))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(worker::ARGUMENT).env_clear();
        command.stdin(OwnedFd::from(theirs)).stdout(output).stderr(errors);
        // The loader may find an installed libkrun.so (feature `system`) by this variable only.
        if let Some(directories) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", directories);
        }
        #[cfg(feature = "fake-vm")]
        fake::pass_on(&mut command);
        let child = command.spawn().map_err(HostError::of("start the unpacker"))?;
        Ok(Self { child, socket, log, partial: Vec::new() })
    }

    /// Waits for the end of the task. `progress` is called again and again.
    fn wait(
        &mut self,
        task: &Task,
        progress: &mut OnTaskProgress<'_>,
    ) -> Result<(), UnpackerError> {
        let (mut layer, mut step) = task.beginning();
        loop {
            for message in self.receive()? {
                match message {
                    Message::Progress { layer: of, progress: made } => (layer, step) = (of, made),
                    Message::Done => return Ok(()),
                    Message::Failed { report, fault } => {
                        return Err(Reported::new(report, fault).into());
                    }
                }
                if progress(layer, step).is_break() {
                    return Err(UnpackerError::Cancelled);
                }
            }
            // The same progress again, because it is also the question whether to stop.
            if progress(layer, step).is_break() {
                return Err(UnpackerError::Cancelled);
            }
        }
    }

    /// Returns the messages that have arrived. Waits a moment if there is none.
    fn receive(&mut self) -> Result<Vec<Message>, UnpackerError> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(STOP_INTERVAL)) {
            // A signal with a handler, such as that of Rust for SIGSEGV, interrupts the wait.
            Ok(0) | Err(Errno::EINTR) => return Ok(Vec::new()),
            ready => ready.map_err(HostError::of("wait for the unpacker"))?,
        };
        let mut bytes = [0; READ_BYTES];
        // It does not block, because the socket is readable, so that no signal interrupts it.
        let count = match self.socket.read(&mut bytes) {
            Ok(count) => count,
            // It has ended without having read all of the task.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(HostError::of("read from the unpacker")(error).into()),
        };
        if count == 0 {
            return Err(ended(self.wait_for_end()?));
        }
        self.partial.extend_from_slice(&bytes[..count]);
        let mut messages = Vec::new();
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            messages.push(serde_json::from_slice(&line).map_err(UnpackerError::Message)?);
        }
        if self.partial.len() > MAX_MESSAGE_BYTES {
            return Err(UnpackerError::LongMessage { limit: MAX_MESSAGE_BYTES });
        }
        Ok(messages)
    }

    /// Returns how a process has ended that has closed its socket. One that has not ended is killed:
    /// only a process that a blob has taken over closes the socket before.
    fn wait_for_end(&mut self) -> Result<ExitStatus, HostError> {
        for _ in 0..END_CHECKS {
            if let Some(status) =
                self.child.try_wait().map_err(HostError::of("wait for the unpacker"))?
            {
                return Ok(status);
            }
            thread::sleep(END_INTERVAL);
        }
        let _killed = self.child.kill();
        self.child.wait().map_err(HostError::of("wait for the unpacker"))
    }

    /// Ends the process, and logs what it has printed. All threads have ended on return, so that
    /// nothing writes into the directory any more.
    fn end(&mut self) -> Result<(), UnpackerError> {
        // It may have ended by itself.
        let _killed = self.child.kill();
        self.child.wait().map_err(HostError::of("wait for the unpacker"))?;
        let mut text = Vec::new();
        // The pipe has no writer any more, so that the read ends.
        let _best_effort = (&mut self.log).take(LOG_BYTES).read_to_end(&mut text);
        for line in String::from_utf8_lossy(&text).lines() {
            tracing::warn!(line = printable(line, line.len()), "output of the unpacker");
        }
        Ok(())
    }
}

impl Drop for Unpacker {
    fn drop(&mut self) {
        // A process that has ended before was waited for, and this does nothing.
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Returns the error of an unpacker that has ended without a report.
fn ended(status: ExitStatus) -> UnpackerError {
    match status.signal().and_then(|number| Signal::try_from(number).ok()) {
        // The filter of system calls kills a process that makes any other call.
        Some(Signal::SIGSYS) => UnpackerError::ForbiddenCall,
        _ => UnpackerError::Ended { status },
    }
}
