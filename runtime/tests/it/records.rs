//! What a box's directory says, and what a manager makes of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use a3s_box_core::box_dir::{EXIT_FILE, RUN_FILE};
use a3s_box_core::event::{EventKind, StopReason};
use a3s_box_core::record::MAX_RECORD_BYTES;
use a3s_box_core::{BoxState, ErrorCode, ExitRecord, RunRecord};
use a3s_box_runtime::{BoxRecord, RecordError, VmError, inspect};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use crate::harness::{ScriptedBox, soon};

/// The directory of the box `demo`, as a shim leaves it.
struct Left {
    dir: TempDir,
}

impl Left {
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

/// The record of a shim that is this process.
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
    let left = Left::new();
    left.write("lock", "");
    assert_eq!(left.inspect().unwrap(), BoxRecord::Absent);
    assert!(!left.path(RUN_FILE).exists(), "a reader makes nothing");
}

#[test]
fn locked_directory_is_live_whatever_its_exit_record_says() {
    let left = Left::new();
    left.write(RUN_FILE, json(&run()));
    left.write(EXIT_FILE, json(&exit()));
    let lock = left.lock();
    assert_eq!(left.inspect().unwrap(), BoxRecord::Live(run()));
    drop(lock);
    assert_eq!(left.inspect().unwrap(), BoxRecord::Ended(exit()));
    left.lock();
}

#[test]
fn exit_record_that_is_not_whole_or_not_of_the_run_counts_as_none() {
    let left = Left::new();
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
fn run_record_that_was_torn_by_the_hosts_end_does_not_hide_the_exit() {
    let left = Left::new();
    left.write(RUN_FILE, "{\"v\":1,");
    left.write(EXIT_FILE, json(&exit()));
    assert_eq!(left.inspect().unwrap(), BoxRecord::Ended(exit()));
    fs::remove_file(left.path(EXIT_FILE)).unwrap();
    assert_eq!(left.inspect().unwrap(), BoxRecord::Lost(None));
}

#[test]
fn what_is_no_file_is_an_error_and_not_followed() {
    for name in [RUN_FILE, EXIT_FILE] {
        let left = Left::new();
        left.write(RUN_FILE, json(&run()));
        left.write("precious", json(&exit()));
        let path = left.path(name);
        let replace_by = |make: &dyn Fn(&Path)| {
            // Absent at first, for the second name.
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
    let left = Left::new();
    symlink(left.dir.path().join("demo"), dir.path().join("demo")).unwrap();
    assert!(matches!(inspect(dir.path(), "demo"), Err(RecordError::Host(_))));
}

#[test]
fn record_that_is_in_the_making_is_waited_for() {
    let left = Left::new();
    // Of a process that has ended, and then none, as a shim that starts has it for a moment.
    let old = RunRecord { pid: u32::MAX, ..run() };
    for in_the_way in [json(&old), Vec::new()] {
        left.write(RUN_FILE, in_the_way);
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

/// A script that leaves an `exit.json` of process `pid` and then dies without a word.
fn leave_and_die(pid: &str) -> String {
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
async fn shim_that_recorded_its_end_and_could_not_tell_it_is_believed() {
    let error = r#"event error '"code":"unhealthy","message":"m","causes":[],"retryable":false'"#;
    for told in ["", error] {
        let script = format!("started; ready; {}; {told}\nkill -9 $$", leave_and_die("$$"));
        let demo = ScriptedBox::new(&script);
        soon(demo.vm.boot()).await.unwrap();
        let outcome = soon(demo.vm.wait()).await;
        assert_eq!((outcome.reason, outcome.exit_code), (StopReason::Unhealthy, Some(125)));
        assert_eq!(outcome.to_string(), "unhealthy, exit status 125");
        let events = demo.events();
        let [.., EventKind::StateChanged { .. }, EventKind::Error(report), stopped] = &events[..]
        else {
            panic!("{events:#?}")
        };
        assert_eq!(report.code, ErrorCode::Unhealthy);
        assert!(matches!(stopped, EventKind::BoxStopped { uptime_ms: 5, .. }), "{stopped:?}");
        assert_eq!(demo.numbers(), [0, 1, 2, 3]);
        assert_eq!(demo.vm.state(), BoxState::Stopped);
    }
}

#[tokio::test]
async fn exit_record_of_another_process_is_not_believed() {
    let demo = ScriptedBox::new(&format!("started; {}; kill -9 $$", leave_and_die("1")));
    let error = soon(demo.vm.boot()).await.unwrap_err();
    let VmError::BootFailed { report } = error else { panic!("{error}") };
    assert_eq!(report.code, ErrorCode::ShimLost);
    assert_eq!(soon(demo.vm.wait()).await.reason, StopReason::Killed);
}

#[tokio::test]
async fn shim_is_told_who_starts_it() {
    let demo = ScriptedBox::new(r#"echo "$@" >"$dir/stdin"; exited 0"#);
    soon(demo.vm.boot()).await.unwrap();
    let said = String::from_utf8(demo.stdin()).unwrap();
    assert_eq!(said, format!("--parent {}\n", std::process::id()));
}
