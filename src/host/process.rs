//! The process itself: its standard fds, signals, limits and namespaces.

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

/// Standard output, for what people ask on the command line.
#[expect(clippy::disallowed_methods, reason = "used instead of the event stream, never beside it")]
pub(crate) fn stdout() -> io::Stdout {
    io::stdout()
}

/// Takes the original standard output away for the event writer. Fd 1 then is standard error, so
/// that no library can write into the event stream.
pub(crate) fn take_stdout() -> Result<OwnedFd, HostError> {
    let original = stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(HostError::of("duplicate standard output"))?;
    dup2_stdout(io::stderr()).map_err(HostError::of("point standard output at the log"))?;
    Ok(original)
}

/// Path of this executable.
pub(crate) fn executable() -> Result<PathBuf, HostError> {
    std::env::current_exe().map_err(HostError::of("find the path of this executable"))
}

/// Raises the limit of open files to its maximum: libkrun holds an fd for every inode that the
/// guest knows. New files are for the owner only. Standard input was read and is closed.
pub(crate) fn raise_limits() -> Result<(), HostError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(HostError::of("read the limit of open files"))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        .map_err(HostError::of("raise the limit of open files"))?;
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let null = File::open("/dev/null").map_err(HostError::of("open `/dev/null`"))?;
    dup2_stdin(null).map_err(HostError::of("close standard input"))
}

/// Gives this process mounts of its own: what it mounts vanishes with it, however it ends. Without
/// root that takes a user namespace, where it is root. To be called before any thread exists.
pub(crate) fn enter_private_mounts() -> Result<(), HostError> {
    if geteuid().is_root() {
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(HostError::of("make a mount namespace (CAP_SYS_ADMIN)"))?;
    } else {
        user_namespace::enter()?;
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(HostError::of("make all mounts private"))?;
    keep_capabilities()
}

/// Lets a thread keep its capabilities when it takes on another user. libkrun's virtio-fs server makes
/// each file as its owner, with that owner's first group and no other (`set_creds`, 1.19.7): a program in
/// the guest could not write into a directory of its other groups. What the guest's kernel has allowed is
/// so not judged a second time, by less than it knows.
fn keep_capabilities() -> Result<(), HostError> {
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
        .map_err(HostError::of("keep capabilities (CAP_SETPCAP)"))
}

/// Whether this process is root, and not only in a user namespace.
pub(crate) fn is_root_of_host() -> bool {
    geteuid().is_root() && !is_in_user_namespace()
}

/// Whether ids mean others outside, as far as `/proc` tells.
pub(crate) fn is_in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| !map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// A number of the line `/proc/<pid>/stat` (proc(5)), by its place from 3 on: the second, the name of
/// the program, may hold spaces and parentheses.
pub(crate) fn stat_field(stat: &str, field: usize) -> Option<u64> {
    let (_, from_field_3) = stat.rsplit_once(')')?;
    from_field_3.split_ascii_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

/// Linux has 64 signals.
pub(crate) fn signal_number(signal: Signal) -> u8 {
    u8::try_from(signal as i32).unwrap_or(u8::MAX)
}

/// Why a box is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopRequest {
    /// Somebody sent this signal.
    Signal(Signal),
    /// The process that started the shim has ended.
    ParentDied,
}

impl StopRequest {
    /// How events tell it.
    pub(crate) fn cause(self) -> StopCause {
        match self {
            Self::Signal(_) => StopCause::Signal,
            Self::ParentDied => StopCause::ParentDied,
        }
    }

    /// Number of the signal that the exit status tells of: the end of the parent counts as SIGTERM.
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

/// The signals that ask a box to stop, blocked in every thread and read from an fd: libkrun
/// installs handlers of its own, which so never run.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
    parent: Option<Parent>,
}

impl Signals {
    /// Blocks the signals. The end of `parent` is one of them. To be called before any thread exists.
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

    /// The next request that has arrived, if any.
    pub(crate) fn next(&self) -> Option<StopRequest> {
        loop {
            // Any error is EAGAIN: the fd is ours, open and large enough to read from.
            let info = self.fd.read_signal().ok().flatten()?;
            let number = i32::try_from(info.ssi_signo).ok();
            match number.and_then(|number| Signal::try_from(number).ok())? {
                PARENT_SIGNAL if self.parent.is_some_and(Parent::is_gone) => {
                    return Some(StopRequest::ParentDied);
                }
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
