//! [`Process`]: a process of a box that this client is connected to.

use a3s_box_proto::process::{
    AttachRequest, CloseStdin, Ended, Event, RunRequest, attach_request, ended, event, run_request,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::Streaming;

use super::client::BoxProcesses;
use super::command::TerminalSize;
use super::error::ExecError;
use super::streams::{BUFFER_BYTES, Loss, ProcessInput, ProcessOutput};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    /// It exited with this status.
    Code(u8),
    /// The signal with this number ended it.
    Signal(u8),
}

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessExit {
    /// How the process ended.
    pub end: ProcessEnd,
    /// Number of bytes that it wrote to standard output, or to its terminal.
    pub stdout_bytes: u64,
    /// Number of bytes that it wrote to standard error.
    pub stderr_bytes: u64,
    /// The guest killed it at its deadline.
    pub deadline_exceeded: bool,
}

/// The end of a process with all of its output.
#[derive(Clone, Debug)]
pub struct Output {
    /// The end of the process.
    pub exit: ProcessExit,
    /// All bytes of standard output.
    pub stdout: Vec<u8>,
    /// All bytes of standard error.
    pub stderr: Vec<u8>,
}

/// A process of a box. It may have ended already.
///
/// Dropping the value kills the process with all its descendants, unless it was started by
/// [`Command::keep`](super::Command::keep), or this value is from
/// [`attach`](super::BoxProcesses::attach).
#[derive(Debug)]
pub struct Process {
    /// Standard input. `None` if the process has none, or if it was taken.
    pub stdin: Option<ProcessInput>,
    /// Standard output, or the output of the terminal. `None` if it was taken.
    pub stdout: Option<ProcessOutput>,
    /// Standard error. It is empty for a process with a terminal. `None` if it was taken.
    pub stderr: Option<ProcessOutput>,
    id: String,
    pid: u32,
    skipped_bytes: u64,
    is_attached: bool,
    client: BoxProcesses,
    end: watch::Receiver<Option<Result<ProcessExit, ExecError>>>,
    /// Receives the events. The stream is reset when it is dropped.
    receiver: JoinHandle<()>,
}

/// A message with input, on the stream of `Run` or `Attach`.
pub(super) trait Input: Send + 'static {
    fn stdin(bytes: Vec<u8>) -> Self;
    fn close() -> Self;
}

impl Input for RunRequest {
    fn stdin(bytes: Vec<u8>) -> Self {
        Self { message: Some(run_request::Message::Stdin(bytes)) }
    }

    fn close() -> Self {
        Self { message: Some(run_request::Message::CloseStdin(CloseStdin {})) }
    }
}

impl Input for AttachRequest {
    fn stdin(bytes: Vec<u8>) -> Self {
        Self { message: Some(attach_request::Message::Stdin(bytes)) }
    }

    fn close() -> Self {
        Self { message: Some(attach_request::Message::CloseStdin(CloseStdin {})) }
    }
}

impl Process {
    /// Waits for the first event of a stream, and makes the process that it is about.
    pub(super) async fn connect<I: Input>(
        client: BoxProcesses,
        mut events: Streaming<Event>,
        requests: mpsc::Sender<I>,
        has_stdin: bool,
    ) -> Result<Self, ExecError> {
        let first = events.message().await.map_err(ExecError::of_status)?;
        let started = match first.and_then(|event| event.event) {
            Some(event::Event::Started(started)) => started,
            Some(event::Event::Failed(failed)) => return Err(ExecError::refused(failed)),
            Some(_) => {
                let found = "an event before the start of the process";
                return Err(ExecError::Protocol { found, expected: "`started` or `failed`" });
            }
            None => return Err(ExecError::Lost { source: None }),
        };
        let loss = Loss::default();
        let (stdout, stdout_writer) = duplex(BUFFER_BYTES);
        let (stderr, stderr_writer) = duplex(BUFFER_BYTES);
        let stdin = has_stdin.then(|| duplex(BUFFER_BYTES));
        let (stdin, stdin_reader) = stdin.unzip();
        let (sender, end) = watch::channel(None);
        let sinks = Sinks { stdout: Some(stdout_writer), stderr: Some(stderr_writer) };
        let own_loss = Loss::clone(&loss);
        let receiver = tokio::spawn(async move {
            let result = tokio::select! {
                result = receive(events, sinks) => result,
                result = send(stdin_reader, requests) => result,
            };
            result.end(&own_loss, &sender);
        });
        let output = |pipe| Some(ProcessOutput { pipe, loss: Loss::clone(&loss) });
        Ok(Self {
            stdin: stdin.map(|pipe| ProcessInput { pipe }),
            stdout: output(stdout),
            stderr: output(stderr),
            id: started.id,
            pid: started.pid,
            skipped_bytes: started.skipped_bytes,
            is_attached: started.attached,
            client,
            end,
            receiver,
        })
    }

    /// Returns the id of the process, which is unique in its box.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the PID of the process in its guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns whether the process was started earlier, by another call.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.is_attached
    }

    /// Returns the number of bytes of output that the guest had forgotten before this connection.
    #[must_use]
    pub fn skipped_bytes(&self) -> u64 {
        self.skipped_bytes
    }

    /// Waits for the end of the process, which is after all of its output. May be called again.
    ///
    /// Ends standard input, and discards the output that was not taken from the fields, so that
    /// neither can keep the process from its end. If the future is dropped, nothing is lost.
    ///
    /// # Errors
    ///
    /// [`ExecError::Lost`] or [`ExecError::Protocol`] if the end is not known.
    pub async fn wait(&mut self) -> Result<ProcessExit, ExecError> {
        drop((self.stdin.take(), self.stdout.take(), self.stderr.take()));
        self.ended().await
    }

    /// Waits for the end of the process, and returns it with the output that was not taken.
    ///
    /// The memory for the output has no limit here. Read the streams, or set
    /// [`Command::deadline`](super::Command::deadline), for a command that may write without end.
    ///
    /// # Errors
    ///
    /// [`ExecError::Lost`] or [`ExecError::Protocol`] if the connection ends before the process.
    pub async fn wait_with_output(mut self) -> Result<Output, ExecError> {
        async fn all(stream: Option<ProcessOutput>) -> Vec<u8> {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // `ended` returns the error, which is the same for both streams.
                let _incomplete = stream.read_to_end(&mut bytes).await;
            }
            bytes
        }
        drop(self.stdin.take());
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let (stdout, stderr) = tokio::join!(all(stdout), all(stderr));
        Ok(Output { exit: self.ended().await?, stdout, stderr })
    }

    async fn ended(&mut self) -> Result<ProcessExit, ExecError> {
        let result = self.end.wait_for(Option::is_some).await;
        // The sender is dropped without a value only if the runtime ends.
        result.ok().and_then(|end| (*end).clone()).unwrap_or(Err(ExecError::Lost { source: None }))
    }

    /// Kills the process and all its descendants. Its end follows, see [`wait`](Self::wait).
    ///
    /// # Errors
    ///
    /// [`ExecError`]. A process that has ended already is no error.
    pub async fn kill(&self) -> Result<(), ExecError> {
        let killed = self.client.kill(&self.id).await;
        match killed {
            Err(ExecError::Refused { refusal, .. }) if refusal.is_over() => Ok(()),
            killed => killed,
        }
    }

    /// Sends a signal, 1 to 64, to the process.
    ///
    /// # Errors
    ///
    /// [`ExecError`].
    pub async fn signal(&self, signal: u32) -> Result<(), ExecError> {
        self.client.signal(&self.id, signal).await
    }

    /// Sets the size of the terminal.
    ///
    /// # Errors
    ///
    /// [`ExecError`]. It is `Refused` if the process has no terminal.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), ExecError> {
        self.client.resize(&self.id, size).await
    }

    /// Leaves the process to itself, and returns its id for
    /// [`attach`](super::BoxProcesses::attach).
    ///
    /// # Errors
    ///
    /// [`ExecError`]. The process is killed then, as by dropping this value.
    pub async fn detach(self) -> Result<String, ExecError> {
        self.client.keep(&self.id).await?;
        Ok(self.id.clone())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Dropping the stream of events resets it, which kills the process unless it is kept.
        self.receiver.abort();
    }
}

/// The ends of the output that are written to. `None`: the reader is gone.
struct Sinks {
    stdout: Option<DuplexStream>,
    stderr: Option<DuplexStream>,
}

/// The result of a stream, and the output pipes, which close after it is recorded.
struct Received {
    result: Result<ProcessExit, ExecError>,
    sinks: Option<Sinks>,
}

impl Received {
    /// Records the end, and then closes the pipes.
    fn end(self, loss: &Loss, sender: &watch::Sender<Option<Result<ProcessExit, ExecError>>>) {
        if let Err(error) = &self.result {
            // Nobody else sets it.
            let _first = loss.set(error.clone());
        }
        sender.send_replace(Some(self.result));
        drop(self.sinks);
    }
}

/// Receives the events until the end of the process.
async fn receive(mut events: Streaming<Event>, mut sinks: Sinks) -> Received {
    let result = loop {
        let event = match events.message().await {
            Ok(Some(event)) => event.event,
            Ok(None) => break Err(ExecError::Lost { source: None }),
            Err(status) => break Err(ExecError::of_status(status)),
        };
        match event {
            Some(event::Event::Stdout(bytes)) => pass_on(&mut sinks.stdout, &bytes).await,
            Some(event::Event::Stderr(bytes)) => pass_on(&mut sinks.stderr, &bytes).await,
            Some(event::Event::Ended(ended)) => break exit(ended),
            Some(event::Event::Failed(failed)) => break Err(ExecError::refused(failed)),
            Some(event::Event::Started(_)) => {
                let found = "a second start of the process";
                break Err(ExecError::Protocol { found, expected: "its output or its end" });
            }
            // An event of a later version.
            None => {}
        }
    };
    Received { result, sinks: Some(sinks) }
}

/// Writes output, and waits while nobody reads it.
async fn pass_on(sink: &mut Option<DuplexStream>, bytes: &[u8]) {
    if let Some(pipe) = sink
        && pipe.write_all(bytes).await.is_err()
    {
        // The reader was dropped.
        *sink = None;
    }
}

/// Sends the input. Does not return before the stream of events does.
async fn send<I: Input>(stdin: Option<DuplexStream>, requests: mpsc::Sender<I>) -> Received {
    if let Some(mut stdin) = stdin {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let length = stdin.read(&mut buffer).await.unwrap_or(0);
            let message = match length {
                0 => I::close(),
                length => I::stdin(buffer[..length].to_vec()),
            };
            // An error means that the stream has ended, which `receive` reports.
            if requests.send(message).await.is_err() || length == 0 {
                break;
            }
        }
    }
    // The stream of requests stays open until the process has ended.
    std::future::pending::<()>().await;
    drop(requests);
    Received { result: Err(ExecError::Lost { source: None }), sinks: None }
}

/// Converts the end of a process.
pub(super) fn exit(ended: Ended) -> Result<ProcessExit, ExecError> {
    let number = |number: u32| u8::try_from(number).ok();
    let end = match ended.status {
        Some(ended::Status::ExitCode(code)) => number(code).map(ProcessEnd::Code),
        Some(ended::Status::Signal(signal)) => number(signal).map(ProcessEnd::Signal),
        None => None,
    };
    let end = end.ok_or(ExecError::Protocol {
        found: "an end without a valid status",
        expected: "an exit status or a signal of one byte",
    })?;
    Ok(ProcessExit {
        end,
        stdout_bytes: ended.stdout_bytes,
        stderr_bytes: ended.stderr_bytes,
        deadline_exceeded: ended.deadline_exceeded,
    })
}
