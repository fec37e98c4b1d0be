//! An unpacker as a process.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use a3s_box_core::{ErrorReport, exit};
use a3s_box_oci::{Fault, OnTaskProgress};
use a3s_box_sys::HostError;
use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::signal::Signal;

use super::message::{Job, Message};
use super::{calls, jail, root, transfer};
use crate::host::inherited::InheritedFiles;
use crate::rootfs::error::RootfsError;

/// First argument of this executable when it is to be an unpacker.
pub(super) const ARGUMENT: &str = "--unpacker";

/// Name of the process in `ps`, of at most 15 bytes (prctl(2)).
const NAME: &CStr = c"a3s-box-unpack";

/// Runs an unpacker to its end if the arguments of this process ask for it.
pub(in crate::rootfs) fn run_if_asked() -> Option<ExitCode> {
    std::env::args_os().nth(1).filter(|argument| argument == ARGUMENT)?;
    Some(match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(exit::FAILED),
    })
}

/// Does the task, and sends its outcome.
fn run() -> io::Result<()> {
    // The supervisor may have left fds open that the shim passed on.
    InheritedFiles::find().map_err(io::Error::other)?.close();
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let mut output = File::from(socket.try_clone()?);
    let message = match do_task(socket) {
        Ok(()) => Message::Done,
        Err(failed) => *failed,
    };
    send(&mut output, &message)
}

/// Gives up all rights that the task does not need, and does it. Returns the message of a failure.
fn do_task(socket: OwnedFd) -> Result<(), Box<Message>> {
    let (job, files, lock) = prepare(&socket).map_err(|error| failed(&error.into(), None))?;
    #[cfg(feature = "fake-vm")]
    super::fake::act("late", &job.task);
    let mut output = File::from(socket);
    let on_progress: &mut OnTaskProgress<'_> = &mut |layer, progress| {
        match send(&mut output, &Message::Progress { layer, progress }) {
            Ok(()) => ControlFlow::Continue(()),
            // The shim has ended.
            Err(_) => ControlFlow::Break(()),
        }
    };
    let outcome = job.task.perform(files, on_progress);
    // The lock ends with this process at the latest.
    drop(lock);
    outcome.map_err(|error| {
        let fault = job.task.fault(&error);
        failed(&error.into(), fault)
    })
}

fn failed(error: &RootfsError, fault: Option<Fault>) -> Box<Message> {
    let report = ErrorReport::new(error.code(), error).with_hint(error.hint());
    Box::new(Message::Failed { report, fault })
}

/// Receives the task and confines this process to it. Returns the task, its files and the lock.
fn prepare(socket: &OwnedFd) -> Result<(Job, Vec<OwnedFd>, Option<OwnedFd>), HostError> {
    // It holds the lock of its content from now on, and must not outlive the shim with it. The sender is
    // the thread of the shim that has started this process, which waits for its end. If that thread has
    // ended before this call, the socket and the pipe with the blob have closed.
    set_pdeathsig(Signal::SIGKILL)
        .and_then(|()| set_name(NAME))
        .map_err(HostError::of("prepare the process"))?;
    let stream = UnixStream::from(
        socket.try_clone().map_err(HostError::of("take the socket of the unpacker"))?,
    );
    let (mut files, job) =
        transfer::receive(&stream).map_err(HostError::of("read the job of the unpacker"))?;
    let lock = files.pop();
    #[cfg(feature = "fake-vm")]
    super::fake::act("early", &job.task);
    if let Some(directory) = job.task.directory().and_then(|i| files.get_mut(i)) {
        *directory = root::enter(directory)?;
    }
    jail::confine(&job.task, &files)?;
    calls::restrict(job.seccomp, job.task.names_files())
        .map_err(io::Error::other)
        .map_err(HostError::of("give up system calls"))?;
    Ok((job, files, lock))
}

/// Sends a message. Only one thread does so at a time.
fn send(output: &mut File, message: &Message) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    output.write_all(&line)
}
