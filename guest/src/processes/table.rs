//! All processes of the service, by their ids.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use a3s_box_proto::control::Workload;
use a3s_box_proto::process::{Failed, FailureKind, ListResponse, Start};

use super::cgroup::Cgroups;
use super::failure::{failed, no_such_process};
use super::output::Reader;
use super::process::Process;
use super::request::{Wanted, wanted, without_workload};
use crate::children::Exits;

/// Maximum number of processes that run at the same time.
const MAX_PROCESSES: usize = 256;

/// Maximum number of processes that have ended and are kept for `Attach` and `Wait`.
const MAX_ENDED: usize = 64;

/// Maximum size of the output of all kept processes that have ended, in bytes. The oldest ones are
/// forgotten first.
const MAX_ENDED_BYTES: usize = 16 * 1024 * 1024;

/// The processes. All clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Table(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// What a process has unless its request says otherwise.
    workload: Workload,
    /// `None`: only the process group of a process is killed with it. Guests always have cgroups.
    cgroups: Option<Arc<Cgroups>>,
    exits: Exits,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    /// In the order of their start.
    processes: Vec<Arc<Process>>,
    /// Number of the last process without an id of the client's choice.
    last: u64,
}

/// The process that a stream is connected to.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) process: Arc<Process>,
    pub(super) reader: Reader,
    /// The stream has started the process.
    pub(super) is_owner: bool,
}

impl Table {
    /// Makes a table without processes. Those that it starts inherit the environment, user,
    /// directory and limits of `workload`.
    pub(crate) fn new(workload: Option<&Workload>, cgroups: Option<Cgroups>, exits: Exits) -> Self {
        // The arguments are not needed, and can be long.
        let workload = workload.map_or_else(without_workload, |workload| Workload {
            args: Vec::new(),
            ..workload.clone()
        });
        let cgroups = cgroups.map(Arc::new);
        Self(Arc::new(Shared { workload, cgroups, exits, entries: Mutex::default() }))
    }

    /// Starts a process, or connects to the one that has its id already. The process starts in the
    /// background.
    pub(super) fn run(&self, start: Start) -> Result<Connected, Failed> {
        let wanted = wanted(start, &self.0.workload)?;
        let mut entries = self.0.entries();
        if let Some(process) = wanted.id.as_deref().and_then(|id| entries.find(id)) {
            let reader = process.output.reader();
            return Ok(Connected { process, reader, is_owner: false });
        }
        let running = entries.processes.iter().filter(|process| !process.is_over()).count();
        if running >= MAX_PROCESSES {
            let message = format!("{running} processes run already, which is the limit");
            return Err(failed(FailureKind::TooManyProcesses, message));
        }
        let id = wanted.id.clone().unwrap_or_else(|| entries.new_id());
        let process = Arc::new(Process::new(id, &wanted, self.0.exits.clone()));
        entries.processes.push(Arc::clone(&process));
        drop(entries);
        // The reader is there before the first output, so the owner misses nothing.
        let reader = process.output.reader();
        tokio::spawn(self.clone().supervise(Arc::clone(&process), wanted));
        Ok(Connected { process, reader, is_owner: true })
    }

    /// Runs a process to its end.
    async fn supervise(self, process: Arc<Process>, wanted: Wanted) {
        process.run(wanted, self.0.cgroups.clone()).await;
        let was_started = process.output.ended().await.is_ok();
        let mut entries = self.0.entries();
        if !(process.is_kept() && was_started) {
            entries.processes.retain(|entry| !Arc::ptr_eq(entry, &process));
        }
        entries.forget_oldest();
    }

    /// Connects to a process.
    pub(super) fn attach(&self, id: &str) -> Result<Connected, Failed> {
        let process = self.find(id)?;
        let reader = process.output.reader();
        Ok(Connected { process, reader, is_owner: false })
    }

    /// Returns the process with this id.
    pub(super) fn find(&self, id: &str) -> Result<Arc<Process>, Failed> {
        self.0.entries().find(id).ok_or_else(|| no_such_process(id))
    }

    /// Returns all processes.
    pub(super) fn list(&self) -> ListResponse {
        if let Some(cgroups) = &self.0.cgroups {
            cgroups.sweep();
        }
        let processes = self.0.entries().processes.clone();
        ListResponse { processes: processes.iter().map(|process| process.listed()).collect() }
    }
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        // A panic ends PID 1 and the box with it.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn find(&self, id: &str) -> Option<Arc<Process>> {
        self.processes.iter().find(|process| process.id == id).cloned()
    }

    /// Returns an id that no process has.
    fn new_id(&mut self) -> String {
        loop {
            self.last += 1;
            let id = format!("exec-{}", self.last);
            // A client may have chosen the same one.
            if self.find(&id).is_none() {
                return id;
            }
        }
    }

    /// Forgets the oldest processes that have ended until the rest is within the limits.
    fn forget_oldest(&mut self) {
        let ended: Vec<_> = self.processes.iter().filter(|process| process.is_over()).collect();
        let mut bytes: usize = ended.iter().map(|process| process.output.size()).sum();
        let mut count = ended.len();
        self.processes.retain(|process| {
            let is_within = count <= MAX_ENDED && bytes <= MAX_ENDED_BYTES;
            if is_within || !process.is_over() {
                return true;
            }
            count -= 1;
            bytes -= process.output.size();
            false
        });
    }
}
