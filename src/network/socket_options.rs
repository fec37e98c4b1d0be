//! The options of both sockets of a relayed connection.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_nodelay,
};

/// Silence after which the kernel asks a peer whether it is still there. A peer that does not
/// answer is gone after four minutes (`IDLE` + `PROBES` × `INTERVAL`).
const IDLE: Duration = Duration::from_secs(120);
const INTERVAL: Duration = Duration::from_secs(30);
const PROBES: u32 = 4;

/// Sets the options of a TCP socket. A connection has those of the listener that accepted it.
pub(super) fn set(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    // Nagle's algorithm would delay small writes a second time, after the sender's own kernel.
    set_tcp_nodelay(socket, true)?;
    set_tcp_keepidle(socket, IDLE)?;
    set_tcp_keepintvl(socket, INTERVAL)?;
    set_tcp_keepcnt(socket, PROBES)?;
    set_socket_keepalive(socket, true)?;
    Ok(())
}
