//! Starts processes and reports whether their programs were executed.
//!
//! The child has the writing end of a pipe, which `execve(2)` closes. The parent reads either end
//! of file, after which the program runs, or a [`Failure`].

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
use crate::syscall::{self, Command, Descriptors, Failure, Step};

/// Maximum time for `execve(2)`. It reads the program from a file system of the host, which can be
/// slow or hang.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);

/// The reason why a process does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// A pipe, `/dev/null` or `fork(2)` failed, or the report of the child is malformed.
    #[error("cannot start a process")]
    Process(#[source] io::Error),
    /// `execve(2)` did not finish within [`EXEC_TIMEOUT`].
    #[error("the program was not loaded in {EXEC_TIMEOUT:?}")]
    Timeout,
    /// A step before `execve(2)` failed in the child.
    #[error("cannot set {what} of the process")]
    Setup {
        /// The property that was to be set.
        what: String,
        /// Error of the kernel.
        source: io::Error,
    },
    /// `execve(2)` failed.
    #[error(transparent)]
    Program(#[from] ExecutableError),
}

impl LaunchError {
    /// Returns the kind of failure for `StartFailed`.
    pub(crate) fn reason(&self) -> StartFailure {
        match self {
            Self::Program(error) => error.reason(),
            Self::Process(_) | Self::Timeout | Self::Setup { .. } => StartFailure::Setup,
        }
    }
}

/// A workload that has started.
#[derive(Debug)]
pub(crate) struct Launched {
    /// PID of the process, which has not been reaped.
    pub(crate) pid: pid_t,
    /// Reading end of its standard output.
    pub(crate) stdout: pipe::Receiver,
    /// Reading end of its standard error.
    pub(crate) stderr: pipe::Receiver,
}

/// The standard streams of a child, which this process closes once the child has them.
#[derive(Debug)]
pub(crate) struct Streams {
    /// Standard input. `None`: `/dev/null`.
    pub(crate) stdin: Option<OwnedFd>,
    /// Standard output.
    pub(crate) stdout: OwnedFd,
    /// Standard error.
    pub(crate) stderr: OwnedFd,
    /// Whether they are one terminal, which becomes the child's controlling terminal.
    pub(crate) is_terminal: bool,
}

/// A child that has not executed its program yet.
#[derive(Debug)]
pub(crate) struct Launching {
    /// PID of the child.
    pub(crate) pid: pid_t,
    report: pipe::Receiver,
}

/// Starts the workload and waits until it has executed the command or has failed to do so.
///
/// A child that failed is left for [`Children`](crate::children::Children) to reap.
pub(crate) async fn launch(command: &Command) -> Result<Launched, LaunchError> {
    let (stdout, stdout_child) = pipe().map_err(LaunchError::Process)?;
    let (stderr, stderr_child) = pipe().map_err(LaunchError::Process)?;
    let streams =
        Streams { stdin: None, stdout: stdout_child, stderr: stderr_child, is_terminal: false };
    let child = start(command, streams, None)?;
    let pid = child.pid;
    let executed = child.executed(command).await;
    if let Err(LaunchError::Timeout) = executed {
        // The PID still belongs to the child: nothing reaps while this function runs. An error is
        // ignored, because the box ends anyway.
        drop(syscall::send_signal(pid, libc::SIGKILL));
    }
    executed.map(|()| Launched { pid, stdout, stderr })
}

/// Starts a child that is to execute the command, in the cgroup whose `cgroup.procs` is given.
/// The caller must call [`Launching::executed`].
pub(crate) fn start(
    command: &Command,
    streams: Streams,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Launching, LaunchError> {
    if let Some(credentials) = &command.credentials {
        // Programs open `/dev/stdout`, which leads to the pipe by `/proc/self/fd/1`. The kernel
        // then checks the permissions of the pipe, and only its owner has any.
        let ends = [streams.stdin.as_ref(), Some(&streams.stdout), Some(&streams.stderr)];
        for end in ends.into_iter().flatten() {
            fchown(end, Some(Uid::from_raw(credentials.uid)), None)
                .map_err(|errno| LaunchError::Process(errno.into()))?;
        }
    }
    let (report, report_child) = pipe().map_err(LaunchError::Process)?;
    let null = OpenOptions::new().read(true).open("/dev/null").map_err(LaunchError::Process)?;
    let descriptors = Descriptors {
        stdin: streams.stdin.as_ref().map_or(null.as_fd(), AsFd::as_fd),
        stdout: streams.stdout.as_fd(),
        stderr: streams.stderr.as_fd(),
        report: report_child.as_fd(),
        cgroup,
        is_terminal: streams.is_terminal,
    };
    let pid = syscall::spawn(command, descriptors).map_err(LaunchError::Process)?;
    // A pipe reports end of file only when all its writing ends are closed. This process must close
    // its copies, so that only the child and its descendants hold any.
    drop((streams, report_child));
    Ok(Launching { pid, report })
}

impl Launching {
    /// Waits until the child has executed the command or has failed to do so. After
    /// [`LaunchError::Timeout`], the child still exists.
    pub(crate) async fn executed(self, command: &Command) -> Result<(), LaunchError> {
        match timeout(EXEC_TIMEOUT, read_report(self.report)).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(failure))) => Err(explain(command, failure)),
            Ok(Err(source)) => Err(LaunchError::Process(source)),
            Err(_) => Err(LaunchError::Timeout),
        }
    }
}

/// Creates a pipe with its reading end for this process and its writing end for the child.
///
/// Only the reading end is non-blocking, because programs expect that their output blocks. Both
/// ends have the flag `FD_CLOEXEC`: the child copies those that its program needs.
fn pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, child) = pipe2(OFlag::O_CLOEXEC)?;
    if !syscall::is_above_standard(&child) {
        // `syscall::spawn` requires it.
        return Err(io::Error::other("descriptors 0, 1 and 2 are not open"));
    }
    Ok((pipe::Receiver::from_owned_fd(ours)?, child))
}

/// Reads the report of a child until end of file. Returns `None` if the child has executed its
/// program.
async fn read_report(mut report: pipe::Receiver) -> io::Result<Option<Failure>> {
    // The limit is one byte more than a failure, so that a report that is too long has a length
    // that `decode` refuses.
    let mut bytes = Vec::with_capacity(Failure::BYTES + 1);
    (&mut report).take(Failure::BYTES as u64 + 1).read_to_end(&mut bytes).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Failure::decode(&bytes).map(Some).ok_or_else(|| io::Error::other("malformed report"))
}

/// Makes an error with the names of the config from a failure of the child.
fn explain(command: &Command, failure: Failure) -> LaunchError {
    let cwd = Path::new(OsStr::from_bytes(command.cwd.to_bytes()));
    let what = match failure.step {
        Step::Execute => {
            let program = Path::new(OsStr::from_bytes(command.program.to_bytes()));
            return executable::explain(program, cwd, failure.errno).into();
        }
        Step::Session => "the session".to_owned(),
        Step::Descriptors => "the standard streams".to_owned(),
        Step::Limit => limit_text(command, failure.index),
        Step::Credentials => "the user and groups".to_owned(),
        Step::WorkingDirectory => format!("the working directory `{}`", cwd.display()),
        Step::Cgroup => "the cgroup".to_owned(),
        Step::Terminal => "the controlling terminal".to_owned(),
    };
    LaunchError::Setup { what, source: failure.errno.into() }
}

/// Returns the text for the limit at `index`. The index comes from the child, and may not exist.
fn limit_text(command: &Command, index: u8) -> String {
    match command.limits.get(usize::from(index)) {
        Some(limit) => {
            format!("rlimit {} to {} and {}", limit.resource, limit.soft, limit.hard)
        }
        None => "an rlimit".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
