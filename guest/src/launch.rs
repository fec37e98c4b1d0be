//! Starts the workload, and learns whether it became its program.
//!
//! The child holds one end of a pipe that `execve` closes: end of file means that the
//! program runs, a [`Failure`] says why it does not.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use a3s_box_proto::control::StartFailure;
use nix::fcntl::OFlag;
use nix::libc::{self, pid_t};
use nix::unistd::{Uid, fchown, pipe2};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::executable::{self, ExecutableError};
use crate::syscall::{self, Descriptors, Failure, Image, Step};

/// How long the kernel may take to load a program: it reads it from the host's file system.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the workload does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// Pipes, `/dev/null` or `fork`.
    #[error("cannot start a process")]
    Process(#[source] io::Error),
    /// The child neither became its program nor said why.
    #[error("the workload's program was not loaded in {EXEC_TIMEOUT:?}")]
    Timeout,
    /// The child could not be made what the config asks for.
    #[error("cannot set {what} of the workload")]
    Setup {
        /// What was to be set.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program cannot be executed.
    #[error(transparent)]
    Program(#[from] ExecutableError),
}

impl LaunchError {
    /// The kind of failure that the shim is told.
    pub(crate) fn reason(&self) -> StartFailure {
        match self {
            Self::Program(error) => error.reason(),
            Self::Process(_) | Self::Timeout | Self::Setup { .. } => StartFailure::Setup,
        }
    }
}

/// A running workload.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Its process, not reaped yet.
    pub(crate) pid: pid_t,
    /// What it writes.
    pub(crate) stdout: pipe::Receiver,
    /// What it writes as errors.
    pub(crate) stderr: pipe::Receiver,
}

/// Starts a process that becomes the image. Ends when it did, or cannot.
pub(crate) async fn launch(image: &Image) -> Result<Launched, LaunchError> {
    let (stdout, stdout_child) = pipe().map_err(LaunchError::Process)?;
    let (stderr, stderr_child) = pipe().map_err(LaunchError::Process)?;
    let (report, report_child) = pipe().map_err(LaunchError::Process)?;
    let null = OpenOptions::new().read(true).open("/dev/null").map_err(LaunchError::Process)?;
    let descriptors = Descriptors {
        stdin: null.as_fd(),
        stdout: stdout_child.as_fd(),
        stderr: stderr_child.as_fd(),
        report: report_child.as_fd(),
    };
    if let Some(credentials) = &image.credentials {
        // Or the workload could not open its own /dev/stdout: that needs the pipe's owner.
        for end in [&stdout_child, &stderr_child] {
            fchown(end, Some(Uid::from_raw(credentials.uid)), None)
                .map_err(|errno| LaunchError::Process(errno.into()))?;
        }
    }
    let pid = syscall::spawn(image, descriptors).map_err(LaunchError::Process)?;
    // Only the child may hold these now, or there would never be an end of file.
    drop((stdout_child, stderr_child, report_child));
    match timeout(EXEC_TIMEOUT, read_report(report)).await {
        Ok(Ok(None)) => Ok(Launched { pid, stdout, stderr }),
        Ok(Ok(Some(failure))) => Err(explain(image, failure)),
        Ok(Err(source)) => Err(LaunchError::Process(source)),
        Err(_) => {
            // It cannot have been reaped: that is done later, by another part.
            drop(syscall::send_signal(pid, libc::SIGKILL));
            Err(LaunchError::Timeout)
        }
    }
}

/// A pipe: our end is not blocking, the child's is. `execve` closes both.
fn pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, child) = pipe2(OFlag::O_CLOEXEC)?;
    if !syscall::is_above_standard(&child) {
        return Err(io::Error::other("descriptors 0, 1 and 2 are not open"));
    }
    Ok((pipe::Receiver::from_owned_fd(ours)?, child))
}

async fn read_report(mut report: pipe::Receiver) -> io::Result<Option<Failure>> {
    // One byte more than a failure, so that a longer report is seen as none.
    let mut bytes = Vec::with_capacity(Failure::BYTES + 1);
    (&mut report).take(Failure::BYTES as u64 + 1).read_to_end(&mut bytes).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Failure::decode(&bytes).map(Some).ok_or_else(|| io::Error::other("malformed report"))
}

fn explain(image: &Image, failure: Failure) -> LaunchError {
    let cwd = Path::new(OsStr::from_bytes(image.cwd.to_bytes()));
    let what = match failure.step {
        Step::Execute => {
            let program = Path::new(OsStr::from_bytes(image.program.to_bytes()));
            return executable::explain(program, cwd, failure.errno).into();
        }
        Step::Session => "the session".to_owned(),
        Step::Descriptors => "the standard streams".to_owned(),
        Step::Limit => limit_text(image, failure.index),
        Step::Credentials => "the user and groups".to_owned(),
        Step::WorkingDirectory => format!("the working directory `{}`", cwd.display()),
    };
    LaunchError::Setup { what, source: failure.errno.into() }
}

fn limit_text(image: &Image, index: u8) -> String {
    match image.limits.get(usize::from(index)) {
        Some(limit) => {
            format!("rlimit {} to {} and {}", limit.resource, limit.soft, limit.hard)
        }
        None => "an rlimit".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
