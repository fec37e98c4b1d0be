//! Copies the workload's output from its pipes to the virtio console ports.
//!
//! The copy uses `read(2)` and `write(2)`. `splice(2)` from a pipe to a virtio console port reports
//! a false end of file.
//!
//! If the host does not read a port, the relay stops, then the pipe fills up and the workload
//! blocks. The rest of the guest program goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::kmsg;

/// Size of the buffer for each stream in bytes. The kernel's driver for console ports accepts at
/// most this much per write.
const BUFFER_BYTES: usize = 32 * 1024;

/// A task that copies one stream.
#[derive(Debug)]
pub(crate) struct Relay {
    task: JoinHandle<()>,
    written: Arc<AtomicU64>,
}

impl Relay {
    /// Starts a task that copies `from` to `to` until `from` ends.
    pub(crate) fn spawn<R, W>(from: R, to: W) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let written = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(copy(from, to, Arc::clone(&written)));
        Self { task, written }
    }

    /// Waits until the source has ended and all of it is written. Can be called again afterwards.
    pub(crate) async fn finished(&mut self) {
        // Polling the handle of a finished task again would panic.
        if !self.task.is_finished() {
            // The result is an error if the task panicked. It has ended then, too.
            drop((&mut self.task).await);
        }
    }

    /// Returns the number of bytes that the port has accepted so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// Copies until the source ends. Counts in `written` the bytes that `to` has accepted.
async fn copy<R, W>(mut from: R, mut to: W, written: Arc<AtomicU64>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut open = true;
    loop {
        // A pipe whose read fails delivers nothing more, so an error counts as its end.
        let length = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let mut rest = &buffer[..length];
        // After an error of the port, the output is read and dropped. Otherwise the pipe would fill
        // up and the workload would block.
        while open && !rest.is_empty() {
            match to.write(rest).await {
                Ok(0) => open = false,
                Ok(length) => {
                    rest = &rest[length..];
                    written.fetch_add(length as u64, Ordering::Relaxed);
                }
                Err(error) => {
                    kmsg::line(&format!("output is lost: cannot write to a port: {error}"));
                    open = false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::duplex;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn copies_all_bytes_in_order_and_counts_them() {
        let bytes: Vec<u8> = (0..1_000_003_u32).map(|index| (index % 251) as u8).collect();
        let (mut source, from) = duplex(700);
        let (to, mut sink) = duplex(900);
        let mut relay = Relay::spawn(from, to);
        let sent = bytes.clone();
        let writer = tokio::spawn(async move {
            source.write_all(&sent).await.unwrap();
        });
        let mut received = Vec::new();
        timeout(Duration::from_secs(20), sink.read_to_end(&mut received)).await.unwrap().unwrap();
        writer.await.unwrap();
        relay.finished().await;
        relay.finished().await;
        assert!(received == bytes, "{} bytes arrived", received.len());
        assert_eq!(relay.written(), bytes.len() as u64);
    }

    #[tokio::test]
    async fn a_broken_port_does_not_block_the_source() {
        let (mut source, from) = duplex(64);
        let (to, sink) = duplex(64);
        drop(sink);
        let mut relay = Relay::spawn(from, to);
        timeout(Duration::from_secs(5), source.write_all(&[7; 100_000])).await.unwrap().unwrap();
        drop(source);
        timeout(Duration::from_secs(5), relay.finished()).await.unwrap();
        assert_eq!(relay.written(), 0);
    }

    #[tokio::test]
    async fn buffers_a_bounded_amount_if_the_port_is_not_read() {
        let (mut source, from) = duplex(64);
        let (to, sink) = duplex(1000);
        let relay = Relay::spawn(from, to);
        let write_until_blocked = async {
            let mut taken = 0;
            while let Ok(Ok(())) =
                timeout(Duration::from_millis(200), source.write_all(&[1; 64])).await
            {
                taken += 64;
            }
            taken
        };
        let taken: usize = write_until_blocked.await;
        assert!(taken <= BUFFER_BYTES + 2000, "the relay accepted {taken} bytes");
        assert_eq!(relay.written(), 1000);
        drop(sink);
    }
}
