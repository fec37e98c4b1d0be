//! The unpacker: the process that reads the layers of an image.
//!
//! Decompressors and parsers meet the hostile bytes of an image while the shim still has all rights
//! of its user. They therefore run in a process of their own, which first gives up its rights
//! ([`worker`]). A start whose image is in the cache needs no unpacker.
//!
//! ```text
//!   shim                                    unpacker
//!    │ ── stdin: the job ───────────────────► opens layout and cache, gives up its rights
//!    │ ◄─ stdout: progress, then the end ──── unpacks, and keeps leases of what it made
//!    │ takes leases of its own
//!    │ ── stdin closes ─────────────────────► ends
//! ```
//!
//! To stop an unpacker, the shim closes the pipe. The unpacker then removes what it has not
//! finished. One that does not end in time is killed.
//!
//! The unpacker is this same executable. It ends with the shim, however that ends: the kernel kills
//! it, and the pipe closes.

mod calls;
pub(super) mod error;
mod jail;
pub(super) mod message;
mod worker;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use a3s_box_oci::Progress;
use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use self::error::UnpackerError;
use self::message::{Job, Message};
pub(super) use self::worker::run_if_asked;
use super::error::RootfsError;

/// Time between two checks whether the box is to stop.
const STOP_INTERVAL: u8 = 20;

/// Time that an unpacker gets to end after the pipe has closed. It hears of that within some tens of
/// milliseconds, and then removes up to some thousand files for each layer.
const END_GRACE: Duration = Duration::from_secs(5);

/// Time between two checks whether the unpacker has ended.
const END_INTERVAL: Duration = Duration::from_millis(1);

/// Longest message. The report of an error has up to 17 texts of some kilobytes.
const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Bytes that are read at once.
const READ_BYTES: usize = 16 * 1024;

/// A running unpacker. It ends when this value is dropped.
#[derive(Debug)]
pub(super) struct Unpacker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    /// Bytes of a message that is not complete.
    partial: Vec<u8>,
}

/// What an unpacker has done.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// Number of layers that were in the cache.
    pub(super) hits: usize,
    /// Size of the regular files of the others.
    pub(super) unpacked_bytes: u64,
    /// Keeps the layers from being removed until it is dropped.
    pub(super) _unpacker: Unpacker,
}

impl Unpacker {
    /// Starts the unpacker.
    pub(super) fn start(job: &Job) -> Result<Self, UnpackerError> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(worker::ARGUMENT).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // The loader may find an installed libkrun.so (feature `system`) by this variable only.
        if let Some(directories) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", directories);
        }
        // The fake unpacker of a test acts as one that a layer has taken over.
        if cfg!(feature = "fake-vm")
            && let Some(act) = std::env::var_os(worker::FAKE_ACT)
        {
            command.env(worker::FAKE_ACT, act);
        }
        let mut child = command.spawn().map_err(HostError::of("start the unpacker"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut unpacker = Self { child, stdin, stdout, partial: Vec::new() };
        unpacker.send(job)?;
        Ok(unpacker)
    }

    fn send(&mut self, job: &Job) -> Result<(), UnpackerError> {
        let mut line =
            serde_json::to_vec(job).map_err(HostError::of("write the job of the unpacker"))?;
        line.push(b'\n');
        let sent = self.stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(&line));
        match sent {
            Ok(()) => Ok(()),
            // An unpacker that has ended already explains more than the broken pipe.
            Err(error) => Err(match self.child.try_wait() {
                Ok(Some(status)) => ended(status),
                _ => HostError::of("send the job to the unpacker")(error).into(),
            }),
        }
    }

    /// Waits until all layers are in the cache. `stop` is asked again and again whether to stop.
    pub(super) fn wait(
        mut self,
        on_progress: &mut dyn FnMut(usize, Progress),
        stop: &mut dyn FnMut() -> Option<RootfsError>,
    ) -> Result<Unpacked, RootfsError> {
        loop {
            if let Some(stopped) = stop() {
                return Err(stopped);
            }
            for message in self.receive()? {
                match message {
                    Message::Progress { layer, progress } => on_progress(layer, progress),
                    Message::Done { hits, unpacked_bytes } => {
                        return Ok(Unpacked { hits, unpacked_bytes, _unpacker: self });
                    }
                    Message::Failed(report) => {
                        return Err(UnpackerError::Reported(report.into()).into());
                    }
                }
            }
        }
    }

    /// Returns the messages that have arrived. Waits a moment if there is none.
    fn receive(&mut self) -> Result<Vec<Message>, UnpackerError> {
        let Some(stdout) = self.stdout.as_mut() else { return Ok(Vec::new()) };
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(STOP_INTERVAL)) {
            // A signal with a handler, such as that of Rust for SIGSEGV, interrupts the wait.
            Ok(0) | Err(Errno::EINTR) => return Ok(Vec::new()),
            ready => ready.map_err(HostError::of("wait for the unpacker"))?,
        };
        let mut bytes = [0; READ_BYTES];
        // It does not block, because the pipe is readable, so that no signal interrupts it.
        let count = stdout.read(&mut bytes).map_err(HostError::of("read from the unpacker"))?;
        if count == 0 {
            let status = self.child.wait().map_err(HostError::of("wait for the unpacker"))?;
            return Err(ended(status));
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

    /// Returns whether the unpacker ends by itself in time.
    fn ends(&mut self) -> bool {
        let deadline = Instant::now() + END_GRACE;
        while Instant::now() < deadline {
            // After an error there is no child to wait for.
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            thread::sleep(END_INTERVAL);
        }
        false
    }
}

impl Drop for Unpacker {
    fn drop(&mut self) {
        (self.stdin, self.stdout) = (None, None);
        if !self.ends() && self.child.kill().is_ok() {
            // SIGKILL ends it in any case, and only a process that was waited for is gone.
            let _ended = self.child.wait();
        }
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
