//! Connections to the agent that can be cut while an HTTP/2 client uses them.
//!
//! An HTTP/2 client cannot close a connection whose peer sends without end and never reads: it
//! waits for room to write its GOAWAY frame, reads nothing meanwhile, and keeps the socket open.
//! libkrun passes data on with a send that blocks (`UnixProxy::sendmsg`, 1.19.7). One socket that
//! is not read therefore stops the whole vsock device of the guest, the control connection of PID 1
//! included.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// One connection. Dropping it closes its socket.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// The only strong reference to a duplicate of the socket's fd. The abort handle holds a weak
    /// one, so that it cannot keep the socket open.
    _duplicate: Arc<StdStream>,
}

/// Cuts the last connection that was made with it.
#[derive(Clone, Debug, Default)]
pub(super) struct AbortHandle(Arc<Mutex<Weak<StdStream>>>);

impl AbortHandle {
    /// Connects to `socket`, and makes the new connection the one that [`Self::cut`] cuts.
    pub(super) async fn connect(self, socket: &Path) -> io::Result<Connection> {
        let stream = UnixStream::connect(socket).await?;
        let duplicate = Arc::new(StdStream::from(stream.as_fd().try_clone_to_owned()?));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&duplicate);
        Ok(Connection { stream, _duplicate: duplicate })
    }

    /// Shuts the connection down, if it is still open. Reads and writes of both sides fail at once.
    pub(super) fn cut(&self) {
        let duplicate = self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        // shutdown(2) fails with ENOTCONN if the peer has closed its end, which needs no action.
        let _closed = duplicate.map(|duplicate| duplicate.shutdown(Shutdown::Both));
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn cut_unblocks_a_peer_whose_data_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let abort_handle = AbortHandle::default();
        abort_handle.cut();
        let connection = abort_handle.clone().connect(&socket).await.unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let flood = std::thread::spawn(move || while peer.write_all(&[0; 4096]).is_ok() {});
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!flood.is_finished(), "the peer still writes, though its data is not read");
        abort_handle.cut();
        flood.join().unwrap();
        drop(connection);
        abort_handle.cut();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn dropped_connection_is_closed_for_its_peer() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let abort_handle = AbortHandle::default();
        drop(abort_handle.clone().connect(&socket).await.unwrap());
        let (mut peer, _) = listener.accept().unwrap();
        assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
    }
}
