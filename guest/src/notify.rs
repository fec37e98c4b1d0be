//! What the workload says about itself on `$NOTIFY_SOCKET`, the way of `sd_notify(3)`.
//!
//! ```text
//!                              ┌─► state, at once ──► health answers
//! any process ──► socket ──► said
//!                              └─► what changed, at most ten a second ──► shim
//! ```
//!
//! The socket is abstract: it needs no place in a root that may be empty or read-only. Such a socket
//! has no permissions either, so any process of the guest may speak for the workload. That is fine: a
//! guest that lies here lies about itself only, which the workload could do anyway.
//!
//! # Invariants
//!
//! No descriptor comes in: a read without room for control messages makes the kernel close those that
//! a datagram brings. The sender of `BARRIER=1` waits for just that, so it means that what was sent
//! before has been read. A flood is read in turns, and costs its sender the wait for them.

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

/// Name of the environment variable by which a workload finds the socket.
pub(crate) const VARIABLE: &str = "NOTIFY_SOCKET";

/// Its value: the `@` is for the NUL byte that an abstract address begins with.
pub(crate) const ADDRESS: &str = "@a3s-box/notify";

/// Longest datagram that is taken, twice what systemd takes (`NOTIFY_BUFFER_MAX`). A longer one is
/// dropped whole: its last line may not be what was meant.
const DATAGRAM_BYTES: usize = 8 * 1024;

/// How many datagrams are read before others get their turn, as many as children are reaped.
const BATCH: usize = 64;

/// More than the socket can hold: `net.unix.max_dgram_qlen` at its making, 10 unless the kernel was
/// told otherwise; systemd tells it 512.
const QUEUE: usize = 1024;

/// Pause between two messages to the shim: the contract's ten a second.
const PERIOD: Duration = Duration::from_millis(100);

/// Why the workload cannot be heard.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the notify socket `{address}`")]
pub(crate) struct BindError {
    address: String,
    source: io::Error,
}

/// What the workload has said so far, and what the shim knows of it.
#[derive(Debug)]
pub(crate) struct Notices {
    socket: UnixDatagram,
    said: Notified,
    told: Notified,
    // Nothing is told before.
    next: Instant,
    state: watch::Sender<State>,
}

impl Notices {
    /// Listens. Must come before the workload's start: it may speak at once.
    pub(crate) fn bind(address: &str) -> Result<Self, BindError> {
        let socket =
            open(address).map_err(|source| BindError { address: address.to_owned(), source })?;
        Ok(Self {
            socket,
            said: Notified::default(),
            told: Notified::default(),
            next: Instant::now(),
            state: watch::Sender::new(State::Ready),
        })
    }

    /// The state of the box, as it was said last; ready before that.
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Listens until there is something to tell the shim. Loses nothing when it is cancelled.
    pub(crate) async fn changed(&mut self) -> Notified {
        loop {
            let is_news = self.said != self.told;
            if is_news && Instant::now() >= self.next {
                return self.tell();
            }
            tokio::select! {
                () = sleep_until(self.next), if is_news => {}
                () = self.listen() => {}
            }
        }
    }

    /// What is left to tell of a workload that has ended: all that it said is in the socket.
    pub(crate) fn last(&mut self) -> Option<Notified> {
        // `WouldBlock`, unless others go on talking; what they say now was not said before the end.
        drop(read(&self.socket, &mut self.said, QUEUE));
        self.publish();
        (self.said != self.told).then(|| self.tell())
    }

    /// Waits for datagrams, and reads some.
    async fn listen(&mut self) {
        if self.socket.readable().await.is_err() {
            // Without an event loop the process is at its end.
            return pending().await;
        }
        let batch =
            self.socket.try_io(Interest::READABLE, || read(&self.socket, &mut self.said, BATCH));
        self.publish();
        // Others get their turn as well if the kernel has no memory for a moment.
        if !matches!(batch, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            yield_now().await;
        }
    }

    fn publish(&self) {
        let state = match self.said.state() {
            BoxState::Ready | BoxState::Unspecified => State::Ready,
            BoxState::Busy => State::Busy,
            BoxState::Compacting => State::Compacting,
        };
        self.state.send_replace(state);
    }

    fn tell(&mut self) -> Notified {
        self.next = Instant::now() + PERIOD;
        self.told = self.said.clone();
        self.told.clone()
    }
}

fn open(address: &str) -> io::Result<UnixDatagram> {
    let name = address.strip_prefix('@').unwrap_or(address);
    let socket = net::UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}

/// Reads up to so many datagrams; `WouldBlock` if there are no more.
///
/// By itself, as tokio's own reads find nothing before its event loop has seen the datagram, and
/// what is left at the workload's end cannot wait for that.
fn read(socket: &UnixDatagram, said: &mut Notified, limit: usize) -> io::Result<()> {
    // One byte more, so that a longer datagram is seen.
    let mut bytes = [0; DATAGRAM_BYTES + 1];
    for _ in 0..limit {
        let length = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)?;
        if length <= DATAGRAM_BYTES {
            datagram::apply(&bytes[..length], said);
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
