//! The workload's output: two pipes from libkrun, one file, a thread that never stops reading.
//!
//! libkrun sets `O_NONBLOCK` on what it is given and waits for ever when that is full, so it gets
//! pipes of its own, and they are always drained. What the file does not take is lost, not waited
//! for.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::spec::VmSpec;
use crate::state_dir::StateDir;

/// The console cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    #[error("cannot open the console `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
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

#[derive(Debug)]
struct State {
    stdout_bytes: AtomicU64,
    stderr_bytes: AtomicU64,
    /// Readable once the thread is to end with what is in the pipes; never read.
    finish: EventFd,
}

/// Opens the console file and starts the thread.
pub(crate) fn open(spec: &VmSpec, state: &StateDir) -> Result<Console, ConsoleError> {
    let path = spec.console.path.clone().unwrap_or_else(|| state.console());
    // Without an own file the console of an earlier box of this id would be continued.
    let fresh = spec.console.path.is_none();
    let file = open_file(&path, fresh).map_err(|source| ConsoleError::Open { path, source })?;
    let (stdout, stdout_port) = io::pipe().map_err(ConsoleError::Pipe)?;
    let (stderr, stderr_port) = io::pipe().map_err(ConsoleError::Pipe)?;
    let finish = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|error| ConsoleError::Pipe(error.into()))?;
    let (stdout_bytes, stderr_bytes) = Default::default();
    let shared = Arc::new(State { stdout_bytes, stderr_bytes, finish });
    let pipes = [File::from(OwnedFd::from(stdout)), File::from(OwnedFd::from(stderr))];
    let thread = {
        let state = Arc::clone(&shared);
        thread::Builder::new().name("console".into()).spawn(move || relay(&state, pipes, file))
    };
    Ok(Console {
        ports: Ports { stdout: stdout_port.into(), stderr: stderr_port.into() },
        relay: Relay { state: shared, thread: thread.map_err(ConsoleError::Pipe)? },
    })
}

/// A FIFO without a reader is an error and not a wait; later writes to it do wait, on the thread.
fn open_file(path: &Path, fresh: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(!fresh).write(true).create(true).truncate(fresh).mode(0o600);
    let file = options.custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(file)
}

impl Relay {
    /// Whether at least this much has arrived of each stream.
    pub(crate) fn has(&self, stdout_bytes: u64, stderr_bytes: u64) -> bool {
        self.state.stdout_bytes.load(Ordering::Acquire) >= stdout_bytes
            && self.state.stderr_bytes.load(Ordering::Acquire) >= stderr_bytes
    }

    /// Asks the thread to end once the pipes are empty, and says whether it has.
    pub(crate) fn finish(&self) -> bool {
        // It only fails when it is readable already.
        let _readable = self.state.finish.write(1);
        self.thread.is_finished()
    }
}

fn relay(state: &State, [stdout, stderr]: [File; 2], mut file: File) {
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
            !readable.next().unwrap_or(&false) || copy(pipe, &mut file, &mut buffer, count)
        });
    }
}

/// Copies what is there; says whether more may come.
fn copy(pipe: &mut File, file: &mut File, buffer: &mut [u8], count: &AtomicU64) -> bool {
    match pipe.read(buffer) {
        Ok(0) => false,
        Ok(length) => {
            // A full disk costs the output, not the box.
            let _lost = file.write_all(buffer.get(..length).unwrap_or_default());
            count.fetch_add(length as u64, Ordering::Release);
            true
        }
        Err(error) => error.kind() == io::ErrorKind::Interrupted,
    }
}
