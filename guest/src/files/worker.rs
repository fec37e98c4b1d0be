//! PID 1's end of a call: starts the child, passes messages on, and ends the child.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use a3s_box_proto::files::{Failed, FailureKind};
use prost::Message;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::channel::{CHUNK_BYTES, Channel, HEADER_BYTES, Kind, header, parse_header};
use super::failure::{FileError, Outcome, io_failed};
use super::operation::{self, Call};
use crate::syscall;

/// Maximum number of calls at a time. Each takes a process, and some hundred KiB.
const MAX_CALLS: usize = 32;

/// Time in which a child must do something: send a message or a sign of life, or take a message.
/// Slow file systems answer within seconds; one that takes longer is taken to hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time that a child gets after its call was given up, to remove its temporary file. Then it is
/// killed.
const GRACE: Duration = Duration::from_secs(1);

/// The messages of an answer.
pub(super) type Answers<M> = ReceiverStream<Result<M, Status>>;

/// Starts the children of calls, and limits their number.
#[derive(Debug)]
pub(super) struct Workers {
    permits: Arc<Semaphore>,
}

impl Workers {
    pub(super) fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_CALLS)) }
    }

    /// Makes a call that has one answer.
    pub(super) async fn answer<M: Message + Default>(
        &self,
        call: Call,
    ) -> Result<Response<M>, Status> {
        let mut worker = self.start(call).map_err(FileError::into_status)?;
        worker.only_answer().await.map(Response::new).map_err(FileError::into_status)
    }

    /// Makes a call that has a stream of answers.
    pub(super) fn stream<M: Message + Default + 'static>(
        &self,
        call: Call,
    ) -> Result<Response<Answers<M>>, Status> {
        let mut worker = self.start(call).map_err(FileError::into_status)?;
        // One message waits here. The others stay in the socket, which stops the child.
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    // The client has dropped its stream. The worker is dropped with this task.
                    () = sender.closed() => return,
                    next = worker.receive() => next,
                };
                let (message, is_last) = match next {
                    Ok(Some(message)) => (Ok(message), false),
                    Ok(None) => return,
                    Err(error) => (Err(error.into_status()), true),
                };
                if sender.send(message).await.is_err() || is_last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    /// Makes a call that has a stream of requests and one answer.
    pub(super) async fn upload<I: Message + Default + 'static, O: Message + Default>(
        &self,
        call: Call,
        mut requests: Streaming<I>,
    ) -> Result<Response<O>, Status> {
        let mut worker = self.start(call).map_err(FileError::into_status)?;
        loop {
            let request = tokio::select! {
                // The child answers early if it fails, or if the client sends more than it said.
                answer = worker.early_answer() => {
                    return answer.map(Response::new).map_err(FileError::into_status);
                }
                // An error is a stream that was reset. The worker is dropped, and with it the call.
                request = requests.message() => request?,
            };
            let Some(request) = request else { break };
            match worker.send(&request).await {
                Ok(()) => {}
                // The child has ended. Its last frame says why.
                Err(error) if error.0.kind() == FailureKind::Killed => break,
                Err(error) => return Err(error.into_status()),
            }
        }
        worker.end_of_requests().await;
        worker.only_answer().await.map(Response::new).map_err(FileError::into_status)
    }

    fn start(&self, call: Call) -> Outcome<Worker> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_no_permits| {
            let message = format!("{MAX_CALLS} calls run already: try again later");
            FileError::new(FailureKind::TooManyCalls, b"", &message)
        })?;
        Worker::start(call, permit).map_err(|error| io_failed("start a process for", b"", &error))
    }
}

/// The child of a call. Dropping it ends the call and the child.
#[derive(Debug)]
struct Worker {
    socket: UnixStream,
    /// Bytes that were received and not used: at most one frame and the start of the next.
    buffer: Vec<u8>,
    /// Tells the keeper, by its drop, that the call has ended.
    _call: oneshot::Sender<()>,
}

impl Worker {
    fn start(call: Call, permit: OwnedSemaphorePermit) -> io::Result<Self> {
        let (ours, child) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let socket = UnixStream::from_std(ours)?;
        let pid = syscall::fork_worker(child.as_fd(), move |socket| {
            operation::run(call, &mut Channel::new(socket));
        })?;
        // The child cannot be reaped before this function returns, so the PID is still its own.
        let pidfd = Pid::from_raw(pid)
            .ok_or_else(|| io::Error::other("fork(2) returned no PID"))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?))
            .and_then(syscall::await_readable)?;
        let (sender, call_ended) = oneshot::channel();
        tokio::spawn(keep(pidfd, call_ended, permit));
        Ok(Self { socket, buffer: Vec::new(), _call: sender })
    }

    /// Receives the only message of an answer, and the end of the call. Loses nothing when it is
    /// cancelled before the message has come.
    async fn only_answer<M: Message + Default>(&mut self) -> Outcome<M> {
        self.receive().await?.ok_or_else(killed)
    }

    /// Receives the only message of an answer while the child waits for the client, which may take
    /// any time.
    async fn early_answer<M: Message + Default>(&mut self) -> Outcome<M> {
        self.receive_within(Duration::MAX).await?.ok_or_else(killed)
    }

    /// Receives the next message, or `None` at the end of the call. Loses nothing when it is
    /// cancelled.
    async fn receive<M: Message + Default>(&mut self) -> Outcome<Option<M>> {
        self.receive_within(PATIENCE).await
    }

    async fn receive_within<M: Message + Default>(
        &mut self,
        limit: Duration,
    ) -> Outcome<Option<M>> {
        loop {
            let Some((kind, message)) = self.frame(limit).await? else { return Err(killed()) };
            return match kind {
                Kind::Beat => continue,
                Kind::Done => Ok(None),
                Kind::Message => M::decode(message.as_slice()).map(Some).map_err(|_error| killed()),
                Kind::Failed => {
                    Err(Failed::decode(message.as_slice())
                        .map_or_else(|_error| killed(), FileError))
                }
            };
        }
    }

    /// Receives a frame, or `None` if the socket was closed before. The limit is one on the silence
    /// of the child.
    async fn frame(&mut self, limit: Duration) -> Outcome<Option<(Kind, Vec<u8>)>> {
        loop {
            if let Some((head, rest)) = self.buffer.split_first_chunk::<HEADER_BYTES>() {
                // The child can belong to another user, but its memory is out of that user's reach.
                let (kind, length) = parse_header(*head).ok_or_else(killed)?;
                if let Some(message) = rest.get(..length) {
                    let message = message.to_vec();
                    self.buffer.drain(..HEADER_BYTES + length);
                    return Ok(Some((kind, message)));
                }
            }
            self.buffer.reserve(CHUNK_BYTES);
            match timeout(limit, self.socket.read_buf(&mut self.buffer)).await {
                Ok(Ok(0) | Err(_)) => return Ok(None),
                Ok(Ok(_)) => {}
                Err(_elapsed) => return Err(timed_out()),
            }
        }
    }

    /// Sends a message to the child.
    async fn send(&mut self, message: &impl Message) -> Outcome<()> {
        let message = message.encode_to_vec();
        let frame = [&header(Kind::Message, message.len()), message.as_slice()].concat();
        match timeout(PATIENCE, self.socket.write_all(&frame)).await {
            Ok(sent) => sent.map_err(|_error| killed()),
            Err(_elapsed) => Err(timed_out()),
        }
    }

    /// Lets the child read an end of file after the last request.
    async fn end_of_requests(&mut self) {
        // It fails if the child has closed the socket, and then does not read.
        drop(self.socket.shutdown().await);
    }
}

/// Waits for the end of the child, and kills it some time after its call has ended. The permit is
/// held until the process is gone: a child that waits for a file system may not end even by
/// SIGKILL.
async fn keep(
    pidfd: AsyncFd<OwnedFd>,
    call_ended: oneshot::Receiver<()>,
    permit: OwnedSemaphorePermit,
) {
    let is_over = tokio::select! {
        // A pidfd is readable once the process has ended (pidfd_open(2)).
        _ended = pidfd.readable() => true,
        _dropped = call_ended => timeout(GRACE, pidfd.readable()).await.is_ok(),
    };
    if !is_over {
        // It fails only if the process has just ended.
        let _ended = pidfd_send_signal(pidfd.get_ref(), Signal::KILL);
        drop(pidfd.readable().await);
    }
    drop(permit);
}

fn killed() -> FileError {
    FileError::new(
        FailureKind::Killed,
        b"",
        "the process of the call has ended without an answer: it was killed, or had no memory",
    )
}

fn timed_out() -> FileError {
    let message = format!("the file system did not answer for {} s", PATIENCE.as_secs());
    FileError::new(FailureKind::TimedOut, b"", &message)
}
