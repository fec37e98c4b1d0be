//! The connection to PID 1 of the guest.
//!
//! The guest connects once, before its workload exists; then the listener is gone, so that
//! nothing else in the guest can speak for PID 1. What arrives is hostile: bounded, decoded
//! without panic, and any surprise ends the conversation.

use std::io;
use std::os::unix::net::UnixListener as StdListener;

use a3s_box_proto::control::{GuestMessage, ShimMessage, guest_message, shim_message};
use a3s_box_proto::frame::{self, FrameBuffer, FrameError};
use tokio::net::{UnixListener, UnixStream};

/// What the guest did.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// It said something.
    Said(guest_message::Message),
    /// It broke the protocol. Nothing follows.
    Broken(FrameError),
    /// It closed the connection. Nothing follows.
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
    /// What the socket did not take yet; a box sends fewer than ten messages.
    outgoing: Vec<u8>,
}

impl Link {
    /// Waits for the guest on `listener`, which does not block.
    pub(super) fn listen(listener: StdListener) -> io::Result<Self> {
        UnixListener::from_std(listener).map(Self::Listening)
    }

    /// What the guest does next. May be dropped at any time without losing anything.
    pub(super) async fn next(&mut self) -> LinkEvent {
        loop {
            match self {
                Self::Listening(listener) => {
                    // A failed accept (the peer is gone already) is followed by another try.
                    if let Ok((stream, _)) = listener.accept().await {
                        let (incoming, outgoing) = (FrameBuffer::default(), Vec::new());
                        *self = Self::Connected(GuestConnection { stream, incoming, outgoing });
                    }
                }
                Self::Connected(connection) => {
                    let event = connection.next().await;
                    if !matches!(event, LinkEvent::Said(_)) {
                        *self = Self::Closed;
                    }
                    return event;
                }
                Self::Closed => return std::future::pending().await,
            }
        }
    }

    /// Sends a message, if there is somebody to receive it.
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
                    return LinkEvent::Said(message);
                }
                // A kind of message that a newer guest knows.
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

    /// An error shows again when reading.
    fn flush(&mut self) {
        if let Ok(count) = self.stream.try_write(&self.outgoing) {
            self.outgoing.drain(..count);
        }
    }
}
