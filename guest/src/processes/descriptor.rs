//! The pipes and terminals of a process, as this process holds them: non-blocking, with waits.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::read;
use tokio::net::unix::pipe;

/// More than a terminal holds: 64 KiB in its buffers and 4 KiB in its line discipline.
const TERMINAL_BYTES: usize = 128 * 1024;

/// What a process writes to.
#[derive(Debug)]
pub(super) struct Source(pipe::Receiver);

/// What a process reads from.
#[derive(Debug)]
pub(super) struct Sink(pipe::Sender);

/// Makes a terminal non-blocking, and returns both of its directions.
pub(super) fn of_terminal(master: &OwnedFd) -> io::Result<(Source, Sink)> {
    let flags = OFlag::from_bits_truncate(fcntl(master, FcntlArg::F_GETFL)?);
    fcntl(master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // A terminal is no pipe, so the check for one is skipped. It behaves like a pipe where tokio
    // depends on it: it supports epoll(7), and calls that would block return EAGAIN.
    let source = pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?;
    let sink = pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?;
    Ok((Source(source), Sink(sink)))
}

impl Source {
    /// Takes over the reading end of a pipe.
    pub(super) fn of_pipe(end: OwnedFd) -> io::Result<Self> {
        Ok(Self(pipe::Receiver::from_owned_fd(end)?))
    }

    /// Reads what is there, at most `limit` bytes. Returns `None` if nothing is there, and no bytes
    /// at the end: when all writing ends are closed, or all sides of the terminal that programs use
    /// (`EIO`).
    ///
    /// Calls `read(2)` itself. tokio reports nothing until its event loop has polled the pipe.
    pub(super) fn read_ready(&self, limit: usize) -> Option<Vec<u8>> {
        // Allocated for each read, so that an idle process has no buffer.
        let mut buffer = vec![0; limit];
        let length = loop {
            match read(&self.0, &mut buffer) {
                Ok(length) => break length,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return None,
                // A stream whose read fails delivers nothing more.
                Err(_) => break 0,
            }
        };
        buffer.truncate(length);
        Some(buffer)
    }

    /// Waits until there are bytes or the end, and reads. Loses nothing when it is cancelled.
    pub(super) async fn read(&self, limit: usize) -> Vec<u8> {
        loop {
            if self.0.readable().await.is_err() {
                // The runtime ends.
                return Vec::new();
            }
            let mut buffer = vec![0; limit];
            match self.0.try_read(&mut buffer) {
                Ok(length) => {
                    buffer.truncate(length);
                    return buffer;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Vec::new(),
            }
        }
    }

    /// Returns the maximum number of bytes that can wait to be read.
    pub(super) fn capacity(&self) -> usize {
        let pipe = fcntl(&self.0, FcntlArg::F_GETPIPE_SZ).ok();
        pipe.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(TERMINAL_BYTES)
    }
}

impl Sink {
    /// Takes over the writing end of a pipe.
    pub(super) fn of_pipe(end: OwnedFd) -> io::Result<Self> {
        Ok(Self(pipe::Sender::from_owned_fd(end)?))
    }

    /// Writes all bytes, and waits while nobody reads them.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.0.writable().await?;
            match self.0.try_write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
