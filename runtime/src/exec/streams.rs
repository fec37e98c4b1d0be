//! The standard streams of a process on the side of the client.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::error::ExecError;

/// Bytes that wait between the connection and a reader or writer.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// Why the stream of a process ended early. It is set before the streams end.
pub(super) type Loss = Arc<OnceLock<ExecError>>;

/// Standard input of a process. Dropping it, or its shutdown, ends the input; a terminal gets Ctrl-D.
#[derive(Debug)]
pub struct ProcessInput {
    pub(super) pipe: DuplexStream,
}

/// Standard output or standard error of a process. Dropping it discards what follows.
///
/// The end of the stream is the end of the process. If the connection is lost, a read fails with
/// [`ConnectionReset`](io::ErrorKind::ConnectionReset) instead.
#[derive(Debug)]
pub struct ProcessOutput {
    pub(super) pipe: DuplexStream,
    pub(super) loss: Loss,
}

impl AsyncWrite for ProcessInput {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}

impl AsyncRead for ProcessOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(context, buffer))?;
        let is_end = buffer.filled().len() == before && buffer.remaining() > 0;
        match self.loss.get() {
            // What came before the loss is read first.
            Some(error) if is_end => Poll::Ready(Err(error.clone().into_io())),
            _ => Poll::Ready(Ok(())),
        }
    }
}
