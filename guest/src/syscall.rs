//! Safe functions for the system calls that `nix` cannot make safely.
//!
//! This includes the code of the child between `fork(2)` and `execve(2)`. It makes system calls on
//! memory that [`Command`] has prepared, and nothing else. In particular it does not allocate: if
//! the parent has other threads, a lock of the allocator may be held for ever in the child.
//!
//! `waitpid(2)` and `kill(2)` are here because `nix` does not support real-time signals. For a
//! process that `SIGRTMIN` ended, its `waitpid` returns `EINVAL`, and the wait status is lost.
#![expect(unsafe_code, reason = "fork, execve and ioctls; each block names its preconditions")]

use std::ffi::{CString, c_char, c_int, c_uint};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// libkrun's ioctl request that sets the exit status of the VMM. Its virtio-fs server accepts the
/// request on each file (krun-devices, `src/virtio/fs/augment_fs.rs`).
const EXIT_CODE_REQUEST: libc::Ioctl = 0x7602;

/// Highest signal number of Linux (`_NSIG`).
const LAST_SIGNAL: c_int = 64;

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// The process exited with this status.
    Exited(u8),
    /// The signal with this number ended the process.
    Signaled(u8),
}

/// The result of [`reap_any`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaped {
    /// A child has ended. Its PID can be used again from now on.
    Ended(libc::pid_t, Status),
    /// There are children, but none has ended.
    NotYet,
    /// There are no children.
    NoChildren,
}

/// Reaps one child that has ended, if there is one. Does not block.
pub(crate) fn reap_any() -> Reaped {
    loop {
        let mut status: c_int = 0;
        // SAFETY: `status` is a valid place for a `c_int` during the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            0 => return Reaped::NotYet,
            1.. => match decode(status) {
                Some(status) => return Reaped::Ended(pid, status),
                // The child is alive, so it was not reaped. waitpid(2) reports it again when it
                // ends.
                None => continue,
            },
            _ if Errno::last() == Errno::EINTR => continue,
            // The arguments are valid, so the error is ECHILD.
            _ => return Reaped::NoChildren,
        }
    }
}

/// Returns the end of a process from its wait status, or `None` if the process has only stopped or
/// continued.
fn decode(status: c_int) -> Option<Status> {
    let byte = |number: c_int| u8::try_from(number).ok();
    if libc::WIFEXITED(status) {
        byte(libc::WEXITSTATUS(status)).map(Status::Exited)
    } else if libc::WIFSIGNALED(status) {
        byte(libc::WTERMSIG(status)).map(Status::Signaled)
    } else {
        None
    }
}

/// Sends a signal to one child. The signal can be a real-time signal.
///
/// `pid` must be a child that has not been reaped. The PID of any other process may be in use
/// again.
pub(crate) fn send_signal(pid: libc::pid_t, signal: c_int) -> io::Result<()> {
    // 0 and negative numbers are process groups, and 1 is this process.
    debug_assert!(pid > 1);
    // SAFETY: the call passes no memory.
    check(unsafe { libc::kill(pid, signal) }).map_err(io::Error::from_raw_os_error)
}

/// Sends a signal to a process that need not be a child. By the time of the call, its PID may belong
/// to another process; the caller accepts that.
pub(crate) fn send_signal_to_any(pid: libc::pid_t, signal: c_int) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: the call passes no memory.
    check(unsafe { libc::kill(pid, signal) }).map_err(io::Error::from_raw_os_error)
}

/// Sends a signal to the process group that `leader` leads. `leader` must be a child that has not
/// been reaped.
pub(crate) fn send_signal_to_group(leader: libc::pid_t, signal: c_int) -> io::Result<()> {
    debug_assert!(leader > 1);
    // SAFETY: the call passes no memory.
    check(unsafe { libc::kill(-leader, signal) }).map_err(io::Error::from_raw_os_error)
}

/// Kills every process of the guest except PID 1. Does nothing if the caller is not PID 1.
pub(crate) fn kill_everything() {
    // In a test, `kill(-1)` would kill the processes of the host.
    if Pid::this().as_raw() != 1 {
        return;
    }
    // The error ESRCH means that there is no other process.
    // SAFETY: the call passes no memory.
    let _ = unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Sets the status with which libkrun ends the VMM. `root` is any file of the root file system in
/// which this process started, which is a virtio-fs device.
pub(crate) fn set_exit_code(root: BorrowedFd<'_>, code: u8) -> io::Result<()> {
    // SAFETY: the request takes its argument by value, so the call passes no memory.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), EXIT_CODE_REQUEST, c_int::from(code)) };
    check(result).map_err(io::Error::from_raw_os_error)
}

/// An array of strings as `execve(2)` takes it: pointers, of which the last is null.
#[derive(Debug)]
pub(crate) struct StringArray {
    #[cfg_attr(not(test), expect(dead_code, reason = "owns the memory behind the pointers"))]
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers refer to the heap buffers of `strings`. A move of the struct does not move
// the buffers, and nothing changes them.
unsafe impl Send for StringArray {}

// SAFETY: a shared reference allows no change.
unsafe impl Sync for StringArray {}

impl StringArray {
    /// Takes ownership of the strings and creates the pointers.
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(ptr::null());
        Self { strings, pointers }
    }

    /// Returns the strings.
    #[cfg(test)]
    pub(crate) fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// The user and groups of a process (`credentials(7)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// User id.
    pub(crate) uid: libc::uid_t,
    /// Group id.
    pub(crate) gid: libc::gid_t,
    /// Ids of the supplementary groups.
    pub(crate) groups: Vec<libc::gid_t>,
}

/// A resource limit of a process (`setrlimit(2)`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// Number of the resource (`RLIMIT_*`).
    pub(crate) resource: u32,
    /// The limit that the kernel enforces.
    pub(crate) soft: u64,
    /// The maximum to which the process can raise the soft limit.
    pub(crate) hard: u64,
}

/// A command to execute. It owns all memory that the child needs, so that the child allocates none.
#[derive(Debug)]
pub(crate) struct Command {
    /// Path of the executable, relative to `cwd` or absolute.
    pub(crate) program: CString,
    /// Arguments, starting with `argv[0]`.
    pub(crate) args: StringArray,
    /// The complete environment.
    pub(crate) env: StringArray,
    /// Working directory.
    pub(crate) cwd: CString,
    /// User and groups. `None`: those of the parent.
    pub(crate) credentials: Option<Credentials>,
    /// Limits, in the order in which they are set.
    pub(crate) limits: Vec<Limit>,
}

/// The standard streams of a child, and the pipe on which it reports a failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptors<'a> {
    /// Standard input.
    pub(crate) stdin: BorrowedFd<'a>,
    /// Standard output.
    pub(crate) stdout: BorrowedFd<'a>,
    /// Standard error.
    pub(crate) stderr: BorrowedFd<'a>,
    /// Receives a [`Failure`]. It has the flag `FD_CLOEXEC`, so that `execve(2)` closes it.
    pub(crate) report: BorrowedFd<'a>,
    /// The file `cgroup.procs` of the cgroup that the child enters, open for writing. `None`: the
    /// child stays in the cgroup of its parent.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Whether `stdin` is a terminal that becomes the child's controlling terminal.
    pub(crate) is_terminal: bool,
}

/// A step of the child between `fork(2)` and the program. The number identifies it in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// Starting a session with `setsid(2)`.
    Session = 1,
    /// Replacing descriptors 0, 1 and 2.
    Descriptors,
    /// Setting a limit.
    Limit,
    /// Setting supplementary groups, group and user.
    Credentials,
    /// Entering the working directory.
    WorkingDirectory,
    /// Calling `execve(2)`.
    Execute,
    /// Entering the cgroup.
    Cgroup,
    /// Taking the terminal as the controlling one.
    Terminal,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Session,
        Self::Descriptors,
        Self::Limit,
        Self::Credentials,
        Self::WorkingDirectory,
        Self::Execute,
        Self::Cgroup,
        Self::Terminal,
    ];
}

/// The report of a child that could not execute its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The step that failed.
    pub(crate) step: Step,
    /// Index of the limit in [`Command::limits`] if the step is [`Step::Limit`].
    pub(crate) index: u8,
    /// Error of the kernel.
    pub(crate) errno: Errno,
}

impl Failure {
    /// Length of an encoded failure: one byte each for step and index, two zeros, and the errno as
    /// four bytes. It is below `PIPE_BUF`, so one `write(2)` transfers all of it (`pipe(7)`).
    pub(crate) const BYTES: usize = 8;

    /// Decodes a failure. Returns `None` if the length is wrong or the step does not exist.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let [step, index, _, _, errno @ ..] = <[u8; Self::BYTES]>::try_from(bytes).ok()?;
        let step = Step::ALL.into_iter().find(|known| *known as u8 == step)?;
        Some(Self { step, index, errno: Errno::from_raw(i32::from_ne_bytes(errno)) })
    }

    /// Encodes without an allocation, because the child calls it.
    fn encode(self) -> [u8; Self::BYTES] {
        let [a, b, c, d] = (self.errno as i32).to_ne_bytes();
        [self.step as u8, self.index, 0, 0, a, b, c, d]
    }
}

/// Starts a child that executes the command, and returns its PID.
///
/// Does not wait for `execve(2)`. If the child cannot execute the command, it writes a [`Failure`]
/// to `descriptors.report` and exits.
///
/// The descriptors must be above 2. Otherwise `dup2(2)` to one of 0, 1 and 2 would close another
/// one that is still needed.
pub(crate) fn spawn(command: &Command, descriptors: Descriptors<'_>) -> io::Result<libc::pid_t> {
    // SAFETY: until `_exit`, the child only makes system calls on memory that exists already.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let failure = execute(command, descriptors);
            let report = failure.encode();
            // If the write fails, the parent has closed its end and waits for no report.
            // SAFETY: `report` is readable for its length.
            let _ = unsafe {
                libc::write(descriptors.report.as_raw_fd(), report.as_ptr().cast(), report.len())
            };
            // `_exit` and not `exit`, which would run the parent's exit handlers in the child.
            // SAFETY: `_exit` has no preconditions.
            unsafe { libc::_exit(127) }
        }
        pid => Ok(pid),
    }
}

/// Starts a child that runs `work` in a copy of this process, and returns its PID.
///
/// The child has no descriptor above 2 except the other end of `socket`, which it passes to `work`. It
/// ignores SIGPIPE, and all other signals have their default actions. It never returns from here,
/// not even if `work` panics.
///
/// The child may allocate memory: this process has one thread, so that nobody else can hold a lock of
/// the allocator. In a test with several threads, the C library releases its locks in the child.
pub(crate) fn fork_worker(
    socket: BorrowedFd<'_>,
    work: impl FnOnce(UnixStream),
) -> io::Result<libc::pid_t> {
    // SAFETY: the child uses no lock of another thread, as the documentation above explains.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // Unwinding into the frames of the parent would run its code a second time.
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                reset_signals();
                if let Some(socket) = keep_only(socket) {
                    work(socket);
                }
            }));
            // SAFETY: `_exit` has no preconditions.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
        pid => Ok(pid),
    }
}

/// Closes all descriptors above 2 except one, in a child that returns to none of the parent's code.
/// Returns `None` after an error.
fn keep_only(socket: BorrowedFd<'_>) -> Option<UnixStream> {
    const KEPT: c_int = 3;
    if socket.as_raw_fd() != KEPT {
        // SAFETY: the call passes no memory. Nothing in the child uses the old descriptor 3.
        check(unsafe { libc::dup2(socket.as_raw_fd(), KEPT) }).ok()?;
    }
    // A connection that stayed open here would outlive its end in the parent.
    // SAFETY: the call passes no memory. Nothing in the child uses the descriptors.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, KEPT + 1, c_uint::MAX, 0) };
    if closed != 0 {
        return None;
    }
    // A write to a socket whose peer has closed it returns an error instead.
    // SAFETY: SIG_IGN is a valid action.
    let _ = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    // SAFETY: the descriptor is open, and nothing else in the child owns it.
    Some(unsafe { UnixStream::from_raw_fd(KEPT) })
}

/// Registers a descriptor with the runtime, to wait until it is readable.
pub(crate) fn await_readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, with the same number, until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// Sets the user and groups of this process for the rest of its life.
pub(crate) fn assume_user(credentials: &Credentials) -> io::Result<()> {
    assume(credentials).map_err(io::Error::from_raw_os_error)
}

/// Executes the command in the child. Returns only after a failure.
fn execute(command: &Command, descriptors: Descriptors<'_>) -> Failure {
    let mut index = 0;
    match prepare_child(command, descriptors, &mut index) {
        Ok(()) => {
            // SAFETY: the path is a NUL-terminated string, and the arrays consist of pointers to
            // such strings and a null pointer. All of them exist until execve(2) replaces the
            // process.
            let _ = unsafe {
                libc::execve(
                    command.program.as_ptr(),
                    command.args.pointers.as_ptr(),
                    command.env.pointers.as_ptr(),
                )
            };
            // execve(2) returns only after an error.
            Failure { step: Step::Execute, index: 0, errno: Errno::last() }
        }
        Err((step, errno)) => Failure { step, index, errno: Errno::from_raw(errno) },
    }
}

/// Takes all steps before `execve(2)`. Counts in `index` the limits that are set.
fn prepare_child(
    command: &Command,
    descriptors: Descriptors<'_>,
    index: &mut u8,
) -> Result<(), (Step, c_int)> {
    // The cgroup comes first, so that everything the child does counts in it.
    if let Some(cgroup) = descriptors.cgroup {
        // "0" stands for the writing process (cgroups(7)).
        // SAFETY: the buffer is readable for its length, which is 1.
        let written = unsafe { libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) };
        if written == -1 {
            return Err((Step::Cgroup, Errno::last_raw()));
        }
    }
    // SAFETY: `setsid` has no preconditions.
    check(unsafe { libc::setsid() }).map_err(|errno| (Step::Session, errno))?;
    for (from, to) in [(descriptors.stdin, 0), (descriptors.stdout, 1), (descriptors.stderr, 2)] {
        // The copy has no FD_CLOEXEC flag (dup2(2)), so it stays open in the program.
        // SAFETY: the call passes no memory, and nothing in the child owns descriptor `to`.
        check(unsafe { libc::dup2(from.as_raw_fd(), to) })
            .map_err(|errno| (Step::Descriptors, errno))?;
    }
    if descriptors.is_terminal {
        // The child leads a session without a terminal, so it may take this one (ioctl_tty(2)).
        // SAFETY: the request takes its argument by value, so the call passes no memory.
        check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })
            .map_err(|errno| (Step::Terminal, errno))?;
    }
    reset_signals();
    // Limits come before the credentials: raising a hard limit takes CAP_SYS_RESOURCE, and
    // setuid(2) to another user than root drops all capabilities.
    for limit in &command.limits {
        set_limit(*limit).map_err(|errno| (Step::Limit, errno))?;
        *index = index.saturating_add(1);
    }
    // The directory is entered as root first, because the user may have no permission to enter it.
    let entered = enter(command);
    if let Some(credentials) = &command.credentials {
        assume(credentials).map_err(|errno| (Step::Credentials, errno))?;
    }
    match entered {
        // The file server of a share may grant the user access that it refuses to root.
        Err(libc::EACCES | libc::EPERM) => enter(command),
        entered => entered,
    }
    .map_err(|errno| (Step::WorkingDirectory, errno))
}

fn enter(command: &Command) -> Result<(), c_int> {
    // SAFETY: `cwd` is a NUL-terminated string.
    check(unsafe { libc::chdir(command.cwd.as_ptr()) })
}

/// Sets supplementary groups, group and user. The user comes last: `setuid(2)` drops the capability
/// that the other two calls need.
fn assume(credentials: &Credentials) -> Result<(), c_int> {
    let groups = &credentials.groups;
    // SAFETY: `groups` is readable for its length.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
    // SAFETY: the call passes no memory.
    check(unsafe { libc::setgid(credentials.gid) })?;
    // SAFETY: the call passes no memory.
    check(unsafe { libc::setuid(credentials.uid) })
}

/// Resets all signals to their default actions and unblocks them. `execve(2)` keeps ignored and
/// blocked signals, and the Rust runtime ignores SIGPIPE.
fn reset_signals() {
    // The kernel's `struct sigaction` in zeros: default action, no flags, empty mask. It is passed
    // by the system call itself, because the C library refuses signals 32 and 33, which it
    // reserves.
    let default = [0_usize; 4];
    for signal in 1..=LAST_SIGNAL {
        // SIGKILL and SIGSTOP cannot be changed: the call fails with EINVAL, which is ignored.
        // SAFETY: `default` is readable and at least as long as the struct, which has at most four
        // words on a 64-bit machine. The null pointer means that the old action is not returned.
        // The last argument is the size of the kernel's signal set.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<usize>(),
                8_usize,
            )
        };
    }
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is a valid place for a `sigset_t`.
    let _ = unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: `sigemptyset` has initialized `set`. The null pointer means that the old set is not
    // returned.
    let _ = unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) };
}

fn set_limit(limit: Limit) -> Result<(), c_int> {
    let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: `value` is a readable `rlimit` during the call.
    check(unsafe { libc::setrlimit(limit.resource, &raw const value) })
}

/// Returns the errno of a call that returned -1.
fn check(result: c_int) -> Result<(), c_int> {
    if result == -1 { Err(Errno::last_raw()) } else { Ok(()) }
}

/// Returns whether a descriptor can be used in [`Descriptors`].
pub(crate) fn is_above_standard(descriptor: impl AsFd) -> bool {
    descriptor.as_fd().as_raw_fd() > 2
}
