//! The sockets of the gate's name server, and what its effects do.
//!
//! The sockets are made in the network of the host, before the gate leaves it, and each is
//! connected to one name server. The gate can only send to that server and receive from it
//! afterwards: the filter of system calls has no connect(2), and no sendto(2) with an address
//! (`calls.rs`).

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{self, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use rustix::net::SendFlags;
use tokio::io::ReadBuf;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use super::refuser::Refuser;
use crate::network::dns::MAX_MESSAGE_BYTES;
use crate::network::dns_frame;
use crate::network::filter::{Filter, PORT_DNS};
use crate::network::name_server::{Effect, NameServer};
use crate::network::names::NameRules;

/// Sockets that are connected to the name servers, in their order.
///
/// The kernel chooses the port of each at random. Nobody but the server at the other end can send
/// to such a socket without forging its address, and then also has to guess the number of a
/// question.
#[derive(Debug)]
pub(super) struct Upstream(Vec<UdpSocket>);

impl Upstream {
    /// Makes the sockets in the network of this process. Servers that this network cannot reach,
    /// such as IPv6 ones on a host with IPv4 only, are left out.
    ///
    /// # Errors
    ///
    /// No server is left.
    pub(super) fn open(servers: &[IpAddr]) -> io::Result<Self> {
        let connect = |server: &IpAddr| -> io::Result<UdpSocket> {
            let any = match server {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect((*server, PORT_DNS))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let (mut sockets, mut last) = (Vec::new(), io::Error::other("there is no name server"));
        for server in servers {
            match connect(server) {
                Ok(socket) => sockets.push(socket),
                Err(error) => last = error,
            }
        }
        if sockets.is_empty() { Err(last) } else { Ok(Self(sockets)) }
    }
}

/// The name server of the gate at work.
#[derive(Debug)]
pub(super) struct Resolving {
    server: RefCell<NameServer>,
    sockets: Vec<tokio::net::UdpSocket>,
    /// Wakes the task that watches the deadlines.
    asked: Notify,
}

impl Resolving {
    /// Registers the sockets with the event loop of the calling task.
    pub(super) fn new(
        rules: Rc<NameRules>,
        upstream: Upstream,
        has_ipv6: bool,
    ) -> io::Result<Self> {
        let sockets = upstream.0.into_iter().map(tokio::net::UdpSocket::from_std);
        let sockets: Vec<_> = sockets.collect::<io::Result<_>>()?;
        let server = RefCell::new(NameServer::new(rules, sockets.len(), has_ipv6));
        Ok(Self { server, sockets, asked: Notify::new() })
    }

    /// Takes a question of the guest in a frame.
    pub(super) fn ask(&self, frame: &[u8], filter: &RefCell<Filter>, refuser: &Refuser) {
        if let Some((port, message)) = dns_frame::question(frame) {
            let effects = self.server.borrow_mut().ask(port, message, Instant::now());
            self.perform(effects, filter, refuser);
        }
    }

    /// Receives replies for ever. Without a name server of its own, the gate has nothing to
    /// receive.
    pub(super) async fn hear(
        this: Option<&Self>,
        filter: &RefCell<Filter>,
        refuser: &Refuser,
    ) -> Infallible {
        let Some(this) = this else { return future::pending().await };
        let mut buffer = [0; MAX_MESSAGE_BYTES as usize];
        loop {
            let (server, received) = this.receive(&mut buffer).await;
            let now = Instant::now();
            let effects = match received {
                Ok(length) => {
                    let message = buffer.get(..length).unwrap_or_default();
                    this.server.borrow_mut().hear(server, message, now)
                }
                // The host of the server has no service on the port, or is not there.
                Err(_) => this.server.borrow_mut().lose(server, now),
            };
            this.perform(effects, filter, refuser);
        }
    }

    /// Has the next name server asked whenever one has not replied in time.
    pub(super) async fn watch(
        this: Option<&Self>,
        filter: &RefCell<Filter>,
        refuser: &Refuser,
    ) -> Infallible {
        let Some(this) = this else { return future::pending().await };
        loop {
            let due = this.server.borrow().due();
            match due {
                None => this.asked.notified().await,
                // A question that comes meanwhile is due later.
                Some(due) => sleep_until(due.into()).await,
            }
            let effects = this.server.borrow_mut().tick(Instant::now());
            this.perform(effects, filter, refuser);
        }
    }

    /// Waits for a message of a name server, and returns the index of the server.
    async fn receive(&self, buffer: &mut [u8]) -> (usize, io::Result<usize>) {
        poll_fn(|context| {
            for (server, socket) in self.sockets.iter().enumerate() {
                let mut buffer = ReadBuf::new(buffer);
                if let Poll::Ready(result) = socket.poll_recv(context, &mut buffer) {
                    return Poll::Ready((server, result.map(|()| buffer.filled().len())));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn perform(&self, effects: Vec<Effect>, filter: &RefCell<Filter>, refuser: &Refuser) {
        for effect in effects {
            match effect {
                Effect::Ask { server, message } => {
                    self.send(server, &message);
                    self.asked.notify_one();
                }
                Effect::Open { name, addresses, expires } => {
                    filter.borrow_mut().note_answer(&name, &addresses, expires);
                }
                Effect::Answer { port, message } => {
                    refuser.answer(&dns_frame::answer(port, &message));
                }
                Effect::Tell(destination) => refuser.tell_of(destination),
            }
        }
    }

    fn send(&self, server: usize, message: &[u8]) {
        let Some(socket) = self.sockets.get(server) else { return };
        // An error may be that of an earlier message, and is gone once it was returned. If the
        // second message is lost as well, the name server after this one is asked later.
        let send = || rustix::net::send(socket, message, SendFlags::NOSIGNAL);
        let _sent = send().or_else(|_| send());
    }
}
