//! [`VmManager`]: one box, from its config to its removal.
//!
//! ```text
//!              boot                    destroy, or the end of the shim
//!   Created ──────────► Booted(Shim) ─────────────────────────────────► Status.final_status
//!      │ destroy
//!      └──────────────► Destroyed
//! ```
//!
//! The phase records which methods were called. The state of the box is in [`Status`], which the
//! follower and the answers of the agent update.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use a3s_box_core::event::StopReason;
use a3s_box_core::{BoxConfig, BoxDir, BoxState, EventEmitter};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::agent::Agent;
use crate::directory;
use crate::error::VmError;
use crate::exec::{BoxProcesses, Command, ExecError, Process, ProcessInfo};
use crate::files::{BoxFiles, FilesError};
use crate::follower::{Follower, Termination};
use crate::relay::EventRelay;
use crate::shim;
use crate::status::{FinalStatus, Outcome, Status};

/// Time that a shim has to end after the grace period of its workload. The shim's own deadlines for
/// a hung guest come within 40 s (`STOP_MARGIN` in its module `control::stopping`), so only a shim
/// that hangs itself is killed.
const STOP_MARGIN: Duration = Duration::from_secs(45);

/// Maximum grace period that the shim accepts. It refuses a config with a longer one.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// Time limit of the kernel for the end of a process after SIGKILL. It has to free the guest's
/// memory.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Boots, watches and destroys one box.
///
/// [`destroy`](Self::destroy) stops the box with its stop signal and its grace period. Dropping the
/// manager kills the box at once. All methods take `&self`, so several tasks may call them. The
/// asynchronous ones must run in a tokio runtime, and the box is killed when the runtime in which
/// it was booted ends.
#[derive(Debug)]
pub struct VmManager {
    /// The config, always with an id.
    config: BoxConfig,
    id: String,
    emitter: EventEmitter,
    shim: Option<PathBuf>,
    /// `None` if the shim refuses the id or `paths.state_dir`.
    directory: Option<BoxDir>,
    phase: Mutex<Phase>,
    status: watch::Sender<Status>,
}

/// The methods that were called: none, `boot`, or `destroy` without `boot`.
#[derive(Debug)]
enum Phase {
    Created,
    Booted(Shim),
    Destroyed,
}

/// The manager's handle of a started shim.
#[derive(Debug)]
struct Shim {
    pid: u32,
    /// The follower kills the shim when this sender is dropped.
    terminations: mpsc::Sender<Termination>,
    /// `None` if the shim refuses the id or `paths.state_dir`.
    agent: Option<Agent>,
}

impl VmManager {
    /// Makes the manager of a box in the state Created.
    ///
    /// Nothing is started, and the config is not validated: the shim does that during
    /// [`boot`](Self::boot). A config without an id gets one that is unique on this host. `emitter`
    /// gets all events of the box.
    #[must_use]
    pub fn new(mut config: BoxConfig, emitter: EventEmitter) -> Self {
        let id = config.id.get_or_insert_with(generated_id).clone();
        let directory = directory::find(&config.paths.state_dir, &id);
        let (status, _) = watch::channel(Status::CREATED);
        let phase = Mutex::new(Phase::Created);
        Self { config, id, emitter, shim: None, directory, phase, status }
    }

    /// Sets the path of the shim's executable.
    ///
    /// Without this call, [`boot`](Self::boot) searches for `a3s-box-shim` in the directory of this
    /// process's executable, in the directory above, and in `PATH`.
    #[must_use]
    pub fn with_shim(self, path: impl Into<PathBuf>) -> Self {
        Self { shim: Some(path.into()), ..self }
    }

    /// Returns the id of the box: the one in the config, or the generated one.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the state of the box, as far as this process has observed it.
    ///
    /// Ready, Busy and Compacting come from events of the shim and from the answers to
    /// [`health_check`](Self::health_check). Stopped follows within milliseconds of the end of the
    /// shim.
    #[must_use]
    pub fn state(&self) -> BoxState {
        self.status.borrow().state
    }

    /// Starts the shim, and waits until the box is ready.
    ///
    /// A workload that exits before the box is ready is a success as well, with any exit status.
    /// The state is then Stopped, and [`wait`](Self::wait) returns how the box ended.
    ///
    /// The time has no limit here. `agent.boot_timeout_ms` limits the boot of the guest, but before
    /// it the shim unpacks the image, which can take minutes for the first time. If the future is
    /// dropped, the box continues to boot.
    ///
    /// # Errors
    ///
    /// - [`VmError::Start`] and [`VmError::Config`] if no process was started. The call may be
    ///   repeated.
    /// - [`VmError::BootFailed`] if the box ended by an error before it was ready.
    /// - [`VmError::StoppedWhileBooting`] if a stop or the timeout of the box ended it before.
    /// - [`VmError::AlreadyBooted`] if the box was booted or destroyed before.
    pub async fn boot(&self) -> Result<(), VmError> {
        self.start()?;
        let status = self.settled(|status| status.was_ready || status.final_status.is_some()).await;
        match status.final_status {
            Some(FinalStatus { outcome, report })
                if !status.was_ready && outcome.reason != StopReason::Exited =>
            {
                Err(match report {
                    Some(report) => VmError::BootFailed { report },
                    None => VmError::StoppedWhileBooting { outcome },
                })
            }
            _ => Ok(()),
        }
    }

    /// Calls the agent in the box by gRPC, and returns whether it serves.
    ///
    /// Returns false if the agent answers that it does not serve, if no answer comes within 5 s, if
    /// the box is Stopped, and if the agent does not offer the project's `Agent` service. The last
    /// case applies to an `image` agent that offers only `grpc.health.v1.Health`.
    ///
    /// An answer also updates [`state`](Self::state), once the box is ready.
    ///
    /// # Errors
    ///
    /// [`VmError::NotBooted`] before the first boot.
    pub async fn health_check(&self) -> Result<bool, VmError> {
        let agent = match &*self.phase() {
            Phase::Created => return Err(VmError::NotBooted),
            Phase::Destroyed => return Ok(false),
            Phase::Booted(shim) => shim.agent.clone(),
        };
        if self.state() == BoxState::Stopped {
            return Ok(false);
        }
        let Some(agent) = agent else { return Ok(false) };
        let Some(health) = agent.health().await else { return Ok(false) };
        self.status.send_if_modified(|status| {
            // The agent can answer before the shim reports that the box is ready. The answer is
            // then only about the agent, because `agent.readiness` can require more.
            let reported = health.state.filter(|state| status.was_ready && *state != status.state);
            reported.map(|state| status.update_state(state)).is_some()
        });
        Ok(health.is_serving && self.state() != BoxState::Stopped)
    }

    /// Stops the box, and removes its box directory and its cgroup.
    ///
    /// The shim gets SIGTERM. It gets SIGKILL 45 s after the end of the grace period
    /// (`stop.grace_ms`), which only a shim that hangs itself needs. Afterwards nothing of this box
    /// is left on the host, and a second call has no effect. A box that was never booted becomes
    /// Stopped. A box directory of its id that a killed shim has left is removed, but not the
    /// directory of a live shim.
    ///
    /// If the future is dropped, the stop continues, but the directory and the cgroup are not
    /// removed.
    ///
    /// # Errors
    ///
    /// - [`VmError::StillRunning`] if the shim does not end within 10 s after SIGKILL.
    /// - [`VmError::BoxDirectory`] if the box directory cannot be removed.
    /// - [`VmError::Cgroup`] if the cgroup cannot be removed.
    ///
    /// The call may be repeated after each of them.
    pub async fn destroy(&self) -> Result<(), VmError> {
        let patience = self.patience();
        if let Some(pid) = self.terminate(patience) {
            let ended = timeout(patience + KILL_TIMEOUT, self.wait()).await;
            ended.map_err(|_elapsed| VmError::StillRunning { pid })?;
        }
        if let Some(directory) = self.directory.clone() {
            directory::remove(directory).await?;
        }
        // The cgroup comes last, because rmdir(2) fails while a process is in it.
        self.config.resources.cgroup.as_deref().map_or(Ok(()), remove_cgroup)
    }

    /// Waits for the end of the box, and returns how it ended.
    ///
    /// The call never returns if the box is neither booted nor destroyed.
    pub async fn wait(&self) -> Outcome {
        let status = self.settled(|status| status.final_status.is_some()).await;
        status.final_status.map_or(Outcome::NEVER_RAN, |final_status| final_status.outcome)
    }

    /// Starts a process in the box, and returns when it has executed its program.
    ///
    /// Dropping the returned process, or the future, kills the process with all its descendants.
    ///
    /// ```no_run
    /// # async fn example(vm: &a3s_box_runtime::VmManager) -> Result<(), Box<dyn std::error::Error>> {
    /// use a3s_box_runtime::exec::{Command, ProcessEnd};
    ///
    /// let process = vm.exec(Command::new("cat").arg("/etc/os-release")).await?;
    /// let output = process.wait_with_output().await?;
    /// assert_eq!(output.exit.end, ProcessEnd::Code(0));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ExecError`]. It is `Refused` if the guest did not start the process, and `Unreachable` if
    /// the box does not run or has no `agent.exec`.
    pub async fn exec(&self, command: &Command) -> Result<Process, ExecError> {
        self.box_processes()?.run(command).await
    }

    /// Connects to a process of the box that was started earlier.
    ///
    /// # Errors
    ///
    /// [`ExecError`].
    pub async fn attach(&self, id: &str) -> Result<Process, ExecError> {
        self.box_processes()?.attach(id).await
    }

    /// Returns the processes that [`exec`](Self::exec) has started, of all clients of the box:
    /// those that run, and those that have ended and were kept.
    ///
    /// # Errors
    ///
    /// [`ExecError`].
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>, ExecError> {
        self.box_processes()?.list().await
    }

    /// Returns a client for the files of the box.
    ///
    /// ```no_run
    /// # async fn example(vm: &a3s_box_runtime::VmManager) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::path::Path;
    ///
    /// use a3s_box_runtime::files::CopyLimits;
    ///
    /// let files = vm.files()?;
    /// files.copy_in(Path::new("project"), "/srv/project").await?;
    /// files.copy_out("/srv/result", Path::new("result"), &CopyLimits::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`FilesError::NotBooted`] before the first boot.
    pub fn files(&self) -> Result<BoxFiles, FilesError> {
        if matches!(*self.phase(), Phase::Created) {
            return Err(FilesError::NotBooted);
        }
        self.directory.as_ref().map(BoxFiles::of).ok_or(FilesError::NotBooted)
    }

    /// Returns a client for the processes of the box.
    fn box_processes(&self) -> Result<BoxProcesses, ExecError> {
        if matches!(*self.phase(), Phase::Created) {
            return Err(ExecError::NotBooted);
        }
        self.directory.as_ref().map(BoxProcesses::of).ok_or(ExecError::NotBooted)
    }

    /// Spawns the shim and its follower.
    ///
    /// The phase is locked meanwhile, so that two calls cannot both spawn a shim. Therefore the
    /// function must not wait.
    fn start(&self) -> Result<(), VmError> {
        let mut phase = self.phase();
        if !matches!(*phase, Phase::Created) {
            return Err(VmError::AlreadyBooted { state: self.state() });
        }
        // All that can fail comes before the change of the phase, so that the call can be repeated.
        let config = self.config.to_json().map_err(VmError::Config)?;
        let path = self.shim.clone().map_or_else(shim::find, Ok)?;
        let start = Instant::now();
        let child = shim::spawn(&path, config)?;
        // The child was not reaped yet, so it has a pid.
        let pid = child.id().unwrap_or_default();
        // The channel needs no more space: while one termination waits, a second one adds nothing.
        let (terminations, receiver) = mpsc::channel(1);
        let (emitter, status) = (self.emitter.clone(), self.status.clone());
        let relay = EventRelay::new(emitter, status, self.id.clone(), start);
        tokio::spawn(Follower::new(child, self.directory.clone(), receiver, relay).run());
        let agent = self.directory.as_ref().map(|directory| Agent::new(directory.agent_socket()));
        *phase = Phase::Booted(Shim { pid, terminations, agent });
        Ok(())
    }

    /// Sends the follower a termination and returns the pid of the shim. If no shim was started,
    /// sets the final status and returns `None`.
    fn terminate(&self, patience: Duration) -> Option<u32> {
        let mut phase = self.phase();
        match &*phase {
            Phase::Booted(shim) => {
                // The send fails if a termination is waiting already, or if the shim has ended.
                let _stopping = shim.terminations.try_send(Termination { patience });
                return Some(shim.pid);
            }
            Phase::Destroyed => return None,
            Phase::Created => *phase = Phase::Destroyed,
        }
        self.status.send_modify(|status| {
            status.state = BoxState::Stopped;
            status.final_status = Some(FinalStatus { outcome: Outcome::NEVER_RAN, report: None });
        });
        None
    }

    /// Returns the time from SIGTERM to SIGKILL.
    fn patience(&self) -> Duration {
        Duration::from_millis(self.config.stop.grace_ms).min(MAX_GRACE) + STOP_MARGIN
    }

    /// Waits until the status fulfils a condition, and returns it.
    async fn settled(&self, is_settled: impl FnMut(&Status) -> bool) -> Status {
        let mut seen = self.status.subscribe();
        match seen.wait_for(is_settled).await {
            Ok(status) => status.clone(),
            // The channel is open while this manager owns a sender.
            Err(_closed) => self.status.borrow().clone(),
        }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        // A panic elsewhere cannot leave a half-changed phase, because each change is one
        // assignment.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns an id that is unique on this host.
///
/// Two live processes have different pids, two processes that have the same pid one after the other
/// run in different milliseconds, and the counter distinguishes the ids of one process.
fn generated_id() -> String {
    static GENERATED: AtomicU64 = AtomicU64::new(0);
    let number = GENERATED.fetch_add(1, Ordering::Relaxed);
    let now_ms = jiff::Timestamp::now().as_millisecond();
    format!("box-{}-{now_ms}-{number}", std::process::id())
}

/// Removes the cgroup of a box. Its shim could not, because a process cannot remove the cgroup that
/// it is in.
fn remove_cgroup(path: &Path) -> Result<(), VmError> {
    match std::fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(VmError::Cgroup { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
