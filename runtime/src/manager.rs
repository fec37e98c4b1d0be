//! [`VmManager`]: one box, from its config to its end.
//!
//! ```text
//!              boot                                    destroy, or the shim's own end
//!   Created ──────────► Booted { orders, agent } ─────────────────────────► Status.final_status
//!      │ destroy
//!      └──────────────► Destroyed
//! ```
//!
//! The phase says what was asked for; the box's state comes from the follower and the agent.

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
use crate::chronicle::Chronicle;
use crate::directory;
use crate::error::VmError;
use crate::follower::{Follower, Termination};
use crate::shim;
use crate::status::{FinalStatus, Outcome, Status};

/// What a shim gets to stop beyond its grace period: it gives the guest 10 s at most to shut down,
/// as container engines do.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// The longest grace period that the shim accepts.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// How long the kernel may take to end a process after SIGKILL. It frees the guest's memory.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Boots, watches and destroys one box.
///
/// Dropping it kills the box at once; [`destroy`](Self::destroy) stops it properly. All methods take
/// `&self`, and may be called from several tasks. They need a tokio runtime; the box lives no longer
/// than the one in which it was booted.
#[derive(Debug)]
pub struct VmManager {
    /// With its id.
    config: BoxConfig,
    id: String,
    emitter: EventEmitter,
    shim: Option<PathBuf>,
    /// Absent if the shim refuses the id or `paths.state_dir`.
    directory: Option<BoxDir>,
    phase: Mutex<Phase>,
    status: watch::Sender<Status>,
}

#[derive(Debug)]
enum Phase {
    Created,
    Booted(Shim),
    Destroyed,
}

/// The manager's side of a started shim.
#[derive(Debug)]
struct Shim {
    pid: u32,
    orders: mpsc::Sender<Termination>,
    /// Absent if the shim refuses the config.
    agent: Option<Agent>,
}

impl VmManager {
    /// Captures the config. Nothing is started, and nothing is checked but by the shim. A config
    /// without an id gets one that is unique on this host.
    #[must_use]
    pub fn new(mut config: BoxConfig, emitter: EventEmitter) -> Self {
        let id = config.id.get_or_insert_with(made_up_id).clone();
        let directory = directory::find(&config.paths.state_dir, &id);
        let (status, _) = watch::channel(Status::CREATED);
        let phase = Mutex::new(Phase::Created);
        Self { config, id, emitter, shim: None, directory, phase, status }
    }

    /// Uses the shim at `path`, instead of the one beside this program or in `PATH`.
    #[must_use]
    pub fn with_shim(self, path: impl Into<PathBuf>) -> Self {
        Self { shim: Some(path.into()), ..self }
    }

    /// Name of the box.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the box is doing, as far as is known: Stopped comes by itself, within milliseconds of
    /// the shim's end; Busy and Compacting come from the shim and from health checks.
    #[must_use]
    pub fn state(&self) -> BoxState {
        self.status.borrow().state
    }

    /// Starts the shim, and waits until the box is ready. A workload that has exited by then, with
    /// whatever status, is a success too: the box is Stopped, and [`wait`](Self::wait) says how.
    ///
    /// The shim has its own limits for the boot of the guest; unpacking a large image for the first
    /// time may take long before that. Dropping the future leaves the box booting.
    ///
    /// # Errors
    ///
    /// [`VmError::Start`] and [`VmError::Config`]: nothing was started, and it may be tried again.
    /// [`VmError::BootFailed`]: the shim says why. [`VmError::StoppedWhileBooting`].
    /// [`VmError::AlreadyBooted`].
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

    /// Asks the agent in the box, with a gRPC round trip. False when it does not serve, when no
    /// answer came within 5 s, and when the box is Stopped.
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
            // Until the shim says that the box is ready, an answer says only that the agent is.
            let heard = health.state.filter(|state| status.was_ready && *state != status.state);
            heard.map(|state| status.hear(state)).is_some()
        });
        Ok(health.is_serving && self.state() != BoxState::Stopped)
    }

    /// Stops the box, and removes its state directory and its cgroup. The shim gets SIGTERM, and SIGKILL after the
    /// config's grace period and 10 s more. Afterwards nothing of this box is left on the host, and
    /// a second call changes nothing. A box that was never booted becomes Stopped; what a killed
    /// shim left under its id is removed, what a live one owns is not.
    ///
    /// A stop goes on when this future is dropped.
    ///
    /// # Errors
    ///
    /// [`VmError::StillRunning`], [`VmError::BoxDirectory`], [`VmError::Cgroup`]; each may be tried again.
    pub async fn destroy(&self) -> Result<(), VmError> {
        let patience = self.patience();
        if let Some(pid) = self.ask_to_stop(patience) {
            let ended = timeout(patience + KILL_TIMEOUT, self.wait()).await;
            ended.map_err(|_elapsed| VmError::StillRunning { pid })?;
        }
        if let Some(directory) = self.directory.clone() {
            directory::remove(directory).await?;
        }
        self.config.resources.cgroup.as_deref().map_or(Ok(()), remove_cgroup)
    }

    /// Waits for the end of the box, and says how it ended. Waits for ever for a box that nobody
    /// boots or destroys.
    pub async fn wait(&self) -> Outcome {
        let status = self.settled(|status| status.final_status.is_some()).await;
        status.final_status.map_or(Outcome::NEVER_RAN, |final_status| final_status.outcome)
    }

    /// Starts the shim and its follower. Does not wait: the phase stays locked meanwhile.
    fn start(&self) -> Result<(), VmError> {
        let mut phase = self.phase();
        if !matches!(*phase, Phase::Created) {
            return Err(VmError::AlreadyBooted { state: self.state() });
        }
        let config = self.config.to_json().map_err(VmError::Config)?;
        let path = self.shim.clone().map_or_else(shim::find, Ok)?;
        let start = Instant::now();
        let child = shim::spawn(&path, config)?;
        // A child that was not reaped has a pid.
        let pid = child.id().unwrap_or_default();
        // One order says it all; a second one finds the first still waiting, or followed.
        let (orders, receiver) = mpsc::channel(1);
        let (emitter, status) = (self.emitter.clone(), self.status.clone());
        let chronicle = Chronicle::new(emitter, status, self.id.clone(), start);
        tokio::spawn(Follower::new(child, self.directory.clone(), receiver, chronicle).run());
        let agent = self.directory.as_ref().map(|directory| Agent::new(directory.agent_socket()));
        *phase = Phase::Booted(Shim { pid, orders, agent });
        Ok(())
    }

    /// Pid of the shim, if one was started; it is asked to stop.
    fn ask_to_stop(&self, patience: Duration) -> Option<u32> {
        let mut phase = self.phase();
        match &*phase {
            Phase::Booted(shim) => {
                // Fails when an order is waiting already, or when the shim has ended.
                let _stopping = shim.orders.try_send(Termination { patience });
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

    /// How long the shim may take to stop.
    fn patience(&self) -> Duration {
        Duration::from_millis(self.config.stop.grace_ms).min(MAX_GRACE) + STOP_MARGIN
    }

    async fn settled(&self, is_settled: impl FnMut(&Status) -> bool) -> Status {
        let mut seen = self.status.subscribe();
        match seen.wait_for(is_settled).await {
            Ok(status) => status.clone(),
            // Not while this manager holds a sender.
            Err(_closed) => self.status.borrow().clone(),
        }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        // Each change of the phase is one assignment.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Unique on this host: no two live processes share a pid, none counts twice, and none of two that
/// had the same pid began in the same millisecond.
fn made_up_id() -> String {
    static MADE_UP: AtomicU64 = AtomicU64::new(0);
    let number = MADE_UP.fetch_add(1, Ordering::Relaxed);
    let now_ms = jiff::Timestamp::now().as_millisecond();
    format!("box-{}-{now_ms}-{number}", std::process::id())
}
/// Removes the cgroup that a shim has made, and could not remove as it was in it.
fn remove_cgroup(path: &Path) -> Result<(), VmError> {
    match std::fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(VmError::Cgroup { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
