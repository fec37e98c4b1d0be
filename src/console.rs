//! The console: the relay of the workload's output from two pipes to a file or a device.
//!
//! libkrun sets `O_NONBLOCK` on the fds of its console ports and waits forever while they are full.
//! The shim therefore gives it pipes, and a thread always drains them. A console file has a maximum
//! size: the oldest output is discarded for the newest. Output that the disk does not accept is
//! discarded at once, because waiting would stall the guest. The reader of a FIFO or terminal has
//! one second, once. All discarded output is counted.

mod device;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use a3s_box_core::event::{ConsoleMetrics, TruncationCause};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::SFlag;
use tokio::sync::watch;

use self::device::Device;
use crate::report::output_place::{OutputError, OutputPlace, description};
use crate::report::rotated_file::{RotatedFile, RotatedFileError, Rotation};
use crate::spec::{ConsoleSpec, VmSpec};
use crate::state::dir::StateDir;

/// Error of opening the console.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    #[error("cannot open the console")]
    Open(#[from] OutputError),
    #[error("`{}`: found {found}, expected a file, a FIFO or a device", path.display())]
    Unsuitable { path: PathBuf, found: &'static str },
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

/// The ends of the pipes that libkrun writes to.
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

/// Discarded output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Truncation {
    /// Number of bytes since the start of the box.
    pub(crate) discarded_bytes: u64,
    /// Cause of the latest discard.
    pub(crate) cause: TruncationCause,
}

#[derive(Debug)]
struct State {
    stdout_bytes: AtomicU64,
    stderr_bytes: AtomicU64,
    truncation: watch::Sender<Option<Truncation>>,
    /// Readable once the thread shall end as soon as the pipes are empty. It is never read, so it
    /// stays readable.
    finish: EventFd,
}

/// Destination of the output.
#[derive(Debug)]
enum Sink {
    File(RotatedFile),
    Device(Device),
}

/// A console without its thread. The jail and the seccomp filter come between `open` and `start`.
#[derive(Debug)]
pub(crate) struct Opened {
    ports: Ports,
    pipes: [File; 2],
    sink: Sink,
}

/// Opens the file or device of the console, and makes the pipes.
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
            // A new file is made, because this box must not append to the console of an earlier
            // one.
            None => Ok(Self::File(RotatedFile::create(&state.console(), spec.max_bytes)?)),
        }
    }

    /// Opens a path of the config. A FIFO without a reader is an error (ENXIO).
    fn open_path(path: &Path, max_bytes: u64, rotation: Rotation) -> Result<Self, ConsoleError> {
        let place = OutputPlace::find(path)?;
        match place.kind()? {
            None | Some(SFlag::S_IFREG) => {
                Ok(Self::File(RotatedFile::open_for(place, max_bytes, rotation)?))
            }
            Some(SFlag::S_IFIFO | SFlag::S_IFCHR | SFlag::S_IFBLK) => {
                Ok(Self::Device(Device::new(place.open(OFlag::O_WRONLY)?)))
            }
            // A symbolic link could lead out of the directory that was checked.
            Some(kind) => {
                let (path, found) = (path.to_owned(), description(kind));
                Err(ConsoleError::Unsuitable { path, found })
            }
        }
    }

    /// Writes a chunk. Calls `on_discard` for the bytes that are lost: bytes of the chunk, and
    /// bytes of earlier output that a rotation has removed for it.
    fn write(&mut self, chunk: &[u8], mut on_discard: impl FnMut(u64, TruncationCause)) {
        match self {
            Self::File(file) => {
                let loss = file.append(chunk);
                on_discard(loss.old_bytes, TruncationCause::Size);
                on_discard(loss.new_bytes, TruncationCause::WriteFailed);
            }
            Self::Device(device) => {
                if let Some((bytes, cause)) = device.write(chunk) {
                    on_discard(bytes, cause);
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

    /// Whether at least this many bytes of each stream have arrived.
    pub(crate) fn has(&self, stdout_bytes: u64, stderr_bytes: u64) -> bool {
        self.state.stdout_bytes.load(Ordering::Acquire) >= stdout_bytes
            && self.state.stderr_bytes.load(Ordering::Acquire) >= stderr_bytes
    }

    /// Returns the numbers of bytes that have arrived and that were discarded.
    pub(crate) fn metrics(&self) -> ConsoleMetrics {
        let truncation = *self.state.truncation.borrow();
        ConsoleMetrics {
            stdout_bytes: self.state.stdout_bytes.load(Ordering::Acquire),
            stderr_bytes: self.state.stderr_bytes.load(Ordering::Acquire),
            discarded_bytes: truncation.map_or(0, |truncation| truncation.discarded_bytes),
        }
    }

    /// Returns a receiver that changes with each discard, up to thousands of times a second.
    pub(crate) fn truncation(&self) -> watch::Receiver<Option<Truncation>> {
        self.state.truncation.subscribe()
    }

    /// Asks the thread to end once the pipes are empty. Returns whether it has ended.
    pub(crate) fn finish(&self) -> bool {
        // A write to a non-blocking eventfd fails only if the counter is full, thus readable.
        let _readable = self.state.finish.write(1);
        self.thread.is_finished()
    }
}

impl State {
    fn count_discarded(&self, bytes: u64, cause: TruncationCause) {
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
        // After EINTR all `revents` are zero, so the loop polls again.
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
                    sink.write(chunk, |bytes, cause| state.count_discarded(bytes, cause));
                    // The count is raised last: a thread that reads it finds the output in the
                    // file, or its loss in the count of discarded bytes.
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
