//! The two records in the box directory: the process of the box, and its ending.
//!
//! ```text
//!  run.json        written in place, because its inode has the lock, and before a guest exists
//!  exit.json.new   created at the start, with reserved space; at the end it is renamed to
//!  exit.json
//! ```
//!
//! At the end of a box the disk can be full and no fd available, because a guest can cause both. So
//! the fds and the space for the exit record are acquired at the start.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use a3s_box_core::box_dir::{EXIT_DRAFT, EXIT_FILE};
use a3s_box_core::event::StopReport;
use a3s_box_core::record::{MAX_RECORD_BYTES, RECORD_VERSION};
use a3s_box_core::{ErrorReport, ExitRecord, RunRecord};
use nix::fcntl::{FallocateFlags, OFlag, fallocate, renameat};

use crate::ending::Ending;
use crate::host::process::stat_field;

/// Space on the disk that is reserved for the exit record. It is one block, which suffices for each
/// record without the causes of an error.
const RESERVED_BYTES: i64 = 4096;

/// Identity of this process, which no other process of this host has or had.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pid: u32,
    start_time_ticks: u64,
    boot_id: String,
}

impl Process {
    /// Reads the identity of this process from `/proc`.
    pub(crate) fn this() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let start_time_ticks =
            start_time_ticks(&stat).ok_or_else(|| io::Error::other("no start time in its stat"))?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { pid: std::process::id(), start_time_ticks, boot_id })
    }

    /// Returns the run record of the box that this process runs.
    pub(crate) fn run_record(&self, box_id: &str) -> RunRecord {
        RunRecord {
            v: RECORD_VERSION,
            box_id: box_id.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: self.pid,
            start_time_ticks: self.start_time_ticks,
            boot_id: self.boot_id.clone(),
            started: now(),
        }
    }
}

fn start_time_ticks(stat: &str) -> Option<u64> {
    stat_field(stat, 22)
}

/// Replaces the content of the locked `run.json` by `record`.
pub(crate) fn write_run(file: &File, record: &RunRecord) -> io::Result<()> {
    let bytes = serde_json::to_vec(record)?;
    file.set_len(0)?;
    file.write_all_at(&bytes, 0)
}

/// The prepared exit record of this box. Clones share the file, and the state of its publication.
#[derive(Clone, Debug)]
pub(crate) struct ExitFile(Arc<Prepared>);

#[derive(Debug)]
struct Prepared {
    box_id: String,
    process: Process,
    directory: File,
    draft: File,
    is_published: AtomicBool,
}

impl ExitFile {
    /// Creates the draft in the locked box directory.
    pub(crate) fn prepare(directory: &Path, box_id: &str, process: Process) -> io::Result<Self> {
        let draft = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(directory.join(EXIT_DRAFT))?;
        // Some file systems cannot reserve space. The record can still be written if the disk has
        // space.
        let _best_effort = fallocate(&draft, FallocateFlags::empty(), 0, RESERVED_BYTES);
        // The fd of the directory is for the rename, which then needs no path after the root has
        // changed.
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
            .open(directory)?;
        let (box_id, is_published) = (box_id.to_owned(), AtomicBool::new(false));
        Ok(Self(Arc::new(Prepared { box_id, process, directory, draft, is_published })))
    }

    /// Makes the record visible as `exit.json`. Only the first call has an effect. A failure is
    /// logged and changes nothing else about the end of the box.
    ///
    /// Callers must call it before they emit `box.stopped`, because a supervisor that has read this
    /// event must find the record.
    pub(crate) fn publish(
        &self,
        ending: &Ending,
        uptime: Duration,
        stop: Option<StopReport>,
        error: Option<&ErrorReport>,
    ) {
        if self.0.is_published.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut record = ExitRecord {
            v: RECORD_VERSION,
            box_id: self.0.box_id.clone(),
            pid: self.0.process.pid,
            boot_id: self.0.process.boot_id.clone(),
            ended: now(),
            reason: ending.reason,
            exit_code: ending.exit_code,
            signal: ending.signal,
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            stop,
            error: error.cloned(),
        };
        let mut written = self.write(&record);
        // The causes of an error have no limit in a record. Without them it fits into the reserved
        // space.
        if let (Err(_), Some(report)) = (&written, &mut record.error) {
            report.causes.clear();
            written = self.write(&record);
        }
        if let Err(error) = written {
            tracing::warn!("cannot write `{EXIT_FILE}`: {error}");
        }
    }

    /// Writes the record to the disk, so that it survives a crash of the host. Callers must call it
    /// after they have emitted `box.stopped`, so that a slow disk delays the end of the process
    /// only.
    pub(crate) fn settle(&self) {
        let synced = self.0.draft.sync_all().and_then(|()| self.0.directory.sync_all());
        if let Err(error) = synced {
            tracing::warn!("cannot sync `{EXIT_FILE}`: {error}");
        }
    }

    fn write(&self, record: &ExitRecord) -> io::Result<()> {
        let Prepared { directory, draft, .. } = &*self.0;
        // Readers refuse a longer record, so a record without causes is better than this one.
        let bytes = serde_json::to_vec(record)?;
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        draft.write_all_at(&bytes, 0)?;
        // This drops reserved space behind the record, and the end of an earlier, longer attempt.
        draft.set_len(bytes.len() as u64)?;
        Ok(renameat(directory, EXIT_DRAFT, directory, EXIT_FILE)?)
    }
}

fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use a3s_box_core::ErrorCode;
    use a3s_box_core::event::StopReason;

    use super::*;

    const ENDING: Ending = Ending { reason: StopReason::Failed, exit_code: 125, signal: Some(9) };

    fn prepared(directory: &Path) -> ExitFile {
        ExitFile::prepare(directory, "demo", Process::this().unwrap()).unwrap()
    }

    fn written(directory: &Path) -> ExitRecord {
        serde_json::from_slice(&fs::read(directory.join(EXIT_FILE)).unwrap()).unwrap()
    }

    fn report(cause: &str) -> ErrorReport {
        let error = io::Error::other("m");
        ErrorReport {
            causes: vec![cause.to_owned()],
            ..ErrorReport::new(ErrorCode::Internal, &error)
        }
    }

    #[test]
    fn start_time_is_found_behind_any_name_of_an_executable() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        for name in ["shim", "a b", "a) S 1 2", "((", ") ) )"] {
            assert_eq!(start_time_ticks(&format!("17 ({name}) {rest}\n")), Some(4711), "{name}");
        }
        for stat in [
            "",
            "17 (shim",
            "17 (shim) S 1 2",
            "17 (shim) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x",
        ] {
            assert_eq!(start_time_ticks(stat), None, "{stat}");
        }
    }

    #[test]
    fn record_is_visible_once_published_and_later_calls_have_no_effect() {
        let directory = tempfile::tempdir().unwrap();
        let exit_file = prepared(directory.path());
        assert!(!directory.path().join(EXIT_FILE).exists());
        let error = report("a cause");
        exit_file.clone().publish(&ENDING, Duration::from_millis(1500), None, Some(&error));
        exit_file.publish(&Ending { exit_code: 0, ..ENDING }, Duration::ZERO, None, None);
        exit_file.settle();
        let record = written(directory.path());
        assert_eq!((record.exit_code, record.signal, record.uptime_ms), (125, Some(9), 1500));
        assert_eq!((record.box_id.as_str(), record.pid), ("demo", std::process::id()));
        assert_eq!(record.error, Some(error));
        assert!(!directory.path().join(EXIT_DRAFT).exists());
    }

    #[test]
    fn causes_are_left_out_of_a_record_that_is_too_long() {
        let directory = tempfile::tempdir().unwrap();
        let error = report(&"x".repeat(MAX_RECORD_BYTES));
        prepared(directory.path()).publish(&ENDING, Duration::ZERO, None, Some(&error));
        assert_eq!(written(directory.path()).error, Some(ErrorReport { causes: vec![], ..error }));
    }

    #[test]
    fn record_that_cannot_be_written_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let exit_file = prepared(directory.path());
        fs::remove_file(directory.path().join(EXIT_DRAFT)).unwrap();
        exit_file.publish(&ENDING, Duration::ZERO, None, None);
        exit_file.settle();
        assert!(!directory.path().join(EXIT_FILE).exists());
    }
}
