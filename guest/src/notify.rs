//! Receives the notifications of the workload on `$NOTIFY_SOCKET`, in the protocol of
//! `sd_notify(3)`.
//!
//! ```text
//!                              ┌─► state, at once ───────────────────────────► health answers
//! any process ──► socket ──► received
//!                              └─► changes, at most ten messages a second ──► shim
//! ```
//!
//! The socket has an abstract address (`unix(7)`), because the root file system can be empty or
//! read-only. An abstract socket has no permissions, so any process of the guest can send to it.
//! This is acceptable: the notifications concern only this box, and the workload itself can send
//! any of them.
//!
//! # Invariants
//!
//! - The guest program never receives a descriptor. `recv(2)` has no room for control messages, so
//!   the kernel closes the descriptors of a datagram when it is read.
//! - `BARRIER=1` works for the same reason (`sd_notify_barrier(3)`). Its sender waits until the
//!   descriptor in it is closed. By then, all earlier datagrams have been read.
//! - A flood of datagrams is read in batches, between which other tasks run. While its queue is
//!   full, the sender waits.

mod datagram;

use std::future::pending;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, SocketAddr};
use std::time::Duration;

use a3s_box_proto::agent::State;
use a3s_box_proto::control::{BoxState, Notified};
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

/// Name of the environment variable with the address of the socket.
pub(crate) const VARIABLE: &str = "NOTIFY_SOCKET";

/// The address of the socket, as the value of [`VARIABLE`]. The `@` stands for the NUL byte at the
/// start of an abstract address.
pub(crate) const ADDRESS: &str = "@a3s-box/notify";

/// Maximum length of a datagram in bytes, twice the limit of systemd (`NOTIFY_BUFFER_MAX`). A
/// longer datagram is dropped as a whole, because a cut line can have another meaning.
const DATAGRAM_BYTES: usize = 8 * 1024;

/// Number of datagrams that are read before other tasks run. It is equal to the number of children
/// that are reaped in a row.
const BATCH: usize = 64;

/// Upper bound for the length of the socket's queue. The kernel sets the length to
/// `net.unix.max_dgram_qlen` when the socket is created: 10 by default, 512 under systemd.
const QUEUE: usize = 1024;

/// Minimum time between two messages to the shim. The contract allows ten a second.
const PERIOD: Duration = Duration::from_millis(100);

/// The notify socket cannot be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the notify socket `{address}`")]
pub(crate) struct BindError {
    address: String,
    source: io::Error,
}

/// The notify socket with its received notifications, and those that the shim has got.
#[derive(Debug)]
pub(crate) struct Notices {
    socket: UnixDatagram,
    /// All notifications so far, merged.
    received: Notified,
    /// The value of `received` in the last message to the shim.
    sent: Notified,
    /// Earliest time of the next message to the shim.
    next: Instant,
    state: watch::Sender<State>,
}

impl Notices {
    /// Creates the socket. This must happen before the workload starts, because the workload can
    /// send its first notification at once.
    pub(crate) fn bind(address: &str) -> Result<Self, BindError> {
        let socket =
            open(address).map_err(|source| BindError { address: address.to_owned(), source })?;
        Ok(Self {
            socket,
            received: Notified::default(),
            sent: Notified::default(),
            next: Instant::now(),
            state: watch::Sender::new(State::Ready),
        })
    }

    /// Returns the last state that the workload has sent. The state is `Ready` before the first.
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Waits until there is a change for the shim and the rate limit allows a message, and returns
    /// it. The caller must send it.
    ///
    /// Loses nothing when it is cancelled: all state is in `self`.
    pub(crate) async fn changed(&mut self) -> Notified {
        loop {
            let has_changed = self.received != self.sent;
            if has_changed && Instant::now() >= self.next {
                return self.take();
            }
            // The socket is read during the wait, too. Otherwise its queue would fill up, and the
            // workload would block.
            tokio::select! {
                () = sleep_until(self.next), if has_changed => {}
                () = self.receive() => {}
            }
        }
    }

    /// Reads all datagrams that are in the socket, and returns the change for the shim, if there is
    /// one. Ignores the rate limit.
    ///
    /// To be called after the end of the workload, when all of its datagrams are in the socket.
    pub(crate) fn unsent(&mut self) -> Option<Notified> {
        // The usual result is `WouldBlock`: the socket is empty. Other processes can go on sending,
        // but their datagrams beyond the length of the queue are from after the end.
        drop(read(&self.socket, &mut self.received, QUEUE));
        self.publish();
        (self.received != self.sent).then(|| self.take())
    }

    /// Waits for datagrams and reads one batch.
    async fn receive(&mut self) {
        if self.socket.readable().await.is_err() {
            // This fails only while the runtime shuts down, so the result is of no use any more.
            return pending().await;
        }
        let batch = self
            .socket
            .try_io(Interest::READABLE, || read(&self.socket, &mut self.received, BATCH));
        self.publish();
        // After a full batch and after any other error, such as ENOMEM, the socket stays readable.
        // Other tasks must run before the next read.
        if !matches!(batch, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            yield_now().await;
        }
    }

    /// Makes the last state visible to the health service.
    fn publish(&self) {
        let state = match self.received.state() {
            BoxState::Ready | BoxState::Unspecified => State::Ready,
            BoxState::Busy => State::Busy,
            BoxState::Compacting => State::Compacting,
        };
        self.state.send_replace(state);
    }

    /// Returns the message to the shim and counts it as sent.
    fn take(&mut self) -> Notified {
        self.next = Instant::now() + PERIOD;
        self.sent = self.received.clone();
        self.sent.clone()
    }
}

/// Creates a socket with an abstract address. `from_abstract_name` adds the NUL byte itself.
fn open(address: &str) -> io::Result<UnixDatagram> {
    let name = address.strip_prefix('@').unwrap_or(address);
    let socket = net::UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}

/// Reads up to `limit` datagrams and merges them into `received`. Returns `WouldBlock` if the
/// socket is empty before that.
///
/// Calls `recv(2)` itself. A read of tokio reports nothing until its event loop has polled the
/// socket, and [`Notices::unsent`] cannot wait for that.
fn read(socket: &UnixDatagram, received: &mut Notified, limit: usize) -> io::Result<()> {
    // The buffer has one byte more than a datagram may have, so that a longer one is detected.
    let mut bytes = [0; DATAGRAM_BYTES + 1];
    for _ in 0..limit {
        let length = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)?;
        if length <= DATAGRAM_BYTES {
            datagram::apply(&bytes[..length], received);
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
