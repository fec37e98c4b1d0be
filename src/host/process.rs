//! The shim's own process: its standard file descriptors, signals, limits and mount namespace.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use a3s_box_core::event::StopCause;
use a3s_box_sys::HostError;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{dup2_stdin, dup2_stdout, geteuid};
use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};

use super::parent::{PARENT_SIGNAL, Parent};
use super::user_namespace;

/// Returns standard output, for the modes that print text for a person and emit no events.
#[expect(clippy::disallowed_methods, reason = "used instead of the event stream, never beside it")]
pub(crate) fn stdout() -> io::Stdout {
    io::stdout()
}

/// Takes the original standard output for the event writer, and makes fd 1 a duplicate of standard
/// error. A library that prints to fd 1 then writes into the log and not between two events.
pub(crate) fn take_stdout() -> Result<OwnedFd, HostError> {
    let original = stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(HostError::of("duplicate standard output"))?;
    dup2_stdout(io::stderr()).map_err(HostError::of("point standard output at the log"))?;
    Ok(original)
}

/// Returns the path of this executable.
pub(crate) fn executable() -> Result<PathBuf, HostError> {
    std::env::current_exe().map_err(HostError::of("find the path of this executable"))
}

/// Raises the limit of open files to its hard limit, makes new files accessible to their owner
/// only, and replaces standard input by `/dev/null`.
///
/// libkrun's virtio-fs server keeps an fd open for every inode that the guest kernel has cached, so
/// the usual soft limit of 1024 files does not suffice. Standard input is of no further use,
/// because the config was read from it. `/dev/null` keeps its number occupied, so that no other
/// file gets it.
pub(crate) fn raise_limits() -> Result<(), HostError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(HostError::of("read the limit of open files"))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        .map_err(HostError::of("raise the limit of open files"))?;
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let null = File::open("/dev/null").map_err(HostError::of("open `/dev/null`"))?;
    dup2_stdin(null).map_err(HostError::of("close standard input"))
}

/// Moves this process into a mount namespace of its own, so that the kernel removes all its mounts
/// when it ends, even after SIGKILL. Without root this requires a user namespace, in which the
/// process then is root.
///
/// Callers must not have started a thread: `unshare(2)` refuses a user namespace to a process with
/// several threads, and moves only the calling thread into a mount namespace.
pub(crate) fn enter_private_mounts() -> Result<(), HostError> {
    if geteuid().is_root() {
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(HostError::of("make a mount namespace (CAP_SYS_ADMIN)"))?;
    } else {
        user_namespace::enter()?;
    }
    // The new namespace has copies of the host's mounts in the same peer groups. Without this, the
    // kernel would propagate each of our mounts to the host.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(HostError::of("make all mounts private"))?;
    keep_capabilities()
}

/// Sets `SECBIT_NO_SETUID_FIXUP`, with which a thread keeps its capabilities when it changes to
/// another user.
///
/// libkrun's virtio-fs server creates a file as the user of the calling program, with that user's
/// primary group and no supplementary groups (`set_creds`, 1.19.7). Without capabilities the host
/// kernel would check permissions with these fewer groups, and a program in the guest could not
/// create files in a directory that it may write to through a supplementary group. The guest kernel
/// has checked permissions with all groups already, so the host kernel need not check them again.
pub(crate) fn keep_capabilities() -> Result<(), HostError> {
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
        .map_err(HostError::of("keep capabilities (CAP_SETPCAP)"))
}

/// Returns whether this process is root of the host, and not only of a user namespace.
pub(crate) fn is_root_of_host() -> bool {
    geteuid().is_root() && !is_in_user_namespace()
}

/// Returns whether this process is in a user namespace that maps ids to other ids. Without `/proc`
/// it returns false.
pub(crate) fn is_in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        // The initial namespace maps all ids to themselves (user_namespaces(7)).
        .is_ok_and(|map| !map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// Returns a numeric field of `/proc/<pid>/stat` (proc(5)), counted from 1 as in the manual page.
/// Only fields from 3 on can be asked for. Field 2 is the name of the executable in parentheses,
/// which may contain spaces and parentheses, so the search starts behind the last parenthesis.
pub(crate) fn stat_field(stat: &str, field: usize) -> Option<u64> {
    let (_, from_field_3) = stat.rsplit_once(')')?;
    from_field_3.split_ascii_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

/// Returns the number of `signal`. Linux has 64 signals, so it always fits.
fn signal_number(signal: Signal) -> u8 {
    u8::try_from(signal as i32).unwrap_or(u8::MAX)
}

/// A request to stop the box, which reaches the shim as a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopRequest {
    /// A process sent this signal.
    Signal(Signal),
    /// The process that started the shim has ended.
    ParentDied,
}

impl StopRequest {
    /// Returns the cause that events name for this request.
    pub(crate) fn cause(self) -> StopCause {
        match self {
            Self::Signal(_) => StopCause::Signal,
            Self::ParentDied => StopCause::ParentDied,
        }
    }

    /// Returns the number of the signal from which the exit status is made. The death of the parent
    /// counts as SIGTERM.
    pub(crate) fn signal_number(self) -> u8 {
        match self {
            Self::Signal(signal) => signal_number(signal),
            Self::ParentDied => signal_number(Signal::SIGTERM),
        }
    }
}

impl fmt::Display for StopRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => signal.fmt(f),
            Self::ParentDied => f.write_str("the end of the parent process"),
        }
    }
}

/// A signalfd for the signals that request a stop.
///
/// The signals are blocked in every thread, because libkrun installs handlers for some of them. A
/// blocked signal does not run a handler, and can only be read from the fd.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
    parent: Option<Parent>,
}

impl Signals {
    /// Blocks the signals and opens the fd. With a `parent`, its death is a stop request, too.
    ///
    /// Callers must not have started a thread, because a thread inherits the signal mask of the
    /// thread that starts it.
    pub(crate) fn block(parent: Option<Parent>) -> Result<Self, HostError> {
        let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, PARENT_SIGNAL];
        let set: SigSet = signals.into_iter().collect();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)
            .map_err(HostError::of("block signals"))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let fd = SignalFd::with_flags(&set, flags).map_err(HostError::of("open a signalfd"))?;
        if parent.is_none() {
            Parent::ignore()?;
        }
        Ok(Self { fd, parent })
    }

    /// Asks the kernel again for a signal at the parent's death, if that is a stop request. A change
    /// of user has taken the setting away.
    pub(crate) fn watch_parent_again(&self) -> Result<(), HostError> {
        self.parent.map_or(Ok(()), Parent::watch_again)
    }

    /// Returns the next stop request that is pending. Does not block.
    pub(crate) fn next(&self) -> Option<StopRequest> {
        loop {
            // The only error is EAGAIN: the fd is open, and the buffer has the size of one record.
            let info = self.fd.read_signal().ok().flatten()?;
            let number = i32::try_from(info.ssi_signo).ok();
            match number.and_then(|number| Signal::try_from(number).ok())? {
                PARENT_SIGNAL if self.parent.is_some_and(Parent::is_gone) => {
                    return Some(StopRequest::ParentDied);
                }
                // Another process or thread sent it, or the parent's thread ended and the parent
                // lives.
                PARENT_SIGNAL => {}
                signal => return Some(StopRequest::Signal(signal)),
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::os::fd::AsRawFd for Signals {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}
