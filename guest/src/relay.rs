//! Copies what the workload writes to a port of the virtio console.
//!
//! With read and write, never splice: from a pipe to a port it sees a false end of file. A
//! port whose host does not drain it stops the relay, then the workload, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::kmsg;

/// What is held of each stream. The kernel's port driver copies at most this much a write.
const BUFFER_BYTES: usize = 32 * 1024;

/// A stream that is being copied.
#[derive(Debug)]
pub(crate) struct Relay {
    task: JoinHandle<()>,
    written: Arc<AtomicU64>,
}

impl Relay {
    /// Starts to copy, until the end of `from`.
    pub(crate) fn spawn<R, W>(from: R, to: W) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let written = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(copy(from, to, Arc::clone(&written)));
        Self { task, written }
    }

    /// Waits until the source has ended and all of it is written.
    pub(crate) async fn finished(&mut self) {
        if !self.task.is_finished() {
            // A task that panicked has ended too.
            drop((&mut self.task).await);
        }
    }

    /// Bytes that the port took since the start.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

async fn copy<R, W>(mut from: R, mut to: W, written: Arc<AtomicU64>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut open = true;
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let mut rest = &buffer[..length];
        // A port that broke is a reason to lose output, not to block the workload.
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
    async fn all_bytes_arrive_in_order_and_are_counted() {
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
    async fn a_port_that_is_not_drained_holds_a_bounded_amount() {
        let (mut source, from) = duplex(64);
        let (to, sink) = duplex(1000);
        let relay = Relay::spawn(from, to);
        let endless = async {
            let mut taken = 0;
            while let Ok(Ok(())) =
                timeout(Duration::from_millis(200), source.write_all(&[1; 64])).await
            {
                taken += 64;
            }
            taken
        };
        let taken: usize = endless.await;
        assert!(taken <= BUFFER_BYTES + 2000, "{taken} bytes were taken");
        assert_eq!(relay.written(), 1000);
        drop(sink);
    }
}
