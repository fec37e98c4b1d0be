//! The standard streams of a process: pipes, or a terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use a3s_box_proto::process::TerminalSize;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::descriptor::{Sink, Source, of_terminal};
use crate::launch::Streams;
use crate::syscall;

/// The ends that this process keeps.
#[derive(Debug)]
pub(super) struct OurEnds {
    /// `None`: the process has no standard input.
    pub(super) stdin: Option<Sink>,
    pub(super) stdout: Source,
    /// `None`: the process has a terminal.
    pub(super) stderr: Option<Source>,
    /// The master side of the terminal.
    pub(super) terminal: Option<OwnedFd>,
}

/// Makes the pipes of a process.
pub(super) fn pipes(has_stdin: bool) -> io::Result<(OurEnds, Streams)> {
    let (stdin, stdin_child) = if has_stdin {
        let (child, ours) = pipe()?;
        (Some(Sink::of_pipe(ours)?), Some(child))
    } else {
        (None, None)
    };
    let (stdout, stdout_child) = pipe()?;
    let (stderr, stderr_child) = pipe()?;
    let ours = OurEnds {
        stdin,
        stdout: Source::of_pipe(stdout)?,
        stderr: Some(Source::of_pipe(stderr)?),
        terminal: None,
    };
    let streams = Streams {
        stdin: stdin_child,
        stdout: stdout_child,
        stderr: stderr_child,
        is_terminal: false,
    };
    Ok((ours, streams))
}

/// Makes the terminal of a process.
pub(super) fn terminal(size: TerminalSize) -> io::Result<(OurEnds, Streams)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    resize(&master, size)?;
    // The other side comes from the master itself. Its path in `/dev/pts` could lead elsewhere,
    // because the workload may mount there.
    let child = ioctl_tiocgptpeer(&master, flags)?;
    above_standard(&child)?;
    let (stdout, stderr) = (child.try_clone()?, child.try_clone()?);
    let (source, sink) = of_terminal(&master)?;
    let ours = OurEnds { stdin: Some(sink), stdout: source, stderr: None, terminal: Some(master) };
    Ok((ours, Streams { stdin: Some(child), stdout, stderr, is_terminal: true }))
}

/// Sets the size of a terminal. Its foreground processes get SIGWINCH.
pub(super) fn resize(master: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let in_range = |number: u32| u16::try_from(number).map_err(io::Error::other);
    let size = Winsize {
        ws_row: in_range(size.rows)?,
        ws_col: in_range(size.columns)?,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(master, size)?)
}

/// Makes a pipe: its reading end and its writing end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    above_standard(&reader)?;
    Ok((reader, writer))
}

/// `syscall::spawn` requires descriptors above 2. A process whose first three are open makes no
/// others.
fn above_standard(descriptor: &OwnedFd) -> io::Result<()> {
    if syscall::is_above_standard(descriptor) {
        return Ok(());
    }
    Err(io::Error::other("descriptors 0, 1 and 2 are not open"))
}
