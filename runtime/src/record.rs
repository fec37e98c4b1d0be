//! What the state directory says about a box, for a supervisor that was not there.
//!
//! | `run.json` | `exit.json` | the box is |
//! |---|---|---|
//! | none | | absent |
//! | locked | | live |
//! | not locked | whole, of the same process | ended |
//! | not locked | anything else | lost: its shim was killed, or its host was |
//!
//! A reader takes the lock, too, shared and for as long as it reads two small files, so that no start
//! comes between them. Starts and removals wait for that long.

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

/// How long a record may be in the making. A shim writes it some microseconds after it has the lock;
/// the rest is for a busy host.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(100);

/// How often it is looked at meanwhile.
const SETTLE_RETRY: Duration = Duration::from_millis(2);

/// What is known about a box from its state directory alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoxRecord {
    /// There is none of that id, or it was destroyed.
    Absent,
    /// A shim holds the directory. Before it signals the process, a supervisor should compare the start
    /// time with the process's: between the two it may end, and its pid become another's.
    Live(RunRecord),
    /// The shim ended by itself, and said how.
    Ended(ExitRecord),
    /// The shim was killed, or its host was. Absent: before it could say which process it is.
    Lost(Option<RunRecord>),
}

/// The records of a box cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Something else stands where the file should be.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// Where the file should be.
        path: PathBuf,
    },
    /// The directory is locked, and does not say by whom. Asking again helps.
    #[error("box `{id}` is being started or removed")]
    Unsettled {
        /// Id of the box.
        id: String,
    },
    /// The host refused a call.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Says how box `id` is, from its directory in `state_dir`. Takes some microseconds, and up to 100 ms
/// while the box is being started or removed, or when its process cannot be seen from here.
///
/// # Errors
///
/// [`RecordError`]. A record that is torn, or is none, is no error: it counts as none.
pub fn inspect(state_dir: &Path, id: &str) -> Result<BoxRecord, RecordError> {
    let Some(directory) = directory::find(state_dir, id) else { return Ok(BoxRecord::Absent) };
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let look = look(&directory, id)?;
        if look.is_settled || Instant::now() >= deadline {
            return look.found.ok_or_else(|| RecordError::Unsettled { id: id.to_owned() });
        }
        thread::sleep(SETTLE_RETRY);
    }
}

/// The `exit.json` that process `pid` left in `directory` during this boot of the host, if it is whole.
pub(crate) fn left_by(directory: &BoxDir, id: &str, pid: u32) -> Option<ExitRecord> {
    let opened = Opened::new(directory).ok()??;
    let record = opened.exit(id).ok()??;
    (record.pid == pid && record.boot_id == boot_id()?).then_some(record)
}

/// What one look found.
struct Look {
    found: Option<BoxRecord>,
    /// Whether it will be the same in a moment, as far as one can see.
    is_settled: bool,
}

impl Look {
    fn settled(found: BoxRecord) -> Self {
        Self { found: Some(found), is_settled: true }
    }
}

fn look(directory: &BoxDir, id: &str) -> Result<Look, RecordError> {
    let Some(opened) = Opened::new(directory)? else { return Ok(Look::settled(BoxRecord::Absent)) };
    let Some(mut run_file) = opened.file(RUN_FILE)? else {
        return Ok(Look::settled(BoxRecord::Absent));
    };
    let lock = run_file.try_lock_shared();
    let run = read(&mut run_file).map_err(opened.failed("read", RUN_FILE))?;
    let run = run.and_then(|json| parse_run(&json, id));
    match lock {
        Err(TryLockError::WouldBlock) => {
            // What a killed shim left is there until the next one has written its own.
            let is_settled = run.as_ref().is_some_and(is_running);
            Ok(Look { found: run.map(BoxRecord::Live), is_settled })
        }
        Err(TryLockError::Error(error)) => Err(opened.failed("lock", RUN_FILE)(error)),
        Ok(()) => {
            let metadata = run_file.metadata().map_err(opened.failed("look at", RUN_FILE))?;
            if metadata.nlink() == 0 {
                // Removed since it was opened; there may be another one by now.
                return Ok(Look { found: Some(BoxRecord::Absent), is_settled: false });
            }
            let is_of_run = |exit: &ExitRecord| {
                run.as_ref().is_none_or(|run| (run.pid, &run.boot_id) == (exit.pid, &exit.boot_id))
            };
            Ok(match opened.exit(id)?.filter(is_of_run) {
                Some(exit) => Look::settled(BoxRecord::Ended(exit)),
                // A shim that begins makes the file, then locks it.
                None => Look { is_settled: run.is_some(), found: Some(BoxRecord::Lost(run)) },
            })
        }
    }
}

/// The directory of a box, open: all is read from one and the same.
struct Opened<'a> {
    path: &'a Path,
    fd: OwnedFd,
}

impl<'a> Opened<'a> {
    fn new(directory: &'a BoxDir) -> Result<Option<Self>, RecordError> {
        let path = directory.path();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { path, fd })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(HostError::at("open", path)(errno).into()),
        }
    }

    fn file(&self, name: &str) -> Result<Option<File>, RecordError> {
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

/// What is in the file; none if that is longer than any record.
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

/// Whether a process with the record's pid can be seen. Not whether the box is live: only the lock
/// says that.
fn is_running(run: &RunRecord) -> bool {
    Path::new("/proc").join(run.pid.to_string()).exists()
        && boot_id().is_some_and(|boot_id| boot_id == run.boot_id)
}

fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}
