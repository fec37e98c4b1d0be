//! The journal of systemd, through the crate `tracing-journald`.
//!
//! The crate (0.3.2) knows fields that are added to all records, and cannot change them later. So
//! there is a layer for each phase of a box, each with its socket and its own `BOX_ID` and `PHASE`.
//!
//! Its socket is a blocking one that it shows to nobody, and sends each record to a path. A journal
//! that is stopped or behind would then stop the VM, so the socket is found among this process's fds,
//! and made non-blocking through a duplicate of it, for which `pidfd_getfd(2)` is the safe way. What a
//! confined shim sees at the path must still be the journal's socket.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tracing_journald::{Layer, Priority, PriorityMappings};

use super::phase::Phase;

/// Where systemd-journald(8) listens; the crate has the same path built in.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// What `journalctl -t` calls the records.
const IDENTIFIER: &str = "a3s-box-shim";

/// How long the start of a shim may wait for a journal that is behind: it reads within milliseconds,
/// or is stopped.
const PATIENCE: Duration = Duration::from_secs(1);

/// The journal's layers.
pub(super) struct Journal {
    unnamed: Layer,
    /// A layer for each phase; none if they could not be made, which counts as a lost journal.
    named: OnceLock<Option<Vec<Layer>>>,
}

impl Journal {
    /// Connects to the journal. To be called before any thread exists, and so [`Self::name`].
    pub(super) fn open() -> io::Result<Self> {
        let fields = [("PHASE", Phase::Config.name())];
        Ok(Self { unnamed: layer(&fields)?, named: OnceLock::new() })
    }

    /// Names the box in all later records. When that fails, the journal is lost.
    pub(super) fn name(&self, box_id: &str) -> io::Result<()> {
        let fields = |phase: Phase| [("BOX_ID", box_id), ("PHASE", phase.name())];
        let layers = Phase::ALL.into_iter().map(|phase| layer(&fields(phase))).collect();
        let (layers, result) = match layers {
            Ok(layers) => (Some(layers), Ok(())),
            Err(error) => (None, Err(error)),
        };
        // The name is given once (`log::name`).
        let _first = self.named.set(layers);
        result
    }

    /// The layer for records in this phase; none if the journal is lost.
    pub(super) fn for_events(&self, phase: Phase) -> Option<&Layer> {
        match self.named.get() {
            None => Some(&self.unnamed),
            Some(named) => named.as_ref()?.get(phase as usize),
        }
    }

    /// The layer that keeps the fields of spans, always the same one: a second one would panic.
    pub(super) fn for_spans(&self) -> &Layer {
        &self.unnamed
    }
}

/// A layer that adds these fields, and never blocks.
fn layer(fields: &[(&str, &str)]) -> io::Result<Layer> {
    // The layer sends an empty datagram at once, when its socket still is a blocking one.
    wait_until_writable()?;
    let before = sockets()?;
    let layer = Layer::new()?;
    let mut new = sockets()?.into_iter().filter(|fd| !before.contains(fd));
    let (Some(fd), None) = (new.next(), new.next()) else {
        return Err(io::Error::other("cannot tell which socket is the journal's"));
    };
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let duplicate = pidfd_getfd(this, fd, PidfdGetfdFlags::empty())?;
    // A flag of the open file that both fds mean.
    fcntl_setfl(&duplicate, fcntl_getfl(&duplicate)? | OFlags::NONBLOCK)?;
    Ok(layer
        .with_custom_fields(fields.iter().copied())
        .with_syslog_identifier(IDENTIFIER.to_owned())
        .with_priority_mappings(PriorityMappings {
            info: Priority::Informational,
            debug: Priority::Debug,
            trace: Priority::Debug,
            ..PriorityMappings::new()
        }))
}

/// Waits until the journal's queue has room, within a bound.
fn wait_until_writable() -> io::Result<()> {
    let probe = UnixDatagram::unbound()?;
    probe.connect(SOCKET)?;
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::ZERO);
    let mut fds = [PollFd::new(probe.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, timeout)? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "its queue is full")),
        _ => Ok(()),
    }
}

/// The fds of this process that are sockets.
fn sockets() -> io::Result<BTreeSet<RawFd>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // The listing's own fd is in the list, and closed later.
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        if target.to_string_lossy().starts_with("socket:") {
            found.extend(number);
        }
    }
    Ok(found)
}
