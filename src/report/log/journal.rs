//! The journal of systemd, through the crate `tracing-journald`.
//!
//! The crate (0.3.2) can add fields to all records, but cannot change them later. Therefore there
//! is a layer for each phase of a box, each with its own socket, `BOX_ID` and `PHASE`.
//!
//! The crate's socket is blocking, and the crate gives no access to it. A journal that is stopped
//! or slow would then stop the VM. So this module finds the socket among the fds of this process,
//! and makes it non-blocking through a duplicate. `pidfd_getfd(2)` would need no `unsafe` code for
//! that, but the systemd unit refuses it with the other calls of debuggers.
//!
//! The crate sends each record to the path of the journal's socket, so this path must exist in the
//! root of a confined shim.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::time::Duration;

use a3s_box_sys::duplicate::duplicate;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tracing_journald::{Layer, Priority, PriorityMappings};

use super::phase::Phase;

/// Path of the socket of systemd-journald(8). The crate has the same path built in.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// `SYSLOG_IDENTIFIER` of the records, by which `journalctl -t` selects them.
const IDENTIFIER: &str = "a3s-box-shim";

/// Longest time that the start of a shim waits for a slow journal. A journal reads within
/// milliseconds, unless it is stopped.
const WRITABLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The layers that write to the journal.
pub(super) struct Journal {
    unnamed: Layer,
    /// A layer for each phase, or nothing if they could not be made, which means that the journal
    /// is lost.
    named: OnceLock<Option<Vec<Layer>>>,
}

impl Journal {
    /// Connects to the journal. Callers of this and of [`Self::name`] must not have started a
    /// thread, because [`layer`] compares the fds of the process.
    pub(super) fn open() -> io::Result<Self> {
        let fields = [("PHASE", Phase::Config.name())];
        Ok(Self { unnamed: layer(&fields)?, named: OnceLock::new() })
    }

    /// Sets the box id of all later records. If this fails, the journal is lost.
    pub(super) fn name(&self, box_id: &str) -> io::Result<()> {
        let fields = |phase: Phase| [("BOX_ID", box_id), ("PHASE", phase.name())];
        let layers = Phase::ALL.into_iter().map(|phase| layer(&fields(phase))).collect();
        let (layers, result) = match layers {
            Ok(layers) => (Some(layers), Ok(())),
            Err(error) => (None, Err(error)),
        };
        // `log::name` calls this only once.
        let _first = self.named.set(layers);
        result
    }

    /// Returns the layer for records in this phase, or nothing if the journal is lost.
    pub(super) fn for_events(&self, phase: Phase) -> Option<&Layer> {
        match self.named.get() {
            None => Some(&self.unnamed),
            Some(named) => named.as_ref()?.get(phase as usize),
        }
    }

    /// Returns the layer that keeps the fields of spans. It is always the same one, because the
    /// crate panics if a span has fields of two layers.
    pub(super) fn for_spans(&self) -> &Layer {
        &self.unnamed
    }
}

/// Makes a layer that adds these fields and never blocks.
fn layer(fields: &[(&str, &str)]) -> io::Result<Layer> {
    // `Layer::new` sends an empty datagram while its socket is still blocking, so the journal must
    // have space for it.
    wait_until_writable()?;
    let before = sockets()?;
    let layer = Layer::new()?;
    let mut new = sockets()?.into_iter().filter(|fd| !before.contains(fd));
    let (Some(fd), None) = (new.next(), new.next()) else {
        return Err(io::Error::other("cannot tell which socket is the journal's"));
    };
    let duplicate = duplicate(fd)?;
    // Both fds refer to the same open file description, to which the flag belongs.
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

/// Waits until the journal's queue has space, for at most [`WRITABLE_TIMEOUT`].
fn wait_until_writable() -> io::Result<()> {
    let probe = UnixDatagram::unbound()?;
    probe.connect(SOCKET)?;
    let timeout = PollTimeout::try_from(WRITABLE_TIMEOUT).unwrap_or(PollTimeout::ZERO);
    let mut fds = [PollFd::new(probe.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, timeout)? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "its queue is full")),
        _ => Ok(()),
    }
}

/// Returns the fds of this process that are sockets.
fn sockets() -> io::Result<BTreeSet<RawFd>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // A link that cannot be read belongs to an fd that was closed meanwhile, and is skipped.
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        if target.to_string_lossy().starts_with("socket:") {
            found.extend(number);
        }
    }
    Ok(found)
}
