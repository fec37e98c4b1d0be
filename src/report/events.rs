//! The event stream: numbered, written in order, never a reason to wait.
//!
//! Only this module writes to the original standard output. `emit` queues an event and writes as
//! much of the queue as the reader takes at once; the control thread calls [`EventWriter::flush`]
//! while something is left. When the reader is far behind, events that may be dropped are, before
//! they get a number, and changes of state and health are merged. How many so vanished is told before
//! the next event that is not dropped, or once nothing waits any more.
//!
//! ```text
//!  emit ──► may be dropped ── 256 lines or 4 MiB wait ──► counted
//!     ├───► state, health ── 1024 lines or 4 MiB wait ──► merged, until there is room
//!     └───► all others ──► numbered ──► waiting lines ──► standard output
//!                             └───────► `events.file`
//! ```
//!
//! What waits is bounded by some 6 MiB: 4 MiB, one more line, and the other events, of which a box
//! has a few dozen. Those are short but for one `image.resolved` (under 1 MiB) and an error (under
//! half of one, see [`MAX_ERROR_TEXT_BYTES`]).

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use a3s_box_core::event::{EVENT_VERSION, EventKind, EventMetrics};
use a3s_box_core::{ErrorReport, Event};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::merged::{Merged, Moment};
use super::rotated_file::{RotatedFile, RotatedFileError, Rotation};

/// Lines that may wait before progress, metrics and the like are dropped. The other events of a box
/// are a few dozen.
const MAX_WAITING_LINES: usize = 256;

/// Lines that may wait before changes of state and health are merged: four times as many, so that
/// they are the last to be lost.
const MAX_WAITING_CHANGES: usize = 1024;

/// Bytes that may wait before the same: 1024 lines of 4 KiB, of which few have more than 300 bytes.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// Longest text of an error: longer than any path or message that a person reads.
const MAX_ERROR_TEXT_BYTES: usize = 4096;

/// Causes of an error that are told. With the longest texts, each byte written as six, the line has
/// 430 KiB.
const MAX_CAUSES: usize = 16;

/// What a pipe takes without blocking once it polls as writable (`PIPE_BUF`, pipe(7)).
const CHUNK_BYTES: usize = 4096;

/// How long the end of the process waits for a reader of the last events.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The stream cannot be kept in a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the events in `{}`", path.display())]
pub(crate) struct EventFileError {
    path: PathBuf,
    source: RotatedFileError,
}

/// Writes events; shared by the main and the control thread.
#[derive(Debug)]
pub(crate) struct EventWriter {
    start: Instant,
    stream: Mutex<Stream>,
}

#[derive(Debug)]
struct Stream {
    fd: OwnedFd,
    file: Option<RotatedFile>,
    /// Whether the last line is missing in the file.
    file_fails: bool,
    box_id: String,
    /// Its `waiting` is not kept up: that is `lines`.
    metrics: EventMetrics,
    /// Dropped events that are not announced yet.
    unannounced: u64,
    /// When the last of them happened.
    last_drop: Option<Moment>,
    merged: Merged,
    lines: VecDeque<Box<[u8]>>,
    waiting_bytes: usize,
    /// Bytes of the first line that are written already.
    written: usize,
    reader_gone: bool,
}

impl EventWriter {
    /// A writer on `fd`, with a clock that starts now.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let stream = Stream {
            fd: own_description(&fd).unwrap_or(fd),
            file: None,
            file_fails: false,
            box_id: String::new(),
            metrics: EventMetrics::default(),
            unannounced: 0,
            last_drop: None,
            merged: Merged::default(),
            lines: VecDeque::new(),
            waiting_bytes: 0,
            written: 0,
            reader_gone: false,
        };
        Self { start: Instant::now(), stream: Mutex::new(stream) }
    }

    /// Names the box in all later events.
    pub(crate) fn name(&self, box_id: &str) {
        box_id.clone_into(&mut self.lock().box_id);
    }

    /// Appends all later events to a file, too, whether or not somebody reads the stream. The file and
    /// the one before it (`.1`) together stay within `max_bytes`. A line that the disk does not take,
    /// or that is longer than half of that, is missing in the file: a gap in `seq` shows it.
    pub(crate) fn keep(
        &self,
        path: &Path,
        max_bytes: u64,
        rotation: Rotation,
    ) -> Result<(), EventFileError> {
        let failed = |source| EventFileError { path: path.to_owned(), source };
        let mut file = RotatedFile::open_for(path, max_bytes, rotation).map_err(failed)?;
        file.complete_line().map_err(failed)?;
        self.lock().file = Some(file);
        Ok(())
    }

    /// Adds an event to the stream.
    pub(crate) fn emit(&self, kind: EventKind) {
        let mut stream = self.lock();
        // Read under the lock, so that no event is older than the one before it.
        let moment = Moment { time: Timestamp::now(), elapsed_ms: self.elapsed_ms() };
        stream.add(bounded(kind), moment);
        stream.drain(PollTimeout::ZERO);
    }

    /// Writes what the reader takes now; says whether something is left.
    pub(crate) fn flush(&self) -> bool {
        let mut stream = self.lock();
        stream.drain(PollTimeout::ZERO);
        !stream.lines.is_empty()
    }

    /// Writes all that is left, within a bound.
    pub(crate) fn finish(&self) {
        let deadline = Instant::now() + FINISH_TIMEOUT;
        while Instant::now() < deadline && self.flush() {
            self.lock().drain(PollTimeout::from(100_u8));
        }
    }

    /// What was written, what was dropped, and what waits.
    pub(crate) fn metrics(&self) -> EventMetrics {
        let stream = self.lock();
        EventMetrics { waiting: stream.lines.len() as u64, ..stream.metrics }
    }

    /// Time since the shim started.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Time since the shim started, in milliseconds.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    fn add(&mut self, kind: EventKind, moment: Moment) {
        if kind.is_droppable() && self.is_behind(MAX_WAITING_LINES) {
            self.drop_events(1);
            self.last_drop = Some(moment);
            return;
        }
        if Merged::takes(&kind) && self.is_behind(MAX_WAITING_CHANGES) {
            let given_up = self.merged.add(kind, moment);
            self.drop_events(given_up);
            self.last_drop = Some(moment);
            return;
        }
        self.tell_merged();
        self.announce_drops(moment);
        self.push(kind, moment);
    }

    fn is_behind(&self, max_lines: usize) -> bool {
        self.lines.len() >= max_lines || self.waiting_bytes >= MAX_WAITING_BYTES
    }

    fn drop_events(&mut self, count: u64) {
        self.unannounced += count;
        self.metrics.dropped += count;
    }

    fn tell_merged(&mut self) {
        let (changes, void) = self.merged.take();
        self.drop_events(void);
        for (kind, moment) in changes {
            self.announce_drops(moment);
            self.push(kind, moment);
        }
    }

    fn announce_drops(&mut self, moment: Moment) {
        let count = std::mem::take(&mut self.unannounced);
        if count > 0 {
            self.push(EventKind::EventsDropped { count }, moment);
        }
    }

    fn push(&mut self, kind: EventKind, moment: Moment) {
        let event = Event {
            v: EVENT_VERSION,
            seq: self.metrics.emitted,
            time: format!("{:.3}", moment.time),
            elapsed_ms: moment.elapsed_ms,
            box_id: self.box_id.clone(),
            kind,
        };
        // Events hold strings and numbers only, which serde_json always writes.
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        self.metrics.emitted += 1;
        self.metrics.emitted_bytes += line.len() as u64;
        self.keep(&line);
        if !self.reader_gone {
            self.waiting_bytes += line.len();
            self.lines.push_back(line.into_boxed_slice());
        }
    }

    /// Appends to the file. A full disk costs lines of the file, and nothing else.
    fn keep(&mut self, line: &[u8]) {
        let Some(file) = &mut self.file else { return };
        match file.append_line(line) {
            Ok(()) => self.file_fails = false,
            // Once, and not for each line.
            Err(error) if !std::mem::replace(&mut self.file_fails, true) => {
                tracing::warn!("the file of events lacks a line: {error}");
            }
            Err(_) => {}
        }
    }

    /// Writes until the reader takes nothing within `timeout`; then what was merged, once there is room,
    /// and what was dropped, once nothing waits.
    fn drain(&mut self, timeout: PollTimeout) {
        self.write(timeout);
        if !self.merged.is_empty() && !self.is_behind(MAX_WAITING_CHANGES) {
            self.tell_merged();
            self.write(PollTimeout::ZERO);
        }
        if let (true, Some(moment)) = (self.lines.is_empty(), self.last_drop) {
            self.announce_drops(moment);
            self.write(PollTimeout::ZERO);
        }
    }

    fn write(&mut self, timeout: PollTimeout) {
        while let Some(line) = self.lines.front() {
            if self.reader_gone {
                self.lines.clear();
                self.waiting_bytes = 0;
                return;
            }
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
            if !poll(&mut fds, timeout).is_ok_and(|ready| ready == 1) {
                return;
            }
            let rest = line.get(self.written..).unwrap_or_default();
            let chunk = rest.get(..CHUNK_BYTES).unwrap_or(rest);
            match nix::unistd::write(&self.fd, chunk) {
                Ok(count) if count == rest.len() => {
                    self.waiting_bytes -= line.len();
                    self.lines.pop_front();
                    self.written = 0;
                }
                Ok(count) => self.written += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => self.reader_gone = true,
            }
        }
    }
}

/// Opens a pipe a second time, so that it can be non-blocking for us alone: where the log goes to the
/// same pipe, another thread may fill it between our poll and our write.
fn own_description(fd: &OwnedFd) -> Option<OwnedFd> {
    let is_pipe = fstat(fd).is_ok_and(|found| {
        SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO
    });
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    is_pipe.then(|| open(&*path, flags, Mode::empty()).ok()).flatten()
}

/// Cuts the only event whose texts come from everywhere.
fn bounded(kind: EventKind) -> EventKind {
    let EventKind::Error(report) = kind else { return kind };
    let cut = |mut text: String| {
        text.truncate(text.floor_char_boundary(MAX_ERROR_TEXT_BYTES));
        text
    };
    EventKind::Error(ErrorReport {
        message: cut(report.message),
        causes: report.causes.into_iter().take(MAX_CAUSES).map(cut).collect(),
        hint: report.hint.map(cut),
        ..report
    })
}

#[cfg(test)]
mod tests;
