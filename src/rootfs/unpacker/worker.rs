//! The unpacker as a process.

use std::ffi::CStr;
use std::io::{self, BufRead, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::process::ExitCode;

use a3s_box_core::config::RootKind;
use a3s_box_core::{ErrorReport, exit};
use a3s_box_oci::{BlockRoot, CacheError, LayerCache, Layout, Stack};
use a3s_box_sys::HostError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_name;

use super::message::{Job, Message};
use super::{calls, jail};
use crate::host::inherited::InheritedFiles;
use crate::host::process::stdout;
use crate::rootfs::error::RootfsError;
use crate::rootfs::form::{Costs, Form};

/// First argument of this executable when it is to be the unpacker.
pub(super) const ARGUMENT: &str = "--unpacker";

/// Variable that makes a fake unpacker do something that it must not be able to do.
pub(super) const FAKE_ACT: &str = "A3S_BOX_FAKE_UNPACKER";

/// Name of the process in `ps`, of at most 15 bytes (prctl(2)).
const NAME: &CStr = c"a3s-box-unpack";

/// Runs the unpacker to its end if the arguments of this process ask for it.
pub(in crate::rootfs) fn run_if_asked() -> Option<ExitCode> {
    std::env::args_os().nth(1).filter(|argument| argument == ARGUMENT)?;
    Some(match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let report = ErrorReport::new(error.code(), &error).with_hint(error.hint());
            // A shim that has stopped the unpacker does not read the report.
            let _sent = send(&Message::Failed(report));
            ExitCode::from(exit::FAILED)
        }
    })
}

fn run() -> Result<(), RootfsError> {
    set_name(NAME).map_err(HostError::of("set the name of the process"))?;
    InheritedFiles::find()?.close();
    let job = read_job()?;
    let layout = Layout::open(&job.layout)?;
    let cache = LayerCache::open(&job.cache_dir)?.with_limits(job.limits.clone());
    act_if_fake("early");
    jail::confine(&job)?;
    calls::restrict(job.seccomp)
        .map_err(io::Error::other)
        .map_err(HostError::of("give up system calls"))?;
    act_if_fake("late");
    match job.kind {
        RootKind::Block => unpack::<BlockRoot>(&job, &layout, &cache)?,
        RootKind::Shared => unpack::<Stack>(&job, &layout, &cache)?,
    }
    Ok(())
}

/// Reads the job, the only line on standard input.
fn read_job() -> Result<Job, HostError> {
    let mut line = Vec::new();
    io::stdin()
        .lock()
        .read_until(b'\n', &mut line)
        .map_err(HostError::of("read the job of the unpacker"))?;
    serde_json::from_slice(&line).map_err(HostError::of("read the job of the unpacker"))
}

/// Puts all layers into the cache, tells the shim, and keeps them there until the shim closes the
/// pipe. By then the shim has taken leases of its own.
fn unpack<F: Form>(job: &Job, layout: &Layout, cache: &LayerCache) -> Result<(), CacheError> {
    let on_progress = &mut |layer, progress| {
        match send(&Message::Progress { layer, progress }) {
            Ok(()) if !has_ended() => ControlFlow::Continue(()),
            // The shim has closed the pipe, which stops the work.
            _ => ControlFlow::Break(()),
        }
    };
    let mut image = F::compose(cache, layout, &job.layers, on_progress)?;
    let Costs { hits, unpacked_bytes } = image.costs();
    // A shim that has closed the pipe needs no answer.
    let _sent = send(&Message::Done { hits: *hits, unpacked_bytes: *unpacked_bytes });
    wait_for_end();
    Ok(())
}

/// Sends a message. The write is one call, so that messages of several threads do not mix.
fn send(message: &Message) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut stdout = stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}

/// Returns whether the shim has closed the pipe.
fn has_ended() -> bool {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    // Nothing follows the job, so only the end of the pipe makes it readable.
    !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

/// Waits until the shim closes the pipe.
fn wait_for_end() {
    // Nothing follows the job, and an error ends the wait as well.
    let _end = io::stdin().lock().read(&mut [0]);
}

/// Acts as an unpacker that a layer has taken over, if a test asks for it at this `moment`.
fn act_if_fake(moment: &str) {
    if !cfg!(feature = "fake-vm") {
        return;
    }
    let wanted = std::env::var(FAKE_ACT).unwrap_or_default();
    let mut words = wanted.splitn(3, ' ');
    if words.next() != Some(moment) {
        return;
    }
    let (act, place) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let result = match act {
        "read" => std::fs::read(place).map(drop),
        "write" => std::fs::write(place, ""),
        "socket" => std::net::UdpSocket::bind(place).map(drop),
        "run" => std::process::Command::new(place).status().map(drop),
        "signal" => nix::sys::signal::kill(nix::unistd::getppid(), None).map_err(io::Error::from),
        "mount" => nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(Into::into),
        _ => std::process::abort(),
    };
    // The test reads the outcome from the log of the shim.
    let _written = writeln!(io::stderr(), "fake unpacker: {act}: {result:?}");
}
