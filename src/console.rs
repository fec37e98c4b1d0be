//! The workload's output: two pipes from libkrun, one file, a thread that never stops reading.
//!
//! libkrun sets `O_NONBLOCK` on what it is given and waits for ever when that is full, so it gets
//! pipes of its own, and they are always drained. A file is kept within its bound: the oldest output
//! makes room for the newest. What the disk does not take is lost, not waited for; a reader of a
//! FIFO or terminal is waited for a second once. All that is not kept is counted.

mod device;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use a3s_box_core::event::{ConsoleMetrics, TruncationCause};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::watch;

use self::device::Device;
use crate::report::rotated_file::{RotatedFile, RotatedFileError, Rotation};
use crate::spec::{ConsoleSpec, VmSpec};
use crate::state::dir::StateDir;

/// The console cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    #[error("cannot open the console `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot keep the console in a file")]
    File(#[from] RotatedFileError),
    #[error("cannot make the pipes or the thread of the console")]
    Pipe(#[source] io::Error),
}

/// Both ends of the console.
#[derive(Debug)]
pub(crate) struct Console {
    pub(crate) ports: Ports,
    pub(crate) relay: Relay,
}

/// The ends for libkrun.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The thread that drains the pipes.
#[derive(Debug)]
pub(crate) struct Relay {
    state: Arc<State>,
    thread: JoinHandle<()>,
}

/// Output that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Truncation {
    /// All of it since the start.
    pub(crate) discarded_bytes: u64,
    /// Why the last of it is not.
    pub(crate) cause: TruncationCause,
}

#[derive(Debug)]
struct State {
    stdout_bytes: AtomicU64,
    stderr_bytes: AtomicU64,
    truncation: watch::Sender<Option<Truncation>>,
    /// Readable once the thread is to end with what is in the pipes; never read.
    finish: EventFd,
}

/// Where the output goes.
#[derive(Debug)]
enum Sink {
    File(RotatedFile),
    Device(Device),
}

/// A console whose thread is not started yet.
#[derive(Debug)]
pub(crate) struct Opened {
    ports: Ports,
    pipes: [File; 2],
    sink: Sink,
}

/// Opens the console, wherever it is.
pub(crate) fn open(spec: &VmSpec, state: &StateDir) -> Result<Opened, ConsoleError> {
    let sink = Sink::open(&spec.console, state, Rotation::of(spec.confinement))?;
    let (stdout, stdout_port) = io::pipe().map_err(ConsoleError::Pipe)?;
    let (stderr, stderr_port) = io::pipe().map_err(ConsoleError::Pipe)?;
    let pipes = [File::from(OwnedFd::from(stdout)), File::from(OwnedFd::from(stderr))];
    Ok(Opened {
        ports: Ports { stdout: stdout_port.into(), stderr: stderr_port.into() },
        pipes,
        sink,
    })
}

impl Opened {
    /// Starts the thread.
    pub(crate) fn start(self) -> Result<Console, ConsoleError> {
        let relay = Relay::start(self.pipes, self.sink).map_err(ConsoleError::Pipe)?;
        Ok(Console { ports: self.ports, relay })
    }
}

impl Sink {
    fn open(
        spec: &ConsoleSpec,
        state: &StateDir,
        rotation: Rotation,
    ) -> Result<Self, ConsoleError> {
        match &spec.path {
            Some(path) => Self::open_path(path, spec.max_bytes, rotation),
            // Without an own file the console of an earlier box of this id would be continued.
            None => Ok(Self::File(RotatedFile::create(&state.console(), spec.max_bytes)?)),
        }
    }

    /// A FIFO without a reader is an error and not a wait. A terminal does not become ours.
    fn open_path(path: &Path, max_bytes: u64, rotation: Rotation) -> Result<Self, ConsoleError> {
        let failed = |source| ConsoleError::Open { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        options.custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
        let file = options.open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Ok(Self::Device(Device::new(file)));
        }
        // Not a symlink is to be renamed, but what it leads to.
        let path = fs::canonicalize(path).map_err(failed)?;
        Ok(Self::File(RotatedFile::open_for(&path, max_bytes, rotation)?))
    }

    /// Writes a chunk, and tells what is not kept of it, or of earlier ones because of it.
    fn write(&mut self, chunk: &[u8], mut tell: impl FnMut(u64, TruncationCause)) {
        match self {
            Self::File(file) => {
                let loss = file.append(chunk);
                tell(loss.old_bytes, TruncationCause::Size);
                tell(loss.new_bytes, TruncationCause::WriteFailed);
            }
            Self::Device(device) => {
                if let Some((bytes, cause)) = device.write(chunk) {
                    tell(bytes, cause);
                }
            }
        }
    }
}

impl Relay {
    fn start(pipes: [File; 2], sink: Sink) -> io::Result<Self> {
        let finish = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (stdout_bytes, stderr_bytes) = Default::default();
        let (truncation, _receiver) = watch::channel(None);
        let state = Arc::new(State { stdout_bytes, stderr_bytes, truncation, finish });
        let thread = {
            let state = Arc::clone(&state);
            thread::Builder::new().name("console".into()).spawn(move || relay(&state, pipes, sink))
        };
        Ok(Self { state, thread: thread? })
    }

    /// Whether at least this much has arrived of each stream.
    pub(crate) fn has(&self, stdout_bytes: u64, stderr_bytes: u64) -> bool {
        self.state.stdout_bytes.load(Ordering::Acquire) >= stdout_bytes
            && self.state.stderr_bytes.load(Ordering::Acquire) >= stderr_bytes
    }

    /// What has arrived, and what of it is not kept.
    pub(crate) fn metrics(&self) -> ConsoleMetrics {
        let truncation = *self.state.truncation.borrow();
        ConsoleMetrics {
            stdout_bytes: self.state.stdout_bytes.load(Ordering::Acquire),
            stderr_bytes: self.state.stderr_bytes.load(Ordering::Acquire),
            discarded_bytes: truncation.map_or(0, |truncation| truncation.discarded_bytes),
        }
    }

    /// Tells whenever output is not kept, up to thousands of times a second in a flood.
    pub(crate) fn truncation(&self) -> watch::Receiver<Option<Truncation>> {
        self.state.truncation.subscribe()
    }

    /// Asks the thread to end once the pipes are empty, and says whether it has.
    pub(crate) fn finish(&self) -> bool {
        // It only fails when it is readable already.
        let _readable = self.state.finish.write(1);
        self.thread.is_finished()
    }
}

impl State {
    fn tell(&self, bytes: u64, cause: TruncationCause) {
        if bytes > 0 {
            self.truncation.send_modify(|truncation| {
                let before = truncation.map_or(0, |truncation| truncation.discarded_bytes);
                *truncation = Some(Truncation { discarded_bytes: before + bytes, cause });
            });
        }
    }
}

fn relay(state: &State, [stdout, stderr]: [File; 2], mut sink: Sink) {
    let mut streams = vec![(stdout, &state.stdout_bytes), (stderr, &state.stderr_bytes)];
    let mut buffer = vec![0; 64 * 1024];
    while !streams.is_empty() {
        let mut fds = vec![PollFd::new(state.finish.as_fd(), PollFlags::POLLIN)];
        fds.extend(streams.iter().map(|(pipe, _)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        // An interruption leaves nothing readable.
        let _count = poll(&mut fds, PollTimeout::NONE);
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let [finish, readable @ ..] = &ready[..] else { return };
        if *finish && !readable.contains(&true) {
            return;
        }
        let mut readable = readable.iter();
        streams.retain_mut(|(pipe, count)| {
            if !readable.next().unwrap_or(&false) {
                return true;
            }
            match pipe.read(&mut buffer) {
                Ok(0) => false,
                Ok(length) => {
                    let chunk = buffer.get(..length).unwrap_or_default();
                    sink.write(chunk, |bytes, cause| state.tell(bytes, cause));
                    // Counted last: who sees the count finds the output, or the loss of it.
                    count.fetch_add(length as u64, Ordering::Release);
                    true
                }
                Err(error) => error.kind() == io::ErrorKind::Interrupted,
            }
        });
    }
}

#[cfg(test)]
mod tests;
