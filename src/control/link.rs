//! The control connection: the shim's end of it.
//!
//! The guest connects once, before its workload exists. The listener is closed then, so that no
//! other process in the guest can take the place of PID 1. All input is hostile: its size is
//! bounded, it is decoded without a panic, and the first error ends the connection.

use std::io;
use std::os::unix::net::UnixListener as StdListener;

use a3s_box_proto::control::{GuestMessage, ShimMessage, guest_message, shim_message};
use a3s_box_proto::frame::{self, FrameBuffer, FrameError};
use tokio::net::{UnixListener, UnixStream};

/// An event of the control connection.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// The guest sent a message.
    Received(guest_message::Message),
    /// The guest broke the protocol. No event follows.
    Broken(FrameError),
    /// The guest closed the connection. No event follows.
    Closed,
}

/// The connection, from the listener to its end.
#[derive(Debug)]
pub(super) enum Link {
    Listening(UnixListener),
    Connected(GuestConnection),
    Closed,
}

#[derive(Debug)]
pub(super) struct GuestConnection {
    stream: UnixStream,
    incoming: FrameBuffer,
    /// Bytes that did not fit in the socket yet. The shim sends fewer than ten messages to a guest,
    /// so this needs no bound.
    outgoing: Vec<u8>,
}

impl Link {
    /// Waits for the guest on `listener`, which does not block.
    pub(super) fn listen(listener: StdListener) -> io::Result<Self> {
        UnixListener::from_std(listener).map(Self::Listening)
    }

    /// Returns the next event. The future is cancel safe: `select!` may drop it.
    pub(super) async fn next(&mut self) -> LinkEvent {
        loop {
            match self {
                Self::Listening(listener) => {
                    // accept(2) fails if the peer has gone again. The guest may still connect.
                    if let Ok((stream, _)) = listener.accept().await {
                        let (incoming, outgoing) = (FrameBuffer::default(), Vec::new());
                        *self = Self::Connected(GuestConnection { stream, incoming, outgoing });
                    }
                }
                Self::Connected(connection) => {
                    let event = connection.next().await;
                    if !matches!(event, LinkEvent::Received(_)) {
                        *self = Self::Closed;
                    }
                    return event;
                }
                Self::Closed => return std::future::pending().await,
            }
        }
    }

    /// Sends a message if the guest is connected, and drops it otherwise.
    pub(super) fn send(&mut self, message: shim_message::Message) {
        if let Self::Connected(connection) = self {
            connection.outgoing.extend(frame::encode(&ShimMessage { message: Some(message) }));
            connection.flush();
        }
    }
}

impl GuestConnection {
    async fn next(&mut self) -> LinkEvent {
        loop {
            match self.incoming.next_message::<GuestMessage>() {
                Ok(Some(GuestMessage { message: Some(message) })) => {
                    return LinkEvent::Received(message);
                }
                // The message is of a newer version of the protocol. Its kind is unknown here.
                Ok(Some(GuestMessage { message: None })) => continue,
                Ok(None) => {}
                Err(error) => return LinkEvent::Broken(error),
            }
            let interest = if self.outgoing.is_empty() {
                tokio::io::Interest::READABLE
            } else {
                tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE
            };
            if self.stream.ready(interest).await.is_err() {
                return LinkEvent::Closed;
            }
            self.flush();
            let mut buffer = [0; 4096];
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return LinkEvent::Closed,
                Ok(count) => self.incoming.push(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return LinkEvent::Closed,
            }
        }
    }

    /// Writes as much as the socket takes. An error is ignored here, because the next read returns
    /// it.
    fn flush(&mut self) {
        if let Ok(count) = self.stream.try_write(&self.outgoing) {
            self.outgoing.drain(..count);
        }
    }
}
