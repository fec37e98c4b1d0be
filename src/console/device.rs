//! A console that is not a file: a FIFO, a terminal or another device, with a reader that may not read.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use a3s_box_core::event::TruncationCause;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a chunk (64 KiB) waits for a reader: a busy one comes back within it, and the console
/// thread still drains the guest's pipes within the 2 s that the end of a box gives it.
const READER_TIMEOUT: Duration = Duration::from_secs(1);

/// A device, opened non-blocking.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    /// Whether the reader did not take the last chunk in time: it is not waited for again before it
    /// has taken a whole one.
    is_stuck: bool,
}

impl Device {
    pub(super) fn new(file: File) -> Self {
        Self { file, is_stuck: false }
    }

    /// Writes a chunk, or as much of it as is taken; says how much was not, and why.
    pub(super) fn write(&mut self, chunk: &[u8]) -> Option<(u64, TruncationCause)> {
        let deadline = Instant::now() + READER_TIMEOUT;
        let mut rest = chunk;
        while !rest.is_empty() {
            let cause = match self.file.write(rest) {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.is_stuck && self.wait_until(deadline) {
                        continue;
                    }
                    self.is_stuck = true;
                    TruncationCause::SlowReader
                }
                // The reader is gone; a later one gets what comes then.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    TruncationCause::SlowReader
                }
                Err(_) => TruncationCause::WriteFailed,
            };
            return Some((rest.len() as u64, cause));
        }
        self.is_stuck = false;
        None
    }

    /// Whether it became writable in time.
    fn wait_until(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        // A second fits.
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, timeout).is_ok_and(|ready| ready == 1)
    }
}
