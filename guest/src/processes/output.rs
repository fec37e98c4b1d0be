//! The output of a process: its last bytes, the readers of them, and the flow control.
//!
//! ```text
//!            start                 position of a reader        end
//!              │  run │ run │ run │ run ▼ │ run │ run │ run │ run │ ◄── pumps append
//!              └─────── sent to all ──────┴───── backlog ─────────┘
//! ```
//!
//! Bytes have a position in the sequence of both streams. A run is a number of bytes of one stream.
//! The oldest runs are dropped when there are more than [`REPLAY_BYTES`], but never one that a
//! reader has not read: the pumps stop before that, at [`BACKLOG_BYTES`]. Without a reader nothing
//! stops them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use a3s_box_proto::process::{Ended, Failed, ended};
use tokio::sync::watch;

use crate::syscall::Status;

/// Maximum length of a chunk in bytes.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// Size of the last output that is kept for later readers, in bytes.
const REPLAY_BYTES: usize = 1024 * 1024;

/// Size of the output that the slowest reader has not read, at which the pumps stop. Each of the
/// two pumps may append one chunk more, and the sum is far below [`REPLAY_BYTES`].
const BACKLOG_BYTES: usize = 256 * 1024;

/// The bytes that a run counts beyond its own, for the memory of its bookkeeping. A process can
/// write single bytes to its two streams in turn.
const RUN_BYTES: usize = 64;

/// The stream that bytes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Stdout,
    Stderr,
}

/// What a process does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    /// The guest program starts it.
    Starting,
    /// It was not started.
    Failed(Failed),
    /// It runs, with this PID.
    Running(u32),
    /// It has ended, and all of its output is here.
    Ended(u32, Ended),
}

/// The output of one process.
#[derive(Debug)]
pub(super) struct Output {
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    runs: VecDeque<Run>,
    /// Position after the last byte.
    end: u64,
    stdout_bytes: u64,
    stderr_bytes: u64,
    /// The position of each reader, by its number.
    readers: HashMap<u64, u64>,
    last_reader: u64,
    phase: Phase,
}

#[derive(Debug)]
struct Run {
    channel: Channel,
    start: u64,
    bytes: Vec<u8>,
}

/// The next thing that a reader gets.
#[derive(Debug, PartialEq)]
pub(super) enum Item {
    Bytes(Channel, Vec<u8>),
    Ended(Ended),
}

impl Output {
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            runs: VecDeque::new(),
            end: 0,
            stdout_bytes: 0,
            stderr_bytes: 0,
            readers: HashMap::new(),
            last_reader: 0,
            phase: Phase::Starting,
        };
        Arc::new(Self { state: Mutex::new(state), changes: watch::Sender::new(()) })
    }

    /// Returns what the process does.
    pub(super) fn phase(&self) -> Phase {
        self.lock().phase.clone()
    }

    /// Changes what the process does.
    pub(super) fn set_phase(&self, phase: Phase) {
        self.lock().phase = phase;
        self.changes.send_replace(());
    }

    /// Records the end of the process, after all of its output.
    pub(super) fn end(&self, pid: u32, status: Status, deadline_exceeded: bool) {
        let status = match status {
            Status::Exited(code) => ended::Status::ExitCode(code.into()),
            Status::Signaled(signal) => ended::Status::Signal(signal.into()),
        };
        let (stdout_bytes, stderr_bytes) = {
            let state = self.lock();
            (state.stdout_bytes, state.stderr_bytes)
        };
        let ended = Ended { status: Some(status), stdout_bytes, stderr_bytes, deadline_exceeded };
        self.set_phase(Phase::Ended(pid, ended));
    }

    /// Waits until the process is no longer being started.
    pub(super) async fn started(&self) -> Phase {
        self.wait_for(|state| (state.phase != Phase::Starting).then(|| state.phase.clone())).await
    }

    /// Waits for the end of the process, or for the failure to start it.
    pub(super) async fn ended(&self) -> Result<Ended, Failed> {
        self.wait_for(|state| match &state.phase {
            Phase::Starting | Phase::Running(_) => None,
            Phase::Failed(failed) => Some(Err(failed.clone())),
            Phase::Ended(_, ended) => Some(Ok(*ended)),
        })
        .await
    }

    /// Waits until the readers have read enough for another chunk.
    pub(super) async fn room(&self) {
        self.wait_for(|state| state.has_room().then_some(())).await;
    }

    /// Appends bytes, at most [`CHUNK_BYTES`]. The caller has waited for [`room`](Self::room).
    pub(super) fn append(&self, channel: Channel, bytes: &[u8]) {
        self.lock().append(channel, bytes);
        self.changes.send_replace(());
    }

    /// Returns the size of the kept output in bytes.
    pub(super) fn size(&self) -> usize {
        self.lock().size()
    }

    /// Returns a reader that starts with the oldest kept output.
    pub(super) fn reader(self: &Arc<Self>) -> Reader {
        let mut state = self.lock();
        state.last_reader += 1;
        let (id, start) = (state.last_reader, state.start());
        state.readers.insert(id, start);
        Reader { output: Arc::clone(self), id, skipped: start }
    }

    /// Waits until `check` returns a value. It is called again after each change.
    async fn wait_for<T>(&self, mut check: impl FnMut(&mut State) -> Option<T>) -> T {
        // Subscribed before the first check, so that no change after it is missed.
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(value) = check(&mut self.lock()) {
                return value;
            }
            // The sender exists as long as `self`, so the result is never an error.
            drop(changes.changed().await);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic ends PID 1 and the box with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the position of the oldest byte.
    fn start(&self) -> u64 {
        self.runs.front().map_or(self.end, |run| run.start)
    }

    /// Returns what the runs from the one at `index` count.
    fn size_from(&self, index: usize) -> usize {
        let start = self.runs.get(index).map_or(self.end, |run| run.start);
        let bytes = usize::try_from(self.end - start).unwrap_or(usize::MAX);
        bytes.saturating_add((self.runs.len() - index) * RUN_BYTES)
    }

    fn size(&self) -> usize {
        self.size_from(0)
    }

    /// Returns the index of the run with the byte at `position`.
    fn run_at(&self, position: u64) -> usize {
        self.runs.partition_point(|run| run.start + run.bytes.len() as u64 <= position)
    }

    fn has_room(&self) -> bool {
        let slowest = self.readers.values().min();
        slowest.is_none_or(|position| self.size_from(self.run_at(*position)) <= BACKLOG_BYTES)
    }

    fn append(&mut self, channel: Channel, bytes: &[u8]) {
        let length = bytes.len() as u64;
        match self.runs.back_mut() {
            Some(run) if run.channel == channel && run.bytes.len() + bytes.len() <= CHUNK_BYTES => {
                run.bytes.extend_from_slice(bytes);
            }
            _ => self.runs.push_back(Run { channel, start: self.end, bytes: bytes.to_vec() }),
        }
        self.end += length;
        match channel {
            Channel::Stdout => self.stdout_bytes += length,
            Channel::Stderr => self.stderr_bytes += length,
        }
        let unread = self.readers.values().min().copied().unwrap_or(self.end);
        while self.size() > REPLAY_BYTES
            && self.runs.front().is_some_and(|run| run.start + run.bytes.len() as u64 <= unread)
        {
            self.runs.pop_front();
        }
    }

    /// Returns the next bytes at `position`, or the end of the process.
    fn next(&self, position: u64) -> Option<Item> {
        if let Some(run) = self.runs.get(self.run_at(position)) {
            let offset = usize::try_from(position - run.start).unwrap_or_default();
            return Some(Item::Bytes(run.channel, run.bytes[offset..].to_vec()));
        }
        match &self.phase {
            Phase::Ended(_, ended) => Some(Item::Ended(*ended)),
            Phase::Starting | Phase::Failed(_) | Phase::Running(_) => None,
        }
    }
}

/// A reader of the output of a process. The pumps wait for it until it is dropped.
#[derive(Debug)]
pub(super) struct Reader {
    output: Arc<Output>,
    id: u64,
    /// Number of bytes that were dropped before the first one of this reader.
    pub(super) skipped: u64,
}

impl Reader {
    /// Returns the next bytes, or the end. Loses nothing when it is cancelled.
    pub(super) async fn next(&mut self) -> Item {
        let item = self
            .output
            .wait_for(|state| {
                let position = state.readers.get(&self.id).copied().unwrap_or(state.end);
                let item = state.next(position)?;
                if let Item::Bytes(_, bytes) = &item {
                    state.readers.insert(self.id, position + bytes.len() as u64);
                }
                Some(item)
            })
            .await;
        // The pumps may wait for this read.
        self.output.changes.send_replace(());
        item
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.output.lock().readers.remove(&self.id);
        self.output.changes.send_replace(());
    }
}
