//! `inspect` with the records in a box directory, and the use that a manager makes of `exit.json`.

#![expect(clippy::unwrap_used, reason = "a failed setup fails the test")]

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use a3s_box_core::box_dir::{EXIT_FILE, KEPT_DISK, RUN_FILE};
use a3s_box_core::event::{EventKind, StopReason};
use a3s_box_core::record::MAX_RECORD_BYTES;
use a3s_box_core::{BoxState, ErrorCode, ExitRecord, RunRecord};
use a3s_box_runtime::{BoxRecord, RecordError, VmError, inspect};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use crate::harness::{ScriptedBox, in_time};

/// A state directory with the box directory `demo`, as a shim leaves it.
struct LeftBox {
    dir: TempDir,
}

impl LeftBox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("demo")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("demo").join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn lock(&self) -> File {
        let file = File::open(self.path(RUN_FILE)).unwrap();
        file.try_lock().unwrap();
        file
    }

    fn inspect(&self) -> Result<BoxRecord, RecordError> {
        inspect(self.dir.path(), "demo")
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

/// Returns the run record of a shim whose pid is the one of this process.
fn run() -> RunRecord {
    RunRecord {
        v: 1,
        box_id: "demo".to_owned(),
        version: "0.1.0".to_owned(),
        pid: std::process::id(),
        start_time_ticks: 1,
        boot_id: boot_id(),
        started: "2026-01-31T09:00:00.000Z".to_owned(),
    }
}

/// Returns the exit record of the same shim.
fn exit() -> ExitRecord {
    ExitRecord {
        v: 1,
        box_id: "demo".to_owned(),
        pid: std::process::id(),
        boot_id: boot_id(),
        ended: "2026-01-31T09:00:00.000Z".to_owned(),
        reason: StopReason::Exited,
        exit_code: 3,
        signal: None,
        uptime_ms: 5,
        stop: None,
        error: None,
    }
}

fn json(record: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(record).unwrap()
}

#[test]
fn box_without_a_record_is_absent() {
    let dir = tempfile::tempdir().unwrap();
    for id in ["demo", "", "..", "a/b"] {
        assert_eq!(inspect(dir.path(), id).unwrap(), BoxRecord::Absent, "{id}");
    }
    let left = LeftBox::new();
    left.write("lock", "");
    assert_eq!(left.inspect().unwrap(), BoxRecord::Absent);
    assert!(!left.path(RUN_FILE).exists(), "the reader makes no file");
}

#[test]
fn kept_disk_alone_is_no_box_and_changes_no_state() {
    let left = LeftBox::new();
    left.write(KEPT_DISK, "x");
    assert_eq!(left.inspect().unwrap(), BoxRecord::Absent);
    left.write(RUN_FILE, json(&run()));
    left.write(EXIT_FILE, json(&exit()));
    assert_eq!(left.inspect().unwrap(), BoxRecord::Ended(exit()));
}

#[test]
fn locked_box_is_live_even_with_an_exit_record() {
    let left = LeftBox::new();
    left.write(RUN_FILE, json(&run()));
    left.write(EXIT_FILE, json(&exit()));
    let lock = left.lock();
    assert_eq!(left.inspect().unwrap(), BoxRecord::Live(run()));
    drop(lock);
    assert_eq!(left.inspect().unwrap(), BoxRecord::Ended(exit()));
    left.lock();
}

#[test]
fn exit_record_that_is_not_complete_or_of_another_run_counts_as_missing() {
    let left = LeftBox::new();
    left.write(RUN_FILE, json(&run()));
    assert_eq!(left.inspect().unwrap(), BoxRecord::Lost(Some(run())));
    let whole = json(&exit());
    for length in 0..whole.len() {
        left.write(EXIT_FILE, &whole[..length]);
        assert_eq!(left.inspect().unwrap(), BoxRecord::Lost(Some(run())), "{length}");
    }
    let huge = [whole.clone(), vec![b' '; MAX_RECORD_BYTES]].concat();
    let others = [
        json(&ExitRecord { v: 2, ..exit() }),
        json(&ExitRecord { box_id: "other".to_owned(), ..exit() }),
        json(&ExitRecord { pid: 1, ..exit() }),
        json(&ExitRecord { boot_id: "other".to_owned(), ..exit() }),
        [whole.clone(), whole.clone()].concat(),
        "[".repeat(MAX_RECORD_BYTES).into_bytes(),
        huge,
    ];
    for other in others {
        left.write(EXIT_FILE, &other);
        let found = left.inspect().unwrap();
        assert_eq!(found, BoxRecord::Lost(Some(run())), "{}", String::from_utf8_lossy(&other));
    }
    let later = [whole.trim_ascii_end().strip_suffix(b"}").unwrap(), br#","later":1}"#].concat();
    left.write(EXIT_FILE, later);
    assert_eq!(left.inspect().unwrap(), BoxRecord::Ended(exit()));
}

#[test]
fn incomplete_run_record_does_not_hide_the_exit_record() {
    let left = LeftBox::new();
    left.write(RUN_FILE, "{\"v\":1,");
    left.write(EXIT_FILE, json(&exit()));
    assert_eq!(left.inspect().unwrap(), BoxRecord::Ended(exit()));
    fs::remove_file(left.path(EXIT_FILE)).unwrap();
    assert_eq!(left.inspect().unwrap(), BoxRecord::Lost(None));
}

#[test]
fn record_that_is_no_regular_file_is_an_error_and_not_followed() {
    for name in [RUN_FILE, EXIT_FILE] {
        let left = LeftBox::new();
        left.write(RUN_FILE, json(&run()));
        left.write("precious", json(&exit()));
        let path = left.path(name);
        let replace_by = |make: &dyn Fn(&Path)| {
            // `exit.json` does not exist before the first replacement.
            let _absent = fs::remove_file(&path);
            make(&path);
        };
        replace_by(&|path| symlink(left.path("precious"), path).unwrap());
        let error = left.inspect().unwrap_err();
        assert_eq!(error.to_string(), format!("cannot open `{}`", path.display()));
        replace_by(&|path| mkfifo(path, Mode::S_IRWXU).unwrap());
        let error = left.inspect().unwrap_err();
        assert_eq!(error.to_string(), format!("`{}` is not a regular file", path.display()));
    }
    let dir = tempfile::tempdir().unwrap();
    let left = LeftBox::new();
    symlink(left.dir.path().join("demo"), dir.path().join("demo")).unwrap();
    assert!(matches!(inspect(dir.path(), "demo"), Err(RecordError::Host(_))));
}

#[test]
fn inspect_waits_for_a_record_that_a_starting_shim_writes() {
    let left = LeftBox::new();
    // A starting shim has the lock while the file still has the record of an ended process, and
    // then while it is empty.
    let old = RunRecord { pid: u32::MAX, ..run() };
    for earlier in [json(&old), Vec::new()] {
        left.write(RUN_FILE, earlier);
        let lock = left.lock();
        let path = left.path(RUN_FILE);
        let writing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            fs::write(path, json(&run())).unwrap();
        });
        assert_eq!(left.inspect().unwrap(), BoxRecord::Live(run()));
        writing.join().unwrap();
        drop(lock);
    }
    left.write(RUN_FILE, "");
    let _lock = left.lock();
    let start = Instant::now();
    let error = left.inspect().unwrap_err();
    assert_eq!(error.to_string(), "box `demo` is being started or removed");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// Returns a script that leaves an `exit.json` of process `pid`.
fn leave_exit_record(pid: &str) -> String {
    let record = json(&ExitRecord {
        reason: StopReason::Unhealthy,
        exit_code: 125,
        error: Some(a3s_box_core::ErrorReport {
            code: ErrorCode::Unhealthy,
            message: "m".to_owned(),
            causes: Vec::new(),
            hint: None,
            retryable: false,
        }),
        pid: 4711,
        ..exit()
    });
    let record = String::from_utf8(record).unwrap();
    let (before, after) = record.split_once("4711").unwrap();
    format!(
        r#"mkdir -p "$dir/state/demo"; echo '{before}'{pid}'{after}' >"$dir/state/demo/exit.json""#
    )
}

#[tokio::test]
async fn ending_comes_from_the_exit_record_of_a_shim_without_a_terminal_event() {
    let error = r#"event error '"code":"unhealthy","message":"m","causes":[],"retryable":false'"#;
    for emitted in ["", error] {
        let script = format!("started; ready; {}; {emitted}\nkill -9 $$", leave_exit_record("$$"));
        let demo = ScriptedBox::new(&script);
        in_time(demo.vm.boot()).await.unwrap();
        let outcome = in_time(demo.vm.wait()).await;
        assert_eq!((outcome.reason, outcome.exit_code), (StopReason::Unhealthy, Some(125)));
        assert_eq!(outcome.to_string(), "unhealthy, exit status 125");
        let events = demo.events();
        let [.., EventKind::StateChanged { .. }, EventKind::Error(report), stopped] = &events[..]
        else {
            panic!("{events:#?}")
        };
        assert_eq!(report.code, ErrorCode::Unhealthy);
        assert!(matches!(stopped, EventKind::BoxStopped { uptime_ms: 5, .. }), "{stopped:?}");
        assert_eq!(demo.sequence_numbers(), [0, 1, 2, 3]);
        assert_eq!(demo.vm.state(), BoxState::Stopped);
    }
}

#[tokio::test]
async fn exit_record_of_another_process_is_ignored() {
    let demo = ScriptedBox::new(&format!("started; {}; kill -9 $$", leave_exit_record("1")));
    let error = in_time(demo.vm.boot()).await.unwrap_err();
    let VmError::BootFailed { report } = error else { panic!("{error}") };
    assert_eq!(report.code, ErrorCode::ShimLost);
    assert_eq!(in_time(demo.vm.wait()).await.reason, StopReason::Killed);
}

#[tokio::test]
async fn shim_gets_the_pid_of_the_manager() {
    let demo = ScriptedBox::new(r#"echo "$@" >"$dir/stdin"; exited 0"#);
    in_time(demo.vm.boot()).await.unwrap();
    let arguments = String::from_utf8(demo.stdin()).unwrap();
    assert_eq!(arguments, format!("--parent {}\n", std::process::id()));
}
