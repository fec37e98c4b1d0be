//! The life of a box, from Hello to Acknowledged.
//!
//! ```text
//! prepare ──► launch ──► supervise ──► kill the rest, drain ──► Acknowledged
//!    │           │           │                  │                    │
//!    └─ StartFailed ─────────┼──────────────────┼────────────────────┤
//!                            └─ control lost ───┴────────────────────┴──► reboot
//! ```
//!
//! Generic over the stream to the shim and over the [`Machine`], so that all of it runs in a
//! test, with real processes and without a VM.
//!
//! # Invariants
//!
//! The end of the workload is reported before anything that can take time, and after all that the
//! workload said about itself. Without a shim there is no box: any error on the control stream ends it.

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

use crate::agent::ListenError;
use crate::children::Children;
use crate::config::ConfigError;
use crate::control::{Control, ControlError, Order};
use crate::kmsg;
use crate::launch::{LaunchError, launch};
use crate::mounts::MountError;
use crate::network::NetworkError;
use crate::notify::{BindError, Notices};
use crate::plan::PlanError;
use crate::ports::PortError;
use crate::relay::Relay;
use crate::syscall::{self, Image, Status};

/// How long the rest of the output may take after the end: at most a pipe and a buffer a
/// stream, 96 KiB, unless the host does not read at all.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the shim may take to say that it recorded the end.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest message of a `StartFailed`; the frame has room for four times that.
const MESSAGE_BYTES: usize = 4096;

/// Highest signal number of Linux.
const LAST_SIGNAL: u32 = 64;

/// Why a life ended without its proper end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LifeError {
    /// The event loop.
    #[error("cannot make the event loop")]
    Runtime(#[source] io::Error),
    /// The shim is gone, or does not make sense.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Why the workload was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("cannot set host name `{name}`")]
    Hostname { name: String, source: Errno },
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Listen(#[from] ListenError),
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
    fn reason(&self) -> StartFailure {
        match self {
            Self::Plan(PlanError::Program(error)) => error.reason(),
            Self::Launch(error) => error.reason(),
            _ => StartFailure::Setup,
        }
    }
}

/// What a life needs of the machine it is lived in.
pub(crate) trait Machine {
    /// Where the workload's output goes.
    type Port: AsyncWrite + Unpin + Send + 'static;

    /// Makes the machine ready, and says what is to run in it.
    async fn prepare(&mut self) -> Result<Option<Job<Self::Port>>, StartError>;

    /// Kills all processes but this one.
    fn kill_everything(&self);
}

/// A workload, ready to start.
#[derive(Debug)]
pub(crate) struct Job<P> {
    /// What to run.
    pub(crate) image: Image,
    /// Port for its output.
    pub(crate) stdout: P,
    /// Port for its errors.
    pub(crate) stderr: P,
    /// What it will say about itself.
    pub(crate) notices: Notices,
}

/// A workload that runs.
#[derive(Debug)]
struct Running {
    pid: pid_t,
    stdout: Relay,
    stderr: Relay,
    notices: Notices,
}

/// What can happen while the box runs.
#[derive(Debug)]
enum Event {
    Ended(Status),
    Ordered(Order),
    Said(Notified),
}

/// Lives until the end, and says with which code the box is to exit.
pub(crate) async fn run<S, M>(control: &mut Control<S>, machine: &mut M) -> Result<u8, LifeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    M: Machine,
{
    let mut children = Children::watch().map_err(LifeError::Runtime)?;
    let guest_version = env!("CARGO_PKG_VERSION").to_owned();
    control
        .send(Message::Hello(Hello { protocol_version: PROTOCOL_VERSION, guest_version }))
        .await?;
    let mut running = match start(machine).await {
        Ok(running) => running,
        Err(error) => return refuse(control, &error).await,
    };
    let pid = running.as_ref().map(|running| running.pid);
    let number = pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
    control.send(Message::Started(Started { pid: number })).await?;
    let status = supervise(control, &mut children, machine, running.as_mut()).await?;
    control.send(Message::Exited(exited(status))).await?;
    machine.kill_everything();
    let drained = drain(control, &mut children, running).await?;
    control.send(Message::Drained(drained)).await?;
    await_acknowledgement(control).await?;
    Ok(exit_code(status))
}

async fn start<M: Machine>(machine: &mut M) -> Result<Option<Running>, StartError> {
    let Some(job) = machine.prepare().await? else { return Ok(None) };
    let launched = launch(&job.image).await?;
    Ok(Some(Running {
        pid: launched.pid,
        stdout: Relay::spawn(launched.stdout, job.stdout),
        stderr: Relay::spawn(launched.stderr, job.stderr),
        notices: job.notices,
    }))
}

/// Tells the shim why nothing was started.
async fn refuse<S>(control: &mut Control<S>, error: &StartError) -> Result<u8, LifeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let reason = error.reason();
    let mut message = kmsg::chain(error);
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
    control.send(Message::StartFailed(StartFailed { reason: reason.into(), message })).await?;
    await_acknowledgement(control).await?;
    Ok(match reason {
        StartFailure::NotFound => 127,
        StartFailure::NotExecutable => 126,
        StartFailure::Setup | StartFailure::Unspecified => crate::power::EXIT_CODE_FAILURE,
    })
}

/// Obeys the shim, and passes on what the workload says, until the workload has ended, or a box
/// without one is told to.
async fn supervise<S, M>(
    control: &mut Control<S>,
    children: &mut Children,
    machine: &M,
    mut running: Option<&mut Running>,
) -> Result<Status, LifeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    M: Machine,
{
    let workload = running.as_ref().map(|running| running.pid);
    loop {
        let ended = async {
            match workload {
                Some(pid) => children.wait_for(pid).await,
                None => {
                    children.reap_forever().await;
                    Status::Exited(0)
                }
            }
        };
        let said = async {
            match &mut running {
                Some(running) => running.notices.changed().await,
                None => pending().await,
            }
        };
        let event = tokio::select! {
            status = ended => Event::Ended(status),
            order = control.receive() => Event::Ordered(order?),
            said = said => Event::Said(said),
        };
        match (event, workload) {
            (Event::Ended(status), _) => {
                if let Some(said) = running.and_then(|running| running.notices.last()) {
                    control.send(Message::Notified(said)).await?;
                }
                return Ok(status);
            }
            (Event::Said(said), _) => control.send(Message::Notified(said)).await?,
            (Event::Ordered(Order::Stop { .. } | Order::Kill), None) => {
                return Ok(Status::Exited(0));
            }
            (Event::Ordered(Order::Stop { signal }), Some(pid)) => stop(pid, signal),
            (Event::Ordered(Order::Kill), Some(_)) => machine.kill_everything(),
            (Event::Ordered(Order::Acknowledged), _) => {
                kmsg::line("the shim acknowledged what has not ended");
            }
        }
    }
}

fn stop(pid: pid_t, signal: u32) {
    match i32::try_from(signal) {
        Ok(number) if (1..=LAST_SIGNAL).contains(&signal) => {
            if let Err(error) = syscall::send_signal(pid, number) {
                kmsg::line(&format!("cannot send signal {number} to the workload: {error}"));
            }
        }
        _ => kmsg::line(&format!("stop with signal {signal}, expected 1 to {LAST_SIGNAL}")),
    }
}

/// Waits, bounded, until all output is written and no process is left.
async fn drain<S>(
    control: &mut Control<S>,
    children: &mut Children,
    running: Option<Running>,
) -> Result<Drained, LifeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(mut running) = running else { return Ok(Drained::default()) };
    let settle = async {
        tokio::join!(running.stdout.finished(), running.stderr.finished(), children.wait_for_all(),);
    };
    let lost = async {
        loop {
            // The workload has ended: whatever is ordered was done.
            if let Err(error) = control.receive().await {
                return error;
            }
        }
    };
    tokio::select! {
        settled = timeout(DRAIN_TIMEOUT, settle) => {
            if settled.is_err() {
                kmsg::line("output or processes are left after the workload's end");
            }
        }
        error = lost => return Err(error.into()),
    }
    Ok(Drained { stdout_bytes: running.stdout.written(), stderr_bytes: running.stderr.written() })
}

/// Waits, bounded, until the shim has recorded the end. A shim that goes has done so.
async fn await_acknowledgement<S>(control: &mut Control<S>) -> Result<(), LifeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let acknowledged = async {
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

fn exited(status: Status) -> Exited {
    let status = match status {
        Status::Exited(code) => exited::Status::ExitCode(code.into()),
        Status::Signaled(signal) => exited::Status::Signal(signal.into()),
    };
    Exited { status: Some(status) }
}

fn exit_code(status: Status) -> u8 {
    match status {
        Status::Exited(code) => code,
        Status::Signaled(signal) => signal.saturating_add(128),
    }
}

#[cfg(test)]
mod tests;
