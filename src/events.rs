//! The event stream: numbered, written in order, never a reason to wait.
//!
//! Only this module writes to the original standard output. `emit` queues an event and writes as
//! much of the queue as the reader takes at once; the control thread calls [`EventWriter::flush`]
//! while something is left. Events that may be dropped are dropped when the reader is far behind,
//! before they get a number, and the next event is preceded by their count.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use a3s_box_core::Event;
use a3s_box_core::event::{EVENT_VERSION, EventKind};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Lines that may wait before progress is dropped. The other events of a box are a few dozen.
const MAX_WAITING_LINES: usize = 256;

/// What a pipe takes without blocking once it polls as writable (`PIPE_BUF`, pipe(7)).
const CHUNK_BYTES: usize = 4096;

/// How long the end of the process waits for a reader of the last events.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Writes events; shared by the main and the control thread.
#[derive(Debug)]
pub(crate) struct EventWriter {
    start: Instant,
    stream: Mutex<Stream>,
}

#[derive(Debug)]
struct Stream {
    fd: OwnedFd,
    box_id: String,
    next_seq: u64,
    dropped: u64,
    lines: VecDeque<Vec<u8>>,
    /// Bytes of the first line that are written already.
    written: usize,
    reader_gone: bool,
}

impl EventWriter {
    /// A writer on `fd`, with a clock that starts now.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let stream = Stream {
            fd,
            box_id: String::new(),
            next_seq: 0,
            dropped: 0,
            lines: VecDeque::new(),
            written: 0,
            reader_gone: false,
        };
        Self { start: Instant::now(), stream: Mutex::new(stream) }
    }

    /// Names the box in all later events.
    pub(crate) fn name(&self, box_id: &str) {
        box_id.clone_into(&mut self.lock().box_id);
    }

    /// Adds an event to the stream.
    pub(crate) fn emit(&self, kind: EventKind) {
        let elapsed_ms = self.elapsed_ms();
        let mut stream = self.lock();
        stream.add(kind, elapsed_ms);
        stream.write(PollTimeout::ZERO);
    }

    /// Writes what the reader takes now; says whether something is left.
    pub(crate) fn flush(&self) -> bool {
        let mut stream = self.lock();
        stream.write(PollTimeout::ZERO);
        !stream.lines.is_empty()
    }

    /// Writes all that is left, within a bound.
    pub(crate) fn finish(&self) {
        let deadline = Instant::now() + FINISH_TIMEOUT;
        while Instant::now() < deadline && self.flush() {
            self.lock().write(PollTimeout::from(100_u8));
        }
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
    fn add(&mut self, kind: EventKind, elapsed_ms: u64) {
        if kind.is_droppable() && self.lines.len() >= MAX_WAITING_LINES {
            self.dropped += 1;
            return;
        }
        if self.dropped > 0 {
            let count = std::mem::take(&mut self.dropped);
            self.push(EventKind::EventsDropped { count }, elapsed_ms);
        }
        self.push(kind, elapsed_ms);
    }

    fn push(&mut self, kind: EventKind, elapsed_ms: u64) {
        let event = Event {
            v: EVENT_VERSION,
            seq: self.next_seq,
            time: format!("{:.3}", jiff::Timestamp::now()),
            elapsed_ms,
            box_id: self.box_id.clone(),
            kind,
        };
        self.next_seq += 1;
        // Events hold strings and numbers only, which serde_json always writes.
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        self.lines.push_back(line);
    }

    /// Writes until the reader takes nothing within `timeout`.
    fn write(&mut self, timeout: PollTimeout) {
        while let Some(line) = self.lines.front() {
            if self.reader_gone {
                self.lines.clear();
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn progress(bytes_done: u64) -> EventKind {
        let layer = "x".repeat(1000);
        EventKind::RootfsProgress {
            layer,
            layer_number: 1,
            layers: 1,
            bytes_done,
            bytes_total: 9,
            image_bytes_done: bytes_done,
            image_bytes_total: 9,
        }
    }

    #[test]
    fn a_reader_that_does_not_read_costs_progress_only_and_the_count_is_told() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let events = EventWriter::new(writer.into());
        for i in 0..5000 {
            events.emit(progress(i));
        }
        events.emit(EventKind::PrepareDone {});
        let waiting = events.lock().lines.len();
        assert!(waiting <= MAX_WAITING_LINES + 2, "{waiting}");

        let received = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        events.finish();
        drop(events);
        let text = received.join().unwrap();
        let events: Vec<Event> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(events.iter().enumerate().all(|(i, event)| event.seq == i as u64));
        assert_eq!(events.last().unwrap().kind, EventKind::PrepareDone {});
        let progress = events.iter().filter(|event| event.kind.is_droppable()).count() as u64;
        let dropped: u64 = events
            .iter()
            .map(|event| match event.kind {
                EventKind::EventsDropped { count } => count,
                _ => 0,
            })
            .sum();
        assert!(dropped > 0);
        assert_eq!(progress + dropped, 5000);
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error_and_costs_no_memory() {
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        let events = EventWriter::new(writer.into());
        for _ in 0..100 {
            events.emit(EventKind::PrepareDone {});
        }
        events.finish();
        assert!(events.lock().lines.is_empty());
    }
}
