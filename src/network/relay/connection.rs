//! One relayed connection: the bytes in both directions, and the time for which it may be silent.

use std::io;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until};

/// Size of the buffer for each direction.
const BUFFER_BYTES: usize = 8 * 1024;

/// How long a connection may be silent until the gate closes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SilenceLimits {
    /// While both sides may send.
    pub(super) open: Duration,
    /// After one side has closed its sending direction.
    pub(super) half_closed: Duration,
}

/// The time at which a connection last received a byte from either side.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Instant>);

impl Activity {
    pub(super) fn start() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    pub(super) fn last(&self) -> Instant {
        // A panic ends the process, so the lock is never poisoned.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until the connection has been silent for this time.
    async fn silence(&self, limit: Duration) {
        loop {
            let end = self.last() + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// Relays until both sides have closed their sending directions, until an error, or until the
/// connection has been silent for too long.
pub(super) async fn relay(
    mut outer: TcpStream,
    mut inner: TcpStream,
    activity: &Activity,
    limits: SilenceLimits,
) -> io::Result<()> {
    let (from_outer, to_outer) = outer.split();
    let (from_inner, to_inner) = inner.split();
    let mut inward = pin!(copy(from_outer, to_inner, activity));
    let mut outward = pin!(copy(from_inner, to_outer, activity));
    let other_direction = tokio::select! {
        end = &mut inward => {
            end?;
            outward
        }
        end = &mut outward => {
            end?;
            inward
        }
        () = activity.silence(limits.open) => return Ok(()),
    };
    tokio::select! {
        end = other_direction => end,
        () = activity.silence(limits.half_closed) => Ok(()),
    }
}

/// Copies one direction to its end, and passes the end on.
async fn copy(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        activity.note();
        match buffer.get(..count) {
            Some(bytes @ [_, ..]) => to.write_all(bytes).await?,
            _ => return to.shutdown().await,
        }
    }
}
