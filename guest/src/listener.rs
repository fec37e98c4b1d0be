//! Listens on a vsock port for the servers of the guest program.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use tonic::codegen::tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::transport::server::Connected;

/// Pause after `accept(2)` has failed. The causes, a lack of descriptors or memory, last for a
/// while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The port cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on vsock port {port}")]
pub(crate) struct ListenError {
    port: u32,
    source: io::Error,
}

/// The peers whose connections a server accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peers {
    /// The host and the processes of the guest.
    Any,
    /// The host only. A process of the guest can connect to the guest's own address; its connection
    /// is closed at once.
    Host,
}

impl Peers {
    /// Returns whether the peer with this context id (`vsock(7)`) is one of them.
    fn include(self, cid: u32) -> bool {
        self == Self::Any || cid == VMADDR_CID_HOST
    }
}

/// Listens on a port. Returns the connections of `peers`, which a task accepts from now on.
pub(crate) fn listen(
    port: u32,
    peers: Peers,
) -> Result<impl Stream<Item = io::Result<HostStream>>, ListenError> {
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
        .map_err(|source| ListenError { port, source })?;
    // A task accepts the connections, so that it can pause after an error of accept(2).
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(accept(listener, peers, sender));
    Ok(ReceiverStream::new(receiver).map(Ok))
}

/// Accepts connections until the server is gone.
async fn accept(listener: VsockListener, peers: Peers, sender: mpsc::Sender<HostStream>) {
    loop {
        match listener.accept().await {
            Ok((_, peer)) if !peers.include(peer.cid()) => {}
            Ok((stream, _)) => {
                if sender.send(HostStream(stream)).await.is_err() {
                    return;
                }
            }
            // Not logged, because an error that lasts would repeat the line every 100 ms.
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// A connection from the host. tonic requires the trait [`Connected`], which `VsockStream` lacks.
#[derive(Debug)]
pub(crate) struct HostStream(VsockStream);

impl Connected for HostStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for HostStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio_vsock::VMADDR_CID_LOCAL;

    use super::*;

    #[test]
    fn only_the_host_is_a_peer_of_a_server_for_the_host() {
        assert!(Peers::Host.include(VMADDR_CID_HOST));
        // A process of the guest has the local address, or that of the guest, which libkrun sets
        // to 3.
        for cid in [VMADDR_CID_LOCAL, 3, VMADDR_CID_ANY] {
            assert!(!Peers::Host.include(cid), "{cid}");
            assert!(Peers::Any.include(cid), "{cid}");
        }
    }
}
