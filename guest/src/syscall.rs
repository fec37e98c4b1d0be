//! The system calls that `nix` has no safe form of, behind functions that are safe to call.
//!
//! The child between `fork` and `execve` lives here too: it does nothing but system calls
//! on what [`Image`] prepared before, because the parent may have other threads.
//!
//! `waitpid` and `kill` are here because `nix` knows no real-time signals: it turns the
//! status of a process that `SIGRTMIN` ended into `EINVAL`, and the status is lost.
#![expect(unsafe_code, reason = "fork, execve and ioctls; each block names its preconditions")]

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

/// libkrun's request on any file of a virtio-fs device: sets the exit status of the VMM.
const EXIT_CODE_REQUEST: libc::Ioctl = 0x7602;

/// Highest signal number of Linux (`_NSIG`).
const LAST_SIGNAL: c_int = 64;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// With this exit status.
    Exited(u8),
    /// By the signal with this number.
    Signaled(u8),
}

/// What one look at the children found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaped {
    /// This one ended, and is gone now.
    Ended(libc::pid_t, Status),
    /// There are children, and none has ended.
    NotYet,
    /// There are no children.
    NoChildren,
}

/// Takes the status of any child that ended. Does not block.
pub(crate) fn reap_any() -> Reaped {
    loop {
        let mut status: c_int = 0;
        // SAFETY: `status` is a valid place for a `c_int` during the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            0 => return Reaped::NotYet,
            1.. => match decode(status) {
                Some(status) => return Reaped::Ended(pid, status),
                None => continue,
            },
            _ if Errno::last() == Errno::EINTR => continue,
            _ => return Reaped::NoChildren,
        }
    }
}

/// The end that a wait status tells of, unless it tells of something else.
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

/// Sends a signal, real-time ones included, to one process.
pub(crate) fn send_signal(pid: libc::pid_t, signal: c_int) -> io::Result<()> {
    debug_assert!(pid > 1);
    // SAFETY: no memory is passed; `pid` is a child that was not reaped, so not reused.
    check(unsafe { libc::kill(pid, signal) }).map_err(io::Error::from_raw_os_error)
}

/// Kills every process of the box but PID 1. Does nothing in any other process.
pub(crate) fn kill_everything() {
    if Pid::this().as_raw() != 1 {
        return;
    }
    // SAFETY: no memory is passed; the caller is PID 1, whom `kill(-1)` spares.
    let _ = unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Tells libkrun with which status its process is to end.
pub(crate) fn set_exit_code(root: BorrowedFd<'_>, code: u8) -> io::Result<()> {
    // SAFETY: the request takes its argument by value, so no memory is passed.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), EXIT_CODE_REQUEST, c_int::from(code)) };
    check(result).map_err(io::Error::from_raw_os_error)
}

/// Strings as `execve` takes them: an array of pointers that ends in a null pointer.
#[derive(Debug)]
pub(crate) struct StringArray {
    #[cfg_attr(not(test), expect(dead_code, reason = "owns what the pointers point to"))]
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers are to the heap buffers of `strings`, which move with it and are
// never changed.
unsafe impl Send for StringArray {}

// SAFETY: nothing is changed through a shared reference.
unsafe impl Sync for StringArray {}

impl StringArray {
    /// Keeps the strings and points to them.
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(ptr::null());
        Self { strings, pointers }
    }

    /// The strings.
    #[cfg(test)]
    pub(crate) fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// Who a process is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// User.
    pub(crate) uid: libc::uid_t,
    /// Group.
    pub(crate) gid: libc::gid_t,
    /// Supplementary groups.
    pub(crate) groups: Vec<libc::gid_t>,
}

/// A limit of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// Linux number of the resource.
    pub(crate) resource: u32,
    /// What is enforced.
    pub(crate) soft: u64,
    /// How far it may be raised.
    pub(crate) hard: u64,
}

/// All that a child needs, made before the `fork`.
#[derive(Debug)]
pub(crate) struct Image {
    /// Path of the program.
    pub(crate) program: CString,
    /// Arguments, `argv[0]` included.
    pub(crate) args: StringArray,
    /// The whole environment.
    pub(crate) env: StringArray,
    /// Working directory.
    pub(crate) cwd: CString,
    /// None: those of the parent.
    pub(crate) credentials: Option<Credentials>,
    /// Limits, set in this order.
    pub(crate) limits: Vec<Limit>,
}

/// What a child gets as its descriptors 0, 1 and 2, and where it tells of a failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptors<'a> {
    /// Standard input.
    pub(crate) stdin: BorrowedFd<'a>,
    /// Standard output.
    pub(crate) stdout: BorrowedFd<'a>,
    /// Standard error.
    pub(crate) stderr: BorrowedFd<'a>,
    /// Closed by `execve`; gets a [`Failure`] before that.
    pub(crate) report: BorrowedFd<'a>,
}

/// What a child was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// A session of its own.
    Session = 1,
    /// Descriptors 0, 1 and 2.
    Descriptors,
    /// The limit with this index.
    Limit,
    /// Supplementary groups, group, user.
    Credentials,
    /// The working directory.
    WorkingDirectory,
    /// `execve`.
    Execute,
}

impl Step {
    const ALL: [Self; 6] = [
        Self::Session,
        Self::Descriptors,
        Self::Limit,
        Self::Credentials,
        Self::WorkingDirectory,
        Self::Execute,
    ];
}

/// Why a child did not become the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What it was doing.
    pub(crate) step: Step,
    /// Index in [`Image::limits`], for [`Step::Limit`].
    pub(crate) index: u8,
    /// What the kernel said.
    pub(crate) errno: Errno,
}

impl Failure {
    /// Length of a failure on the pipe: step, index, two zeros, errno.
    pub(crate) const BYTES: usize = 8;

    /// A failure as it came through the pipe, if it is one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let [step, index, _, _, errno @ ..] = <[u8; Self::BYTES]>::try_from(bytes).ok()?;
        let step = Step::ALL.into_iter().find(|known| *known as u8 == step)?;
        Some(Self { step, index, errno: Errno::from_raw(i32::from_ne_bytes(errno)) })
    }

    fn encode(self) -> [u8; Self::BYTES] {
        let [a, b, c, d] = (self.errno as i32).to_ne_bytes();
        [self.step as u8, self.index, 0, 0, a, b, c, d]
    }
}

/// Starts a child that becomes the image, or tells why not.
///
/// The descriptors must be above 2, so that putting one in place does not close another.
pub(crate) fn spawn(image: &Image, descriptors: Descriptors<'_>) -> io::Result<libc::pid_t> {
    // SAFETY: the child calls only `become_image`, which makes system calls on memory that
    // exists already and never returns here.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let failure = become_image(image, descriptors);
            let report = failure.encode();
            // SAFETY: `report` is readable for its length.
            let _ = unsafe {
                libc::write(descriptors.report.as_raw_fd(), report.as_ptr().cast(), report.len())
            };
            // SAFETY: `_exit` has no preconditions, and runs no handler of the parent.
            unsafe { libc::_exit(127) }
        }
        pid => Ok(pid),
    }
}

/// The child: returns only if it failed.
fn become_image(image: &Image, descriptors: Descriptors<'_>) -> Failure {
    let mut index = 0;
    match prepare_child(image, descriptors, &mut index) {
        Ok(()) => {
            // SAFETY: all three are NUL-terminated strings or arrays of them that end in a
            // null pointer, and live until the call replaces the process.
            let _ = unsafe {
                libc::execve(
                    image.program.as_ptr(),
                    image.args.pointers.as_ptr(),
                    image.env.pointers.as_ptr(),
                )
            };
            Failure { step: Step::Execute, index: 0, errno: Errno::last() }
        }
        Err((step, errno)) => Failure { step, index, errno: Errno::from_raw(errno) },
    }
}

fn prepare_child(
    image: &Image,
    descriptors: Descriptors<'_>,
    index: &mut u8,
) -> Result<(), (Step, c_int)> {
    // SAFETY: `setsid` has no preconditions.
    check(unsafe { libc::setsid() }).map_err(|errno| (Step::Session, errno))?;
    for (from, to) in [(descriptors.stdin, 0), (descriptors.stdout, 1), (descriptors.stderr, 2)] {
        // SAFETY: no memory is passed; nothing in the child owns descriptor `to`.
        check(unsafe { libc::dup2(from.as_raw_fd(), to) })
            .map_err(|errno| (Step::Descriptors, errno))?;
    }
    reset_signals();
    for limit in &image.limits {
        set_limit(*limit).map_err(|errno| (Step::Limit, errno))?;
        *index = index.saturating_add(1);
    }
    // As root first: a directory that the user may not enter is still a place to be.
    let entered = enter(image);
    if let Some(credentials) = &image.credentials {
        assume(credentials).map_err(|errno| (Step::Credentials, errno))?;
    }
    match entered {
        // A virtio-fs server may refuse root what it grants the user.
        Err(libc::EACCES | libc::EPERM) => enter(image),
        entered => entered,
    }
    .map_err(|errno| (Step::WorkingDirectory, errno))
}

fn enter(image: &Image) -> Result<(), c_int> {
    // SAFETY: `cwd` is a NUL-terminated string.
    check(unsafe { libc::chdir(image.cwd.as_ptr()) })
}

fn assume(credentials: &Credentials) -> Result<(), c_int> {
    let groups = &credentials.groups;
    // SAFETY: `groups` is readable for its length.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
    // SAFETY: no memory is passed; the child has one thread, so no other is left behind.
    check(unsafe { libc::setgid(credentials.gid) })?;
    // SAFETY: as above; last, because it takes the right to do the others.
    check(unsafe { libc::setuid(credentials.uid) })
}

/// Default actions and an empty mask: a program must not inherit what PID 1 ignores.
fn reset_signals() {
    // The kernel's `struct sigaction`, all zeros: the default action, no flags, no mask. The
    // system call, because the C library keeps signals 32 and 33 for itself.
    let default = [0_usize; 4];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: `default` is readable for the struct's size, on every 64-bit machine at
        // most four words; the old action is not asked for; a signal set has eight bytes.
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
    // SAFETY: `set` was initialized by `sigemptyset`; the old set is not asked for.
    let _ = unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) };
}

fn set_limit(limit: Limit) -> Result<(), c_int> {
    let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: `value` is a readable `rlimit` during the call.
    check(unsafe { libc::setrlimit(limit.resource, &raw const value) })
}

fn check(result: c_int) -> Result<(), c_int> {
    if result == -1 { Err(Errno::last_raw()) } else { Ok(()) }
}

/// Whether a descriptor is usable in [`Descriptors`].
pub(crate) fn is_above_standard(descriptor: impl AsFd) -> bool {
    descriptor.as_fd().as_raw_fd() > 2
}
