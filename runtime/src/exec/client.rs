//! [`BoxProcesses`]: the client of the service for the processes of one box.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use a3s_box_core::BoxDir;
use a3s_box_proto::process::processes_client::ProcessesClient;
use a3s_box_proto::process::{
    self as proto, AttachRequest, AttachTo, KeepRequest, ListRequest, ResizeRequest, RunRequest,
    SignalRequest, SignalScope, WaitRequest, attach_request, run_request,
};
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::command::{Command, TerminalSize};
use super::error::ExecError;
use super::process::{Process, ProcessExit, exit};
use crate::connection;

/// Maximum length of an event or answer that is decoded. The longest is a list of 256 processes
/// with 4 KiB of arguments each. The guest is hostile and may send without end.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Number of the signal that kills.
const SIGKILL: u32 = 9;

/// A client of the processes of a box. Clones are independent of each other.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::path::Path;
///
/// use a3s_box_core::BoxDir;
/// use a3s_box_runtime::exec::{BoxProcesses, Command};
///
/// let directory = BoxDir::new(Path::new("/run/a3s-box"), &"demo".parse()?);
/// let processes = BoxProcesses::of(&directory);
/// let output = processes.run(Command::new("uname").arg("-r")).await?.wait_with_output().await?;
/// # let _printed_by_the_caller = output;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BoxProcesses {
    socket: PathBuf,
}

/// A process in the list of a box. All values are from the guest, which may be hostile.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessInfo {
    /// Id of the process.
    pub id: String,
    /// PID in the guest. 0 while the process is being started.
    pub pid: u32,
    /// The first arguments, at most 4096 bytes of them.
    pub args: Vec<String>,
    /// Time since 1970 on the clock of the guest at the start of the process.
    pub started: Duration,
    /// The end, or `None` while the process runs.
    pub exit: Option<ProcessExit>,
    /// The process has a terminal.
    pub has_terminal: bool,
    /// The process outlives the connection that started it.
    pub is_kept: bool,
    /// CPU time of the process with its descendants.
    pub cpu: Option<Duration>,
    /// Memory of the process with its descendants in bytes.
    pub memory_bytes: Option<u64>,
    /// Number of processes and threads: the process and its descendants.
    pub pids: Option<u64>,
}

impl BoxProcesses {
    /// Makes a client of the box with this directory, without connecting.
    #[must_use]
    pub fn of(directory: &BoxDir) -> Self {
        Self { socket: directory.exec_socket() }
    }

    /// Returns the path of the socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts a process, and returns when it has executed its program.
    ///
    /// If the future is dropped, the process is killed, unless the command is to be
    /// [kept](Command::keep).
    ///
    /// # Errors
    ///
    /// [`ExecError`]. It is `Refused` if the guest did not start the process.
    pub async fn run(&self, command: &Command) -> Result<Process, ExecError> {
        let first = RunRequest { message: Some(run_request::Message::Start(command.to_start())) };
        let (sender, requests) = requests(first);
        let mut client = self.connect().await?;
        let events = client.run(requests).await.map_err(ExecError::of_status)?.into_inner();
        Process::connect(self.clone(), events, sender, command.has_stdin()).await
    }

    /// Connects to a process that was started earlier. The output begins with the last MiB that
    /// the process has written before.
    ///
    /// # Errors
    ///
    /// [`ExecError`].
    pub async fn attach(&self, id: &str) -> Result<Process, ExecError> {
        let attach = attach_request::Message::Attach(AttachTo { id: id.to_owned() });
        let (sender, requests) = requests(AttachRequest { message: Some(attach) });
        let mut client = self.connect().await?;
        let events = client.attach(requests).await.map_err(ExecError::of_status)?.into_inner();
        Process::connect(self.clone(), events, sender, true).await
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    ///
    /// [`ExecError`].
    pub async fn wait(&self, id: &str) -> Result<ProcessExit, ExecError> {
        let request = WaitRequest { id: id.to_owned() };
        let ended = self.connect().await?.wait(request).await.map_err(ExecError::of_status)?;
        exit(ended.into_inner())
    }

    /// Returns the processes that run, and those that have ended and were kept.
    ///
    /// # Errors
    ///
    /// [`ExecError`].
    pub async fn list(&self) -> Result<Vec<ProcessInfo>, ExecError> {
        let list = self.connect().await?.list(ListRequest {}).await;
        let processes = list.map_err(ExecError::of_status)?.into_inner().processes;
        processes.into_iter().map(info).collect()
    }

    /// Sends a signal, 1 to 64, to a process.
    ///
    /// # Errors
    ///
    /// [`ExecError`].
    pub async fn signal(&self, id: &str, signal: u32) -> Result<(), ExecError> {
        self.send(id, signal, SignalScope::Process).await
    }

    /// Sends a signal, 1 to 64, to a process and all its descendants.
    ///
    /// # Errors
    ///
    /// [`ExecError`].
    pub async fn signal_all(&self, id: &str, signal: u32) -> Result<(), ExecError> {
        self.send(id, signal, SignalScope::Descendants).await
    }

    /// Kills a process and all its descendants.
    ///
    /// # Errors
    ///
    /// [`ExecError`].
    pub async fn kill(&self, id: &str) -> Result<(), ExecError> {
        self.signal_all(id, SIGKILL).await
    }

    /// Sets the size of the terminal of a process.
    ///
    /// # Errors
    ///
    /// [`ExecError`].
    pub async fn resize(&self, id: &str, size: TerminalSize) -> Result<(), ExecError> {
        let request = ResizeRequest { id: id.to_owned(), size: Some(size.into()) };
        self.connect().await?.resize(request).await.map_err(ExecError::of_status)?;
        Ok(())
    }

    /// Lets a process outlive the connection that started it.
    pub(super) async fn keep(&self, id: &str) -> Result<(), ExecError> {
        let request = KeepRequest { id: id.to_owned() };
        self.connect().await?.keep(request).await.map_err(ExecError::of_status)?;
        Ok(())
    }

    async fn send(&self, id: &str, signal: u32, scope: SignalScope) -> Result<(), ExecError> {
        let request = SignalRequest { id: id.to_owned(), signal, scope: scope.into() };
        self.connect().await?.signal(request).await.map_err(ExecError::of_status)?;
        Ok(())
    }

    /// Opens a connection.
    async fn connect(&self) -> Result<ProcessesClient<Channel>, ExecError> {
        let channel = connection::connect(&self.socket).await.map_err(|source| {
            ExecError::Unreachable { socket: self.socket.clone(), source: Arc::new(source) }
        })?;
        Ok(ProcessesClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }
}

/// Returns a stream of requests that begins with `first`, and its sender.
fn requests<T>(first: T) -> (mpsc::Sender<T>, ReceiverStream<T>) {
    let (sender, receiver) = mpsc::channel(1);
    // The channel has room for it.
    let _sent = sender.try_send(first);
    (sender, ReceiverStream::new(receiver))
}

fn info(process: proto::Process) -> Result<ProcessInfo, ExecError> {
    let is_kept = process.on_disconnect() == proto::OnDisconnect::Keep;
    Ok(ProcessInfo {
        id: process.id,
        pid: process.pid,
        args: process.args,
        started: Duration::from_millis(process.started_unix_ms),
        exit: process.ended.map(exit).transpose()?,
        has_terminal: process.terminal,
        is_kept,
        cpu: process.cpu_us.map(Duration::from_micros),
        memory_bytes: process.memory_bytes,
        pids: process.pids,
    })
}
