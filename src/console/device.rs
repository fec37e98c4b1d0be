//! A console that is no regular file: a FIFO, a terminal or another device, whose reader may be
//! slow.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use a3s_box_core::event::TruncationCause;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest time that a chunk (64 KiB) waits for a reader. A busy reader comes back within it. The
/// console thread must still drain the guest's pipes within the 2 s that it has at the end of a
/// box.
const READER_TIMEOUT: Duration = Duration::from_secs(1);

/// A device, opened non-blocking.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    /// Whether the reader has not read the last chunk in time. Then no chunk waits again before the
    /// device has accepted a whole one, because each wait stalls the guest's output for a second.
    is_stuck: bool,
}

impl Device {
    pub(super) fn new(file: File) -> Self {
        Self { file, is_stuck: false }
    }

    /// Writes as much of a chunk as the device accepts. Returns the number of bytes that it did not
    /// accept, with the cause.
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
                // The reader has closed the FIFO. The next reader gets the output from then on.
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

    /// Whether the device has become writable before the deadline.
    fn wait_until(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        // The conversion cannot fail: poll(2) accepts far more than a second.
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, timeout).is_ok_and(|ready| ready == 1)
    }
}
