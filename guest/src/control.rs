//! The control connection: sends messages to the shim and receives its orders.

use std::io;
use std::time::Duration;

use a3s_box_proto::control::{GuestMessage, ShimMessage, guest_message, shim_message};
use a3s_box_proto::frame::{FrameBuffer, FrameError, encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

/// Maximum time for the connection. The shim listens before it starts the VM, so this only has to
/// cover a busy host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Maximum time to send a message. Messages are small, and the shim reads all the time, so a longer
/// wait means that the shim hangs.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Size of a read in bytes. A message of the shim has less than 16 bytes.
const CHUNK_BYTES: usize = 256;

/// An error of the control connection. The connection cannot be used afterwards.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The shim did not accept within [`CONNECT_TIMEOUT`].
    #[error("cannot connect to the shim on vsock port {port}")]
    Connect {
        /// Port of the host.
        port: u32,
        /// Error of the last attempt, or `TimedOut` if that did not finish.
        source: io::Error,
    },
    /// The shim has closed its end, or has ended.
    #[error("the shim closed the control stream")]
    Closed,
    /// A read failed.
    #[error("cannot read the control stream")]
    Read(#[source] io::Error),
    /// A write failed, or took longer than [`SEND_TIMEOUT`].
    #[error("cannot write the control stream")]
    Write(#[source] io::Error),
    /// The bytes cannot be decoded as a message.
    #[error("malformed message of the shim")]
    Frame(#[from] FrameError),
    /// The message is empty, or of a kind that this version does not implement.
    #[error("message of the shim of unknown kind, expected stop, kill or acknowledged")]
    Unknown,
}

/// A message of the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Send a signal to the workload.
    Stop {
        /// Number of the signal, not validated.
        signal: u32,
    },
    /// Kill all processes.
    Kill,
    /// The shim has recorded the end.
    Acknowledged,
}

/// The stream to the shim, with bytes that were read but are no complete message.
#[derive(Debug)]
pub(crate) struct Control<S> {
    stream: S,
    frames: FrameBuffer,
}

/// Connects to the shim on the control port of the host. Repeats a failed attempt for
/// [`CONNECT_TIMEOUT`].
pub(crate) async fn connect() -> Result<Control<VsockStream>, ControlError> {
    let port = a3s_box_proto::CONTROL_PORT;
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        let attempt = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port));
        // An attempt that gets no answer must end at the deadline as well.
        let source = match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Ok(stream)) => return Ok(Control::new(stream)),
            // A busy host can refuse a connection, so the attempt is repeated.
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
    /// Takes a stream of which nothing has been read.
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, frames: FrameBuffer::default() }
    }

    /// Sends one message. After an error or a cancellation, a part of it may have been sent.
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

    /// Returns the next order.
    ///
    /// Loses nothing when it is cancelled: the bytes of an incomplete message stay in `self`.
    pub(crate) async fn receive(&mut self) -> Result<Order, ControlError> {
        let mut chunk = [0; CHUNK_BYTES];
        loop {
            // One read can contain several messages, so the buffer is tried before the next read.
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

/// Converts a message of the protocol to an order.
fn order(message: ShimMessage) -> Result<Order, ControlError> {
    // A decoder of protobuf skips unknown fields, so a message of an unknown kind is empty.
    match message.message.ok_or(ControlError::Unknown)? {
        shim_message::Message::Stop(stop) => Ok(Order::Stop { signal: stop.signal }),
        shim_message::Message::Kill(_) => Ok(Order::Kill),
        shim_message::Message::Acknowledged(_) => Ok(Order::Acknowledged),
    }
}
