//! [`inspect`]: the state of a box, read from its box directory alone.
//!
//! A supervisor that has restarted finds its boxes by these rules:
//!
//! | `run.json` | `exit.json` | the box is |
//! |---|---|---|
//! | missing | any | absent |
//! | locked | any | live |
//! | not locked | complete, of the same process | ended |
//! | not locked | missing or not complete | lost: its shim was killed, or the host went down |
//!
//! The reader takes a shared lock while it reads the two small files, so that no shim starts
//! between the two reads. Starts and removals wait for this time.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use a3s_box_core::box_dir::{EXIT_FILE, RUN_FILE};
use a3s_box_core::record::{MAX_RECORD_BYTES, RECORD_VERSION};
use a3s_box_core::{BoxDir, ExitRecord, RunRecord};
use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::directory;

/// Time limit for a record that a starting shim has not written yet. The shim writes it some
/// microseconds after it has taken the lock. The rest is a margin for a busy host.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(100);

/// Time between two reads of the directory meanwhile.
const SETTLE_RETRY: Duration = Duration::from_millis(2);

/// The state of a box, as its box directory shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoxRecord {
    /// There is no box of this id: it has never started, or it was destroyed.
    Absent,
    /// A live shim holds the lock of the directory.
    ///
    /// Before a supervisor signals the process, it should compare `start_time_ticks` with
    /// `/proc/<pid>/stat`. The shim may have ended since, and its pid may belong to another
    /// process.
    Live(RunRecord),
    /// The shim ended by itself and left an exit record.
    Ended(ExitRecord),
    /// The shim was killed, or the host went down. The run record is `None` if this happened before
    /// the shim had written it.
    Lost(Option<RunRecord>),
}

/// Why the records of a box could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A record is a directory, a FIFO or another special file.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// Path of the record.
        path: PathBuf,
    },
    /// The directory is locked, but has no run record for now. The caller may call again.
    #[error("box `{id}` is being started or removed")]
    Unsettled {
        /// Id of the box.
        id: String,
    },
    /// The host refused a call. `open` fails with `ELOOP` if a record is a symlink.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Returns the state of the box `id`, read from its box directory in `state_dir`
/// (`paths.state_dir` of its config).
///
/// The call takes some microseconds. It takes up to 100 ms while the box starts or is removed, or
/// if its process is not visible in the pid namespace of the caller.
///
/// ```
/// use std::fs;
///
/// use a3s_box_core::event::StopReason;
/// use a3s_box_runtime::{BoxRecord, inspect};
///
/// let state_dir = tempfile::tempdir()?;
/// assert_eq!(inspect(state_dir.path(), "demo")?, BoxRecord::Absent);
///
/// // These are the files of a shim that has ended: `run.json` is not locked any more.
/// let box_dir = state_dir.path().join("demo");
/// fs::create_dir(&box_dir)?;
/// fs::write(
///     box_dir.join("run.json"),
///     r#"{"v":1,"box_id":"demo","version":"0.1.0","pid":4711,"start_time_ticks":9,"boot_id":"b",
///         "started":"2026-01-31T09:00:00.000Z"}"#,
/// )?;
/// fs::write(
///     box_dir.join("exit.json"),
///     r#"{"v":1,"box_id":"demo","pid":4711,"boot_id":"b","ended":"2026-01-31T09:00:05.000Z",
///         "reason":"exited","exit_code":3,"uptime_ms":5000}"#,
/// )?;
/// let BoxRecord::Ended(exit) = inspect(state_dir.path(), "demo")? else { panic!("not ended") };
/// assert_eq!((exit.reason, exit.exit_code), (StopReason::Exited, 3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`RecordError`]. A record that is not complete JSON, or of another box or version, is no error:
/// it counts as missing.
pub fn inspect(state_dir: &Path, id: &str) -> Result<BoxRecord, RecordError> {
    let Some(directory) = directory::find(state_dir, id) else { return Ok(BoxRecord::Absent) };
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let snapshot = read_once(&directory, id)?;
        if snapshot.is_settled || Instant::now() >= deadline {
            return snapshot.found.ok_or_else(|| RecordError::Unsettled { id: id.to_owned() });
        }
        thread::sleep(SETTLE_RETRY);
    }
}

/// Returns the complete exit record that process `pid` has left in `directory` in this boot of the
/// host.
pub(crate) fn exit_record_of(directory: &BoxDir, id: &str, pid: u32) -> Option<ExitRecord> {
    let opened = Opened::new(directory).ok()??;
    let record = opened.exit(id).ok()??;
    // A pid identifies a process only within one boot of the host.
    (record.pid == pid && record.boot_id == boot_id()?).then_some(record)
}

/// The result of one read of a box directory.
struct Snapshot {
    /// `None` if the directory is locked and has no run record.
    found: Option<BoxRecord>,
    /// Whether the state is final for now. It is not while a shim starts or a directory is removed.
    is_settled: bool,
}

impl Snapshot {
    fn settled(found: BoxRecord) -> Self {
        Self { found: Some(found), is_settled: true }
    }
}

/// Reads the directory once.
fn read_once(directory: &BoxDir, id: &str) -> Result<Snapshot, RecordError> {
    let Some(opened) = Opened::new(directory)? else {
        return Ok(Snapshot::settled(BoxRecord::Absent));
    };
    let Some(mut run_file) = opened.file(RUN_FILE)? else {
        return Ok(Snapshot::settled(BoxRecord::Absent));
    };
    let lock = run_file.try_lock_shared();
    let run = read(&mut run_file).map_err(opened.failed("read", RUN_FILE))?;
    let run = run.and_then(|json| parse_run(&json, id));
    match lock {
        Err(TryLockError::WouldBlock) => {
            // A starting shim has the lock before it has written its record. Until then the file
            // has the record of an earlier shim, whose process does not run any more.
            let is_settled = run.as_ref().is_some_and(is_running);
            Ok(Snapshot { found: run.map(BoxRecord::Live), is_settled })
        }
        Err(TryLockError::Error(error)) => Err(opened.failed("lock", RUN_FILE)(error)),
        Ok(()) => {
            let metadata = run_file.metadata().map_err(opened.failed("look at", RUN_FILE))?;
            if metadata.nlink() == 0 {
                // The file was removed after it was opened, and a new shim may have made another
                // one.
                return Ok(Snapshot { found: Some(BoxRecord::Absent), is_settled: false });
            }
            // A crash of the host can leave an incomplete run record. It must not hide the exit
            // record.
            let is_of_run = |exit: &ExitRecord| {
                run.as_ref().is_none_or(|run| (run.pid, &run.boot_id) == (exit.pid, &exit.boot_id))
            };
            Ok(match opened.exit(id)?.filter(is_of_run) {
                Some(exit) => Snapshot::settled(BoxRecord::Ended(exit)),
                // Without a run record, a starting shim may have made the file and not locked it
                // yet.
                None => Snapshot { is_settled: run.is_some(), found: Some(BoxRecord::Lost(run)) },
            })
        }
    }
}

/// An open box directory. Both records are opened relative to its fd, so that they come from the
/// same directory even if it is replaced meanwhile.
struct Opened<'a> {
    path: &'a Path,
    fd: OwnedFd,
}

impl<'a> Opened<'a> {
    /// Opens the directory. Returns `None` if it does not exist.
    fn new(directory: &'a BoxDir) -> Result<Option<Self>, RecordError> {
        let path = directory.path();
        // With O_NOFOLLOW, a symlink in the place of the directory is refused.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { path, fd })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(HostError::at("open", path)(errno).into()),
        }
    }

    /// Opens a regular file in the directory. Returns `None` if it does not exist.
    fn file(&self, name: &str) -> Result<Option<File>, RecordError> {
        // With O_NONBLOCK, the call does not wait for a writer if the file is a FIFO.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(self.failed("open", name)(errno.into())),
        };
        if !file.metadata().map_err(self.failed("look at", name))?.is_file() {
            return Err(RecordError::NotAFile { path: self.path.join(name) });
        }
        Ok(Some(file))
    }

    /// Reads the exit record. Returns `None` if it is missing or not complete.
    fn exit(&self, id: &str) -> Result<Option<ExitRecord>, RecordError> {
        let Some(mut file) = self.file(EXIT_FILE)? else { return Ok(None) };
        let json = read(&mut file).map_err(self.failed("read", EXIT_FILE))?;
        Ok(json.and_then(|json| parse_exit(&json, id)))
    }

    fn failed(&self, action: &'static str, name: &str) -> impl FnOnce(io::Error) -> RecordError {
        let path = self.path.join(name);
        move |error| HostError::at(action, &path)(error).into()
    }
}

/// Returns the content of the file, or `None` if it is longer than [`MAX_RECORD_BYTES`].
fn read(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    let mut json = Vec::new();
    file.take(MAX_RECORD_BYTES as u64 + 1).read_to_end(&mut json)?;
    Ok((json.len() <= MAX_RECORD_BYTES).then_some(json))
}

fn parse_run(json: &[u8], id: &str) -> Option<RunRecord> {
    let record: RunRecord = serde_json::from_slice(json).ok()?;
    (record.v == RECORD_VERSION && record.box_id == id).then_some(record)
}

fn parse_exit(json: &[u8], id: &str) -> Option<ExitRecord> {
    let record: ExitRecord = serde_json::from_slice(json).ok()?;
    (record.v == RECORD_VERSION && record.box_id == id).then_some(record)
}

/// Returns whether a process with the pid of the record is visible. This does not prove that the
/// box is live: only the lock does.
fn is_running(run: &RunRecord) -> bool {
    Path::new("/proc").join(run.pid.to_string()).exists()
        && boot_id().is_some_and(|boot_id| boot_id == run.boot_id)
}

/// Returns the id of this boot of the host.
fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}
