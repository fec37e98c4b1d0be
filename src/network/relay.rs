//! Published ports of a guest without egress: connections to the host's ports, relayed into the
//! empty network namespace of passt.
//!
//! The guest sees the address of its gateway as the peer of each connection. One peer of the host
//! must not be able to keep the ports from all others, so there are limits on its connections, and
//! on the time for which a connection may be silent.

mod connection;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use a3s_box_core::config::PublishConfig;
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::connection::{Activity, SilenceLimits, relay};
use super::connector::Connector;
use super::passt::inner_port;
use super::socket_options;

/// Bound on the open connections of a box. With their buffers (8 KiB in each direction), they take
/// at most 8 MiB.
const MAX_CONNECTIONS: usize = 512;

/// Bound on the open connections from one address, or from one IPv6 network of 64 bits.
const MAX_CONNECTIONS_OF_SOURCE: usize = MAX_CONNECTIONS / 4;

/// An hour is enough for pools of database connections and for quiet web sockets. passt would end a
/// silent connection after two hours (`ACT_TIMEOUT`). Four minutes are the least that a NAT grants
/// to a connection that is being closed (RFC 5382, REQ-5).
const SILENCE_LIMITS: SilenceLimits =
    SilenceLimits { open: Duration::from_secs(3600), half_closed: Duration::from_secs(240) };

/// Connections that the kernel accepts before the gate takes them. Rust's standard library has the
/// same number.
const BACKLOG: i32 = 128;

/// Time between two tries to accept a connection while the host has no fds or memory left for it.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// A published port that this process listens on.
#[derive(Debug)]
pub(super) struct PublishedPort {
    listener: std::net::TcpListener,
    /// Port in the empty network namespace from which passt forwards into the guest.
    inner_port: u16,
}

/// Why a published port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub(super) struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// Opens the published ports in the network namespace that this process is in.
pub(super) fn listen(ports: &[PublishConfig]) -> Result<Vec<PublishedPort>, ListenError> {
    let published = |(i, port): (usize, &PublishConfig)| {
        let address = SocketAddr::new(port.host_address, port.host_port);
        let listener = open(address).map_err(|source| ListenError { address, source })?;
        Ok(PublishedPort { listener, inner_port: inner_port(i) })
    };
    ports.iter().enumerate().map(published).collect()
}

/// Opens a listener that does not block. On `::` it accepts connections by IPv6 only, whatever the
/// setting of the host is (`net.ipv6.bindv6only`), as that of passt does.
fn open(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // A port is free again as soon as the box that had it has ended.
    set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    socket_options::set(&socket)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Returns what the limit for connections from one address counts as one. A single IPv6 host usually
/// has a whole network of 64 bits (RFC 4291).
fn source_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// A connection to a published port that is not relayed yet.
#[derive(Debug)]
struct Arrival {
    outer: TcpStream,
    /// See [`source_of`].
    source: IpAddr,
    inner_port: u16,
}

/// Relays connections until the connector fails.
pub(super) async fn serve(
    published: Vec<PublishedPort>,
    connector: Connector,
) -> io::Result<Infallible> {
    let mut connector = connector.into_async()?;
    let (arrived, mut arrivals) = mpsc::channel(1);
    for PublishedPort { listener, inner_port } in published {
        tokio::spawn(accept(TcpListener::from_std(listener)?, inner_port, arrived.clone()));
    }
    let mut connections = Connections::default();
    while let Some(Arrival { outer, source, inner_port }) = arrivals.recv().await {
        // A connection that is not relayed is closed here.
        if connections.make_room(source)
            && let Some(inner) = connector.connect(inner_port).await?
        {
            let activity = Arc::new(Activity::start());
            let noted = Arc::clone(&activity);
            let task = tokio::spawn(async move {
                // The error is not reported: each peer sees its own connection end.
                let _ended = relay(outer, inner, &noted, SILENCE_LIMITS).await;
            });
            connections.open.push(Connection { source, activity, task });
        }
    }
    // This function has a sender of the channel itself.
    Err(io::ErrorKind::BrokenPipe.into())
}

async fn accept(listener: TcpListener, inner_port: u16, arrived: mpsc::Sender<Arrival>) {
    loop {
        match listener.accept().await {
            Ok((outer, peer)) => {
                let arrival = Arrival { outer, source: source_of(peer.ip()), inner_port };
                if arrived.send(arrival).await.is_err() {
                    // The receiver is gone, so the gate is about to end.
                    return;
                }
            }
            Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
        }
    }
}

/// The connections that are open, and some that have ended since the last one was added.
#[derive(Debug, Default)]
struct Connections {
    open: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    source: IpAddr,
    activity: Arc<Activity>,
    task: JoinHandle<()>,
}

impl Connections {
    /// Makes room for a connection from this source. Returns false if the source has too many.
    ///
    /// If all connections are in use, the source with the most of them loses the one that has been
    /// silent for the longest time.
    fn make_room(&mut self, source: IpAddr) -> bool {
        self.open.retain(|connection| !connection.task.is_finished());
        let of_source = self.open.iter().filter(|connection| connection.source == source);
        if of_source.count() >= MAX_CONNECTIONS_OF_SOURCE {
            return false;
        }
        if self.open.len() >= MAX_CONNECTIONS
            && let Some(position) = self.most_dispensable()
        {
            self.open.swap_remove(position).task.abort();
        }
        true
    }

    fn most_dispensable(&self) -> Option<usize> {
        let mut counts = BTreeMap::<IpAddr, usize>::new();
        for connection in &self.open {
            *counts.entry(connection.source).or_default() += 1;
        }
        let rank = |position: &usize| {
            let connection = self.open.get(*position)?;
            Some((counts.get(&connection.source)?, Reverse(connection.activity.last())))
        };
        (0..self.open.len()).max_by_key(rank)
    }
}

#[cfg(test)]
mod tests;
