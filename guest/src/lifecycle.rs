//! The sequence of a box: from the message `Hello` to the message `Acknowledged`.
//!
//! ```text
//! prepare ──► launch ──► supervise ──► kill the rest, drain ──► Acknowledged
//!    │           │           │                  │                    │
//!    └─ StartFailed ─────────┼──────────────────┼────────────────────┤
//!                            └─ control lost ───┴────────────────────┴──► reboot
//! ```
//!
//! The code is generic over the control connection and over the [`Machine`]. Tests can therefore
//! run the whole sequence with real processes and without a VM.
//!
//! # Invariants
//!
//! - The guest program reports the end of the workload before it does anything that can take time.
//! - The last notification of the workload precedes the report of its end.
//! - A box does not outlive its shim: any error of the control connection ends the box.

use std::future::pending;
use std::io;
use std::time::Duration;

use a3s_box_proto::PROTOCOL_VERSION;
use a3s_box_proto::control::guest_message::Message;
use a3s_box_proto::control::{
    Drained, Exited, Hello, Notified, StartFailed, StartFailure, Started, exited,
};
use nix::errno::Errno;
use nix::libc::pid_t;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::agent::AgentError;
use crate::children::{Children, Exits};
use crate::config::ConfigError;
use crate::control::{Control, ControlError, Order};
use crate::kmsg;
use crate::launch::{LaunchError, launch};
use crate::listener::ListenError;
use crate::mounts::MountError;
use crate::network::NetworkError;
use crate::notify::{BindError, Notices};
use crate::plan::PlanError;
use crate::ports::PortError;
use crate::processes::CgroupError;
use crate::relay::Relay;
use crate::root::RootError;
use crate::syscall::{self, Command, Status};

/// Time for the rest of the output after the workload has ended. At most 96 KiB of each stream are
/// left: a full pipe of 64 KiB (`pipe(7)`) and the relay's buffer of 32 KiB. This takes seconds
/// only if the host does not read its end of the console port.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for the shim to answer the last message with `Acknowledged`.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum length of the text in `StartFailed`, in bytes, as the control protocol defines it. A
/// frame has room for four times as much.
const MESSAGE_BYTES: usize = 4096;

/// Highest signal number of Linux (`_NSIG`).
const LAST_SIGNAL: u32 = 64;

/// An error that ends the box before its sequence is complete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LifecycleError {
    /// The tokio runtime or its handler of SIGCHLD could not be created.
    #[error("cannot make the event loop")]
    Runtime(#[source] io::Error),
    /// The control connection is broken, or the shim sent a malformed message.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// The reason why the workload was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("cannot set host name `{name}`")]
    Hostname { name: String, source: Errno },
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Notify(#[from] BindError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl StartError {
    /// Returns the kind of failure for `StartFailed`. The shim derives the exit status of the box
    /// from it.
    fn reason(&self) -> StartFailure {
        match self {
            Self::Plan(PlanError::Program(error)) => error.reason(),
            Self::Launch(error) => error.reason(),
            _ => StartFailure::Setup,
        }
    }
}

/// The operations that differ between a real guest and a test.
pub(crate) trait Machine {
    /// Destination of the workload's output.
    type Port: AsyncWrite + Unpin + Send + 'static;

    /// Sets up the guest and returns the workload, or `None` if the box has none. The servers that
    /// it starts wait for their children by `exits`.
    async fn prepare(&mut self, exits: Exits) -> Result<Option<Job<Self::Port>>, StartError>;

    /// Kills all processes except this one.
    fn kill_everything(&self);
}

/// A workload that is ready to start.
#[derive(Debug)]
pub(crate) struct Job<P> {
    /// The command to execute.
    pub(crate) command: Command,
    /// Destination of its standard output.
    pub(crate) stdout: P,
    /// Destination of its standard error.
    pub(crate) stderr: P,
    /// Its notify socket.
    pub(crate) notices: Notices,
}

/// A workload that has started.
#[derive(Debug)]
struct Running {
    pid: pid_t,
    stdout: Relay,
    stderr: Relay,
    notices: Notices,
}

/// An event that [`supervise`] waits for.
#[derive(Debug)]
enum Event {
    /// The workload has ended.
    Ended(Status),
    /// The shim has sent an order.
    Ordered(Order),
    /// The workload has sent a notification that the shim has not received.
    Notified(Notified),
}

/// Runs the box until it ends and returns the exit code for libkrun.
pub(crate) async fn run<S, M>(
    control: &mut Control<S>,
    machine: &mut M,
) -> Result<u8, LifecycleError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    M: Machine,
{
    // The default action of SIGCHLD is to ignore it (signal(7)), so the handler is installed before
    // the first child exists.
    let mut children = Children::watch().map_err(LifecycleError::Runtime)?;
    let guest_version = env!("CARGO_PKG_VERSION").to_owned();
    control
        .send(Message::Hello(Hello { protocol_version: PROTOCOL_VERSION, guest_version }))
        .await?;
    let mut running = match start(machine, children.exits()).await {
        Ok(running) => running,
        Err(error) => return report_start_failure(control, &error).await,
    };
    // PID 0 stands for a box without a workload. The shim's first health check follows this message
    // (docs/decisions/0004-ready-means-that-the-workload-runs.md).
    let pid = running.as_ref().map(|running| running.pid);
    let number = pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
    control.send(Message::Started(Started { pid: number })).await?;
    let status = supervise(control, &mut children, machine, running.as_mut()).await?;
    control.send(Message::Exited(exited(status))).await?;
    // Processes that the workload has left keep its pipes open. The output ends only when they are
    // dead, so they are killed before the drain.
    machine.kill_everything();
    let drained = drain(control, &mut children, running).await?;
    control.send(Message::Drained(drained)).await?;
    await_acknowledgement(control).await?;
    Ok(exit_code(status))
}

/// Sets up the guest and starts the workload, if there is one.
async fn start<M: Machine>(machine: &mut M, exits: Exits) -> Result<Option<Running>, StartError> {
    let Some(job) = machine.prepare(exits).await? else { return Ok(None) };
    let launched = launch(&job.command).await?;
    Ok(Some(Running {
        pid: launched.pid,
        stdout: Relay::spawn(launched.stdout, job.stdout),
        stderr: Relay::spawn(launched.stderr, job.stderr),
        notices: job.notices,
    }))
}

/// Sends `StartFailed` and returns the exit code for libkrun.
async fn report_start_failure<S>(
    control: &mut Control<S>,
    error: &StartError,
) -> Result<u8, LifecycleError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let reason = error.reason();
    let mut message = kmsg::chain(error);
    // The text can contain strings of the config, which may be long.
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
    control.send(Message::StartFailed(StartFailed { reason: reason.into(), message })).await?;
    await_acknowledgement(control).await?;
    // The same numbers as a shell's: 127 for a missing command, 126 for one that cannot be
    // executed.
    Ok(match reason {
        StartFailure::NotFound => 127,
        StartFailure::NotExecutable => 126,
        StartFailure::Setup | StartFailure::Unspecified => crate::power::EXIT_CODE_FAILURE,
    })
}

/// Executes the shim's orders and forwards the workload's notifications. Returns when the workload
/// has ended. Without a workload, returns on the first order to stop or kill.
async fn supervise<S, M>(
    control: &mut Control<S>,
    children: &mut Children,
    machine: &M,
    mut running: Option<&mut Running>,
) -> Result<Status, LifecycleError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    M: Machine,
{
    let workload = running.as_ref().map(|running| running.pid);
    loop {
        // `select!` drops the two futures that did not finish. None of the three loses data then.
        let ended = async {
            match workload {
                Some(pid) => children.wait_for(pid).await,
                // PID 1 must reap orphans in a box without a workload, too.
                None => {
                    children.reap_forever().await;
                    Status::Exited(0)
                }
            }
        };
        let notified = async {
            match &mut running {
                Some(running) => running.notices.changed().await,
                None => pending().await,
            }
        };
        let event = tokio::select! {
            status = ended => Event::Ended(status),
            order = control.receive() => Event::Ordered(order?),
            notified = notified => Event::Notified(notified),
        };
        match (event, workload) {
            (Event::Ended(status), _) => {
                // The socket may hold datagrams from before the end: `select!` polls in random
                // order, and the rate limit holds notifications back.
                if let Some(notified) = running.and_then(|running| running.notices.unsent()) {
                    control.send(Message::Notified(notified)).await?;
                }
                return Ok(status);
            }
            (Event::Notified(notified), _) => {
                control.send(Message::Notified(notified)).await?;
            }
            (Event::Ordered(Order::Stop { .. } | Order::Kill), None) => {
                return Ok(Status::Exited(0));
            }
            (Event::Ordered(Order::Stop { signal }), Some(pid)) => stop(pid, signal),
            (Event::Ordered(Order::Kill), Some(_)) => machine.kill_everything(),
            // The shim must not send this yet. The workload continues, so the message is only
            // logged.
            (Event::Ordered(Order::Acknowledged), _) => {
                kmsg::line("the shim acknowledged what has not ended");
            }
        }
    }
}

/// Sends `signal` to the workload. An error is logged and does not end the box: the shim sends
/// `Kill` when the grace period is over.
fn stop(pid: pid_t, signal: u32) {
    // The range is checked because kill(2) with signal 0 succeeds and sends nothing.
    match i32::try_from(signal) {
        Ok(number) if (1..=LAST_SIGNAL).contains(&signal) => {
            if let Err(error) = syscall::send_signal(pid, number) {
                kmsg::line(&format!("cannot send signal {number} to the workload: {error}"));
            }
        }
        _ => kmsg::line(&format!("stop with signal {signal}, expected 1 to {LAST_SIGNAL}")),
    }
}

/// Waits until all output is written to the ports and all children are reaped, at most
/// [`DRAIN_TIMEOUT`]. Returns the number of bytes that the ports have accepted.
async fn drain<S>(
    control: &mut Control<S>,
    children: &mut Children,
    running: Option<Running>,
) -> Result<Drained, LifecycleError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(mut running) = running else { return Ok(Drained::default()) };
    let settle = async {
        tokio::join!(running.stdout.finished(), running.stderr.finished(), children.wait_for_all(),);
    };
    let lost = async {
        loop {
            // The workload has ended, so an order to stop or kill has nothing left to do. The
            // connection is still read, because only a read reports that the shim is gone.
            if let Err(error) = control.receive().await {
                return error;
            }
        }
    };
    tokio::select! {
        settled = timeout(DRAIN_TIMEOUT, settle) => {
            // A reader of the host that hangs must not keep the box alive.
            if settled.is_err() {
                kmsg::line("output or processes are left after the workload's end");
            }
        }
        error = lost => return Err(error.into()),
    }
    Ok(Drained { stdout_bytes: running.stdout.written(), stderr_bytes: running.stderr.written() })
}

/// Waits until the shim acknowledges the end, at most [`ACKNOWLEDGE_TIMEOUT`].
///
/// A timeout is logged and is no error: the guest reboots either way. A closed connection counts as
/// an acknowledgement, because nothing is left to wait for when the shim is gone.
async fn await_acknowledgement<S>(control: &mut Control<S>) -> Result<(), LifecycleError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let acknowledged = async {
        // Late orders to stop or kill may come first.
        while control.receive().await? != Order::Acknowledged {}
        Ok::<_, ControlError>(())
    };
    match timeout(ACKNOWLEDGE_TIMEOUT, acknowledged).await {
        Ok(Ok(()) | Err(ControlError::Closed)) => {}
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => kmsg::line("the shim did not acknowledge the end"),
    }
    Ok(())
}

/// Returns the message that reports `status`.
fn exited(status: Status) -> Exited {
    let status = match status {
        Status::Exited(code) => exited::Status::ExitCode(code.into()),
        Status::Signaled(signal) => exited::Status::Signal(signal.into()),
    };
    Exited { status: Some(status) }
}

/// Returns the exit code for `status`: 128 plus the number of a signal, as a shell does.
fn exit_code(status: Status) -> u8 {
    match status {
        Status::Exited(code) => code,
        Status::Signaled(signal) => signal.saturating_add(128),
    }
}

#[cfg(test)]
mod tests;
