//! The stream to the shim: frames out, orders in.

use std::io;
use std::time::Duration;

use a3s_box_proto::control::{GuestMessage, ShimMessage, guest_message, shim_message};
use a3s_box_proto::frame::{FrameBuffer, FrameError, encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

/// How long the shim may take to accept: it listens before it starts the VM, so this only
/// covers a busy host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two attempts.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How long a message may wait for room: messages are small, and the shim always reads.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The shim's messages are under 16 bytes.
const CHUNK_BYTES: usize = 256;

/// Why the shim can no longer be heard or told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// No connection in time.
    #[error("cannot connect to the shim on vsock port {port}")]
    Connect {
        /// Port of the host.
        port: u32,
        /// What the last attempt said, unless it hung.
        source: io::Error,
    },
    /// End of stream: the shim is gone.
    #[error("the shim closed the control stream")]
    Closed,
    /// Reading failed.
    #[error("cannot read the control stream")]
    Read(#[source] io::Error),
    /// Writing failed.
    #[error("cannot write the control stream")]
    Write(#[source] io::Error),
    /// The bytes are not a message.
    #[error("malformed message of the shim")]
    Frame(#[from] FrameError),
    /// A message without content, or of a kind this version does not know.
    #[error("message of the shim of unknown kind, expected stop, kill or acknowledged")]
    Unknown,
}

/// What the shim wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Send this signal to the workload.
    Stop {
        /// As received: not checked.
        signal: u32,
    },
    /// Kill all.
    Kill,
    /// The end was recorded.
    Acknowledged,
}

/// The stream, and what was read of it and is not yet a message.
#[derive(Debug)]
pub(crate) struct Control<S> {
    stream: S,
    frames: FrameBuffer,
}

/// Connects to the shim.
pub(crate) async fn connect() -> Result<Control<VsockStream>, ControlError> {
    let port = a3s_box_proto::CONTROL_PORT;
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        let attempt = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port));
        let source = match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Ok(stream)) => return Ok(Control::new(stream)),
            Ok(Err(error)) if Instant::now() < deadline => {
                crate::kmsg::error(&error);
                sleep(CONNECT_PAUSE).await;
                continue;
            }
            Ok(Err(error)) => error,
            Err(elapsed) => io::Error::new(io::ErrorKind::TimedOut, elapsed),
        };
        return Err(ControlError::Connect { port, source });
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Control<S> {
    /// A stream of which nothing was read yet.
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, frames: FrameBuffer::default() }
    }

    /// Tells the shim.
    pub(crate) async fn send(
        &mut self,
        message: guest_message::Message,
    ) -> Result<(), ControlError> {
        let frame = encode(&GuestMessage { message: Some(message) });
        let write = async {
            self.stream.write_all(&frame).await?;
            self.stream.flush().await
        };
        match timeout(SEND_TIMEOUT, write).await {
            Ok(written) => written.map_err(ControlError::Write),
            Err(elapsed) => {
                Err(ControlError::Write(io::Error::new(io::ErrorKind::TimedOut, elapsed)))
            }
        }
    }

    /// The next order. Loses nothing when it is cancelled.
    pub(crate) async fn receive(&mut self) -> Result<Order, ControlError> {
        let mut chunk = [0; CHUNK_BYTES];
        loop {
            if let Some(message) = self.frames.next_message::<ShimMessage>()? {
                return order(message);
            }
            match self.stream.read(&mut chunk).await.map_err(ControlError::Read)? {
                0 => return Err(ControlError::Closed),
                length => self.frames.push(&chunk[..length]),
            }
        }
    }
}

fn order(message: ShimMessage) -> Result<Order, ControlError> {
    match message.message.ok_or(ControlError::Unknown)? {
        shim_message::Message::Stop(stop) => Ok(Order::Stop { signal: stop.signal }),
        shim_message::Message::Kill(_) => Ok(Order::Kill),
        shim_message::Message::Acknowledged(_) => Ok(Order::Acknowledged),
    }
}
