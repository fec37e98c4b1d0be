//! Connections to the agent that can be ended from outside of what uses them.
//!
//! An HTTP/2 client whose peer sends without end and never reads cannot say goodbye: it waits for room to
//! write, does not read meanwhile, and keeps the socket. libkrun passes data on with a send that blocks
//! (`UnixProxy::sendmsg`, 1.19.7), so one socket that nobody reads stops all vsock of the guest, PID 1's
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

/// One connection. Its socket is closed with it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    _handle: Arc<StdStream>,
}

/// Ends the last connection that was made with it.
#[derive(Clone, Debug, Default)]
pub(super) struct AbortHandle(Arc<Mutex<Weak<StdStream>>>);

impl AbortHandle {
    /// Connects to `socket`.
    pub(super) async fn connect(self, socket: &Path) -> io::Result<Connection> {
        let stream = UnixStream::connect(socket).await?;
        let handle = Arc::new(StdStream::from(stream.as_fd().try_clone_to_owned()?));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&handle);
        Ok(Connection { stream, _handle: handle })
    }

    /// Ends the connection, if there still is one: both sides see it at once.
    pub(super) fn cut(&self) {
        let handle = self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        // One that the other end has closed cannot be shut down, and need not be.
        let _closed = handle.map(|handle| handle.shutdown(Shutdown::Both));
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
    async fn a_peer_that_is_not_read_is_free_once_the_line_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let abort_handle = AbortHandle::default();
        abort_handle.cut();
        let line = abort_handle.clone().connect(&socket).await.unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let flood = std::thread::spawn(move || while peer.write_all(&[0; 4096]).is_ok() {});
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!flood.is_finished(), "it waits for room");
        abort_handle.cut();
        flood.join().unwrap();
        drop(line);
        abort_handle.cut();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_line_that_is_dropped_is_closed_for_its_peer() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let abort_handle = AbortHandle::default();
        drop(abort_handle.clone().connect(&socket).await.unwrap());
        let (mut peer, _) = listener.accept().unwrap();
        assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
    }
}
