//! The event stream: numbered lines in order, written without blocking.
//!
//! Only this module writes to the original standard output. `emit` queues an event and writes as
//! much of the queue as the reader takes without blocking. The control thread calls
//! [`EventWriter::flush`] while lines are waiting.
//!
//! When the reader is far behind, droppable events are dropped before they get a number, and
//! changes of state and of health are merged. The number of lost events is announced before the
//! next event that is not dropped, or as soon as no line is waiting.
//!
//! ```text
//!  emit ──► droppable ────── 256 lines or 4 MiB wait ──► counted
//!     ├───► state, health ── 1024 lines or 4 MiB wait ──► merged, until there is space
//!     └───► all others ──► numbered ──► waiting lines ──► standard output
//!                             └───────► `events.file`
//! ```
//!
//! The waiting lines take at most about 6 MiB: 4 MiB, one more line, and the events of which none
//! is lost. A box has a few dozen of those. They are short, except for one `image.resolved` (below
//! 1 MiB) and an error (below half a MiB, see [`MAX_ERROR_TEXT_BYTES`]).

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
use super::output_place::OutputPlace;
use super::rotated_file::{RotatedFile, RotatedFileError, Rotation};

/// Number of waiting lines from which on droppable events, such as progress and metrics, are
/// dropped. The other events of a box are a few dozen, so they fit into far less.
const MAX_WAITING_LINES: usize = 256;

/// Number of waiting lines from which on changes of state and health are merged. It is four times
/// as high, so that these events are lost last.
const MAX_WAITING_CHANGES: usize = 1024;

/// Number of waiting bytes from which on both happens: 1024 lines of 4 KiB. Few lines have more
/// than 300 bytes, so usually the limits on lines apply first.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// Longest text in an error. No path or message that a person reads is as long.
const MAX_ERROR_TEXT_BYTES: usize = 4096;

/// Most causes of an error. With the longest texts, and each byte escaped as six by JSON, the line
/// has 430 KiB.
const MAX_CAUSES: usize = 16;

/// Bytes that a pipe takes without blocking once `poll(2)` reports it as writable (`PIPE_BUF`,
/// pipe(7)).
const CHUNK_BYTES: usize = 4096;

/// Longest time that the end of the process waits until the last events are read.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the event file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the events in `{}`", path.display())]
pub(crate) struct EventFileError {
    path: PathBuf,
    source: RotatedFileError,
}

/// Writes events. The main thread and the control thread share it.
#[derive(Debug)]
pub(crate) struct EventWriter {
    start: Instant,
    stream: Mutex<Stream>,
}

#[derive(Debug)]
struct Stream {
    fd: OwnedFd,
    file: Option<RotatedFile>,
    /// Whether the last line could not be written to the file.
    file_fails: bool,
    box_id: String,
    /// Figures of the stream. `waiting` is always 0 here, because `lines` has that number.
    metrics: EventMetrics,
    /// Number of dropped events that are not announced yet.
    unannounced: u64,
    /// Time of the last dropped event.
    last_drop: Option<Moment>,
    merged: Merged,
    lines: VecDeque<Box<[u8]>>,
    waiting_bytes: usize,
    /// Number of bytes of the first line that are written already.
    written: usize,
    reader_gone: bool,
}

impl EventWriter {
    /// Makes a writer on `fd`. Its clock of elapsed time starts now.
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

    /// Sets the box id of all later events.
    pub(crate) fn name(&self, box_id: &str) {
        box_id.clone_into(&mut self.lock().box_id);
    }

    /// Appends all later events to a file, too, whether or not the stream is read. The file and the
    /// previous one (`.1`) together stay within `max_bytes`.
    ///
    /// A line is missing in the file if the disk does not take it, or if it is longer than half of
    /// `max_bytes`. A gap in `seq` shows this.
    pub(crate) fn keep(
        &self,
        path: &Path,
        max_bytes: u64,
        rotation: Rotation,
    ) -> Result<(), EventFileError> {
        let failed = |source| EventFileError { path: path.to_owned(), source };
        let place = OutputPlace::find(path).map_err(|error| failed(error.into()))?;
        let mut file = RotatedFile::open_for(place, max_bytes, rotation).map_err(failed)?;
        // The file may be one of an earlier process, which was killed while it wrote a line.
        file.complete_line().map_err(failed)?;
        self.lock().file = Some(file);
        Ok(())
    }

    /// Adds an event to the stream.
    pub(crate) fn emit(&self, kind: EventKind) {
        let mut stream = self.lock();
        // The clock is read under the lock, so that times never go back from one event to the next.
        let moment = Moment { time: Timestamp::now(), elapsed_ms: self.elapsed_ms() };
        stream.add(bounded(kind), moment);
        stream.drain(PollTimeout::ZERO);
    }

    /// Writes as much as the reader takes now, and returns whether lines are left.
    pub(crate) fn flush(&self) -> bool {
        let mut stream = self.lock();
        stream.drain(PollTimeout::ZERO);
        !stream.lines.is_empty()
    }

    /// Writes all waiting lines, but waits at most [`FINISH_TIMEOUT`] for the reader.
    pub(crate) fn finish(&self) {
        let deadline = Instant::now() + FINISH_TIMEOUT;
        while Instant::now() < deadline && self.flush() {
            // The timeout of the poll is short, so that the deadline holds with a slow reader, too.
            self.lock().drain(PollTimeout::from(100_u8));
        }
    }

    /// Returns how many events were written and dropped, and how many are waiting.
    pub(crate) fn metrics(&self) -> EventMetrics {
        let stream = self.lock();
        EventMetrics { waiting: stream.lines.len() as u64, ..stream.metrics }
    }

    /// Returns the time since the shim started.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Returns the time since the shim started in milliseconds.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    /// Drops, merges or queues an event, depending on its kind and on the waiting lines.
    fn add(&mut self, kind: EventKind, moment: Moment) {
        // A dropped event has no number, so a gap in `seq` always means a line that was lost.
        if kind.is_droppable() && self.is_behind(MAX_WAITING_LINES) {
            self.drop_events(1);
            self.last_drop = Some(moment);
            return;
        }
        if Merged::takes(&kind) && self.is_behind(MAX_WAITING_CHANGES) {
            let replaced = self.merged.add(kind, moment);
            self.drop_events(replaced);
            self.last_drop = Some(moment);
            return;
        }
        self.push_merged();
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

    /// Queues the merged changes. They are older than the next event, so they come before it.
    fn push_merged(&mut self) {
        let (changes, dropped) = self.merged.take();
        self.drop_events(dropped);
        for (kind, moment) in changes {
            self.announce_drops(moment);
            self.push(kind, moment);
        }
    }

    /// Queues the number of dropped events, if there are any that are not announced.
    fn announce_drops(&mut self, moment: Moment) {
        let count = std::mem::take(&mut self.unannounced);
        if count > 0 {
            self.push(EventKind::EventsDropped { count }, moment);
        }
    }

    /// Numbers an event, appends it to the file, and queues it.
    fn push(&mut self, kind: EventKind, moment: Moment) {
        let event = Event {
            v: EVENT_VERSION,
            seq: self.metrics.emitted,
            time: format!("{:.3}", moment.time),
            elapsed_ms: moment.elapsed_ms,
            box_id: self.box_id.clone(),
            kind,
        };
        // Serialization cannot fail, because events consist of strings and numbers.
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

    /// Appends a line to the file. On a full disk the file lacks lines, and the box continues.
    fn keep(&mut self, line: &[u8]) {
        let Some(file) = &mut self.file else { return };
        match file.append_line(line) {
            Ok(()) => self.file_fails = false,
            // The warning is logged once for each series of failures, and not for each line.
            Err(error) if !std::mem::replace(&mut self.file_fails, true) => {
                tracing::warn!("the file of events lacks a line: {error}");
            }
            Err(_) => {}
        }
    }

    /// Writes until the reader takes nothing within `timeout`. Then adds the merged changes if
    /// there is space for them, and the number of dropped events if no line is waiting.
    fn drain(&mut self, timeout: PollTimeout) {
        self.write(timeout);
        if !self.merged.is_empty() && !self.is_behind(MAX_WAITING_CHANGES) {
            self.push_merged();
            self.write(PollTimeout::ZERO);
        }
        if let (true, Some(moment)) = (self.lines.is_empty(), self.last_drop) {
            self.announce_drops(moment);
            self.write(PollTimeout::ZERO);
        }
    }

    /// Writes lines in pieces of [`CHUNK_BYTES`], each after a poll, because a longer write to a
    /// blocking pipe could block.
    fn write(&mut self, timeout: PollTimeout) {
        while let Some(line) = self.lines.front() {
            // Without a reader no line is ever written, so the lines would only use memory.
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
                // Another thread has filled the pipe since the poll.
                Err(Errno::EAGAIN) => return,
                Err(_) => self.reader_gone = true,
            }
        }
    }
}

/// Opens a pipe a second time. `O_NONBLOCK` belongs to the open file description, so the new one
/// can be non-blocking without changing the supervisor's.
///
/// The poll before each write does not suffice: if the log goes to the same pipe, another thread
/// can fill it between the poll and the write.
fn own_description(fd: &OwnedFd) -> Option<OwnedFd> {
    let is_pipe = fstat(fd).is_ok_and(|found| {
        SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO
    });
    // A socket cannot be opened by this path (ENXIO), and a second description of a regular file
    // would have an offset of its own.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    is_pipe.then(|| open(&*path, flags, Mode::empty()).ok()).flatten()
}

/// Cuts the texts of an error. All other events bound their texts where they are made.
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
