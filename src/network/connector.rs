//! The connector: the process that opens connections to passt for the gate.
//!
//! The gate holds sockets of the host's network: the listeners of the published ports, and the
//! connections that they accept. `connect(2)` gives such a socket a new peer, in the network that
//! the socket was made in. A gate with this call could therefore leave its empty network, and a
//! filter of system calls sees the number of an fd only, which says nothing about its network. So
//! the call belongs to a process that has no socket of the host's network:
//!
//! ```text
//!   host's network │ empty network
//!    listeners ──► gate ── port ────► connector ── connect(2) ──► passt
//!                  │  ◄── socket ───┘
//!                  └─ recvmsg(2), no connect(2), no sendmsg(2)
//! ```
//!
//! The connector is this same executable. It starts in the empty network, from a gate whose fds all
//! close on exec, and ends when the gate closes its end of their pair of sockets.

mod calls;

use std::ffi::{CStr, OsStr};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};

use a3s_box_core::config::SeccompMode;
use a3s_box_core::one_line;
use a3s_box_sys::{HostError, exit};
use nix::sys::prctl::set_name;
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, connect, recvmsg, sendmsg,
    socket_with,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::ANSWER_TIMEOUT;
use super::{jail, socket_options};
use crate::host::inherited::InheritedFiles;
use crate::report::terminal;

/// First argument of this executable when it is to be the connector. The [`ConnectorConfig`] as JSON
/// follows.
const ARGUMENT: &str = "--network-connector";

/// Name of the process in `ps`, of at most 15 bytes (prctl(2)).
const NAME: &CStr = c"a3s-box-connect";

/// What the gate passes to its connector.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ConnectorConfig {
    pub(super) seccomp: SeccompMode,
    /// The user and group that the connector becomes, if root starts it.
    pub(super) user: Option<u32>,
}

/// The gate's end of the pair of sockets.
#[derive(Debug)]
pub(super) struct Connector(UnixStream);

impl Connector {
    /// Starts the connector in the network namespace that this process is in.
    pub(super) fn start(config: &ConnectorConfig) -> Result<Self, HostError> {
        let (gates_end, connectors_end) =
            UnixStream::pair().map_err(HostError::of("make a pair of sockets"))?;
        let config = serde_json::to_string(config)
            .map_err(HostError::of("write the connector's arguments"))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).arg(config).env_clear();
        command.stdin(OwnedFd::from(connectors_end)).stdout(Stdio::null());
        // The connector is not waited for. It ends after this process.
        command.spawn().map_err(HostError::of("start the network's connector"))?;
        Ok(Self(gates_end))
    }

    /// Registers the socket with the event loop.
    pub(super) fn into_async(self) -> io::Result<AsyncConnector> {
        self.0.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(self.0).map(AsyncConnector)
    }
}

/// The [`Connector`] in an event loop.
#[derive(Debug)]
pub(super) struct AsyncConnector(tokio::net::UnixStream);

impl AsyncConnector {
    /// Returns a socket that is connected, or about to be, to a port of the loopback address.
    /// Returns `None` if the connector could not make one.
    ///
    /// # Errors
    ///
    /// The connector has ended or does not answer.
    pub(super) async fn connect(&mut self, port: u16) -> io::Result<Option<TcpStream>> {
        timeout(ANSWER_TIMEOUT, self.request(port)).await?
    }

    async fn request(&mut self, port: u16) -> io::Result<Option<TcpStream>> {
        self.0.write_all(&port.to_be_bytes()).await?;
        let socket = self.0.async_io(Interest::READABLE, || receive(&self.0)).await?;
        socket.map(|socket| TcpStream::from_std(socket.into())).transpose()
    }
}

/// Receives an answer of the connector: one byte, with a socket if it has made one.
fn receive(connector: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(connector, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    if received.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connector has ended"));
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    }))
}

/// Runs the connector to its end if the arguments of this process ask for it.
///
/// Callers must do this before anything else, because the connector closes every inherited fd.
pub(super) fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    arguments.next().filter(|argument| argument == ARGUMENT)?;
    Some(match prepare(&arguments.next().unwrap_or_default()) {
        Ok(gate) => {
            // The gate notices either end, and the filter allows no call for a report.
            let status = answer(&gate).map_or(a3s_box_core::exit::FAILED, |()| 0);
            exit::now(status)
        }
        Err(error) => terminal::print(io::stderr(), &one_line(&error), a3s_box_core::exit::FAILED),
    })
}

/// Confines this process, and returns its end of the pair of sockets.
fn prepare(config: &OsStr) -> Result<UnixStream, HostError> {
    set_name(NAME).map_err(HostError::of("set the name of the process"))?;
    InheritedFiles::find()?.close();
    let ConnectorConfig { seccomp, user } = serde_json::from_str(&config.to_string_lossy())
        .map_err(HostError::of("read the connector's arguments"))?;
    let gate =
        io::stdin().as_fd().try_clone_to_owned().map_err(HostError::of("take the socket"))?;
    jail::confine(user)?;
    calls::restrict(seccomp)
        .map_err(io::Error::other)
        .map_err(HostError::of("give up system calls"))?;
    Ok(gate.into())
}

/// Answers requests until the gate closes its end. A request is the number of a port, big endian.
fn answer(mut gate: &UnixStream) -> io::Result<()> {
    let mut port = [0; 2];
    loop {
        match gate.read_exact(&mut port) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        send(gate, open(u16::from_be_bytes(port)).ok().as_ref())?;
    }
}

/// Returns a socket that is connected, or about to be, to a port of the loopback address.
///
/// The socket does not block, so a full listen queue of passt delays only this connection.
fn open(port: u16) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    socket_options::set(&socket)?;
    match connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Sends an answer: one byte, with a socket if there is one.
fn send(gate: &UnixStream, socket: Option<&OwnedFd>) -> io::Result<()> {
    let sockets = socket.map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if sockets.is_some() {
        // The buffer has the size of one socket, so the push succeeds.
        control.push(SendAncillaryMessage::ScmRights(sockets.as_slice()));
    }
    sendmsg(gate, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
impl Connector {
    /// Returns a connector that is a thread of this process.
    pub(super) fn in_thread() -> Self {
        let (gates_end, connectors_end) = UnixStream::pair().unwrap();
        std::thread::spawn(move || answer(&connectors_end));
        Self(gates_end)
    }
}
