//! The records in the state directory during the life of a box and after each kind of ending.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use a3s_box_core::box_dir::{CONSOLE, EXIT_FILE, ROOT, RUN_FILE};
use a3s_box_core::config::RootKind;
use a3s_box_core::event::{EventKind, StopReason};
use a3s_box_core::{ErrorCode, ExitRecord, RunRecord};
use a3s_box_runtime::{BoxRecord, RecordError, VmError, inspect};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{FakeBox, Host, READY, soon, until};
use crate::scratch::ROOT_KINDS;

/// Script of a guest whose workload exits with 3.
const EXITS: [&str; 7] =
    ["connect", "hello", "started=7", "exited=3", "drained", "wait-ack", "exit=0"];

/// Script of a guest whose workload ends by the stop signal.
const STOPS: [&str; 8] =
    ["connect", "hello", "serve", "started=7", "wait-stop", "signaled=15", "drained", "wait-ack"];

/// Returns the run record. Panics unless the box is live.
fn live(record: BoxRecord) -> RunRecord {
    let BoxRecord::Live(run) = record else { panic!("{record:?}") };
    run
}

/// Returns the exit record. Panics unless it agrees with the events of the box.
fn ended(host: &Host, demo: &FakeBox) -> ExitRecord {
    let record = host.record();
    let BoxRecord::Ended(exit) = record else { panic!("{record:?}") };
    let events = demo.events();
    let Some(&EventKind::BoxStopped { reason, exit_code, signal, uptime_ms, .. }) = events.last()
    else {
        panic!("{events:#?}")
    };
    assert_eq!((exit.reason, Some(exit.exit_code), exit.signal), (reason, exit_code, signal));
    // The record is written before the event, so the two times differ.
    assert!(exit.uptime_ms.abs_diff(uptime_ms) < 1000, "{exit:?}");
    let error = events.iter().find_map(|kind| match kind {
        EventKind::Error(report) => Some(report),
        _ => None,
    });
    assert_eq!(exit.error.as_ref(), error);
    assert_eq!((exit.v, exit.box_id.as_str(), exit.pid), (1, "demo", demo.shim_pid()));
    exit
}

/// Returns the start time of a process in clock ticks, the 22nd field of `/proc/<pid>/stat`
/// (proc(5)).
fn start_time_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The second field, a name in parentheses, may contain spaces. The third one follows it.
    let fields = stat.split(") ").last().unwrap();
    fields.split(' ').nth(19).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_live_box_records_its_process_and_a_stopped_box_its_ending() {
    let host = Host::new(RootKind::Block);
    assert_eq!(host.record(), BoxRecord::Absent);
    let demo = host.new_box(&[&STOPS[..], &["exit=0"]].concat());
    soon(demo.vm.boot()).await.unwrap();
    let run = live(host.record());
    let pid = demo.shim_pid();
    assert_eq!((run.pid, run.start_time_ticks), (pid, start_time_ticks(pid)));
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!((run.boot_id.as_str(), run.box_id.as_str()), (boot_id.trim(), "demo"));
    assert_eq!((run.started.len(), run.version.as_str()), (24, env!("CARGO_PKG_VERSION")));
    demo.send(Signal::SIGTERM);
    soon(demo.vm.wait()).await;
    let exit = ended(&host, &demo);
    assert_eq!((exit.reason, exit.exit_code), (StopReason::Stopped, 143));
    assert_eq!((exit.signal, exit.boot_id), (Some(15), run.boot_id));
    soon(demo.vm.destroy()).await.unwrap();
    assert_eq!(host.record(), BoxRecord::Absent);
}

#[tokio::test]
async fn records_the_exit_status_of_the_workload() {
    let host = Host::new(RootKind::Block);
    let demo = host.new_box(&EXITS);
    soon(demo.vm.boot()).await.unwrap();
    soon(demo.vm.wait()).await;
    let exit = ended(&host, &demo);
    assert_eq!((exit.reason, exit.exit_code, exit.error), (StopReason::Exited, 3, None));
    // The field names are repeated here, so that the test fails if a change of the types changes
    // the format.
    let fields = |name| {
        let json = fs::read(demo.state(name)).unwrap();
        let record: serde_json::Map<String, Value> = serde_json::from_slice(&json).unwrap();
        record.keys().cloned().collect::<Vec<_>>().join(" ")
    };
    let run = "boot_id box_id pid start_time_ticks started v version";
    let exit = "boot_id box_id ended exit_code pid reason uptime_ms v";
    assert_eq!((fields(RUN_FILE).as_str(), fields(EXIT_FILE).as_str()), (run, exit));
}

#[tokio::test]
async fn records_and_console_outlive_a_box() {
    for (kind, mount_point) in [(RootKind::Block, None), (RootKind::Shared, Some(ROOT))] {
        let host = Host::new(kind);
        let demo = host.new_box(&EXITS);
        soon(demo.vm.boot()).await.unwrap();
        soon(demo.vm.wait()).await;
        ended(&host, &demo);
        let mut left: Vec<_> = fs::read_dir(demo.state(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort_unstable();
        let mut expected: Vec<_> =
            [CONSOLE, EXIT_FILE, RUN_FILE].into_iter().chain(mount_point).collect();
        expected.sort_unstable();
        assert_eq!(left, expected, "{kind:?}");
    }
}

#[tokio::test]
async fn records_a_failed_start_if_the_box_directory_exists() {
    let host = Host::new(RootKind::Block);
    let mut config = host.config(&EXITS);
    config["image"] = json!({"layout": "/nowhere"});
    let demo = host.box_of(&config);
    let error = soon(demo.vm.boot()).await.unwrap_err();
    let VmError::BootFailed { report } = error else { panic!("{error}") };
    assert_eq!(ended(&host, &demo).error, Some(report));

    let host = Host::new(RootKind::Block);
    config["paths"]["state_dir"] = json!(host.state_dir());
    config["paths"]["guest"] = json!("/nowhere");
    let demo = host.box_of(&config);
    soon(demo.vm.boot()).await.unwrap_err();
    assert_eq!(host.record(), BoxRecord::Absent);
}

#[tokio::test]
async fn a_killed_box_is_lost_and_the_next_box_of_its_id_has_its_own_records() {
    let host = Host::new(RootKind::Block);
    let first = host.new_box(&EXITS);
    soon(first.vm.boot()).await.unwrap();
    soon(first.vm.wait()).await;
    ended(&host, &first);

    let second = host.new_box(&READY);
    soon(second.vm.boot()).await.unwrap();
    let run = live(host.record());
    assert_eq!(run.pid, second.shim_pid());
    assert!(!second.state(EXIT_FILE).exists(), "the exit record of the first box is still there");
    second.send(Signal::SIGKILL);
    soon(second.vm.wait()).await;
    // A fake guest that was forked a moment ago may still have a copy of the lock.
    until(|| !matches!(host.record(), BoxRecord::Live(_))).await;
    assert_eq!(host.record(), BoxRecord::Lost(Some(run)));

    let third = host.new_box(&EXITS);
    soon(third.vm.boot()).await.unwrap();
    soon(third.vm.wait()).await;
    ended(&host, &third);
}

#[tokio::test]
async fn a_second_box_with_a_live_id_changes_no_record() {
    let host = Host::new(RootKind::Block);
    let first = host.new_box(&READY);
    soon(first.vm.boot()).await.unwrap();
    let run = live(host.record());
    let second = host.new_box(&READY);
    let error = soon(second.vm.boot()).await.unwrap_err();
    let VmError::BootFailed { report } = error else { panic!("{error}") };
    assert_eq!(report.code, ErrorCode::IdInUse);
    soon(second.vm.destroy()).await.unwrap();
    assert_eq!(host.record(), BoxRecord::Live(run));
}

#[tokio::test]
async fn a_full_disk_does_not_prevent_the_exit_record() {
    // The mounts of this test stay in a mount namespace of its own.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    for kind in ROOT_KINDS {
        let host = Host::new(kind);
        let state_dir = host.state_dir();
        fs::create_dir(&state_dir).unwrap();
        let options = Some("size=4m,mode=700");
        mount(Some("test"), &state_dir, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        let mut config = host.config(&[&STOPS[..], &["exit=0"]].concat());
        config["resources"] = json!({"disk_reserve_mib": 0});
        let demo = host.box_of(&config);
        soon(demo.vm.boot()).await.unwrap();
        let mut big = fs::File::create(state_dir.join("big")).unwrap();
        let error = (0..).find_map(|_| big.write_all(&[1; 4096]).err()).unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        demo.send(Signal::SIGTERM);
        soon(demo.vm.wait()).await;
        assert_eq!(ended(&host, &demo).exit_code, 143, "{kind:?}");
    }
}

#[test]
fn the_exit_record_exists_before_the_event_box_stopped() {
    let host = Host::new(RootKind::Block);
    for (script, change) in [(&EXITS[..], None), (&[], Some(json!({"layout": "/nowhere"})))] {
        for _ in 0..10 {
            let mut config = host.config(script);
            if let Some(image) = &change {
                config["image"] = image.clone();
            }
            let mut child = Command::new(host.shim())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let stopped = lines.find_map(|line| {
                let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
                (event["type"] == "box.stopped").then_some(event)
            });
            // The record is read before the process is waited for.
            let record = fs::read(host.state_dir().join("demo").join(EXIT_FILE)).unwrap();
            let record: ExitRecord = serde_json::from_slice(&record).unwrap();
            assert_eq!(record.pid, child.id());
            assert_eq!(stopped.unwrap()["exit_code"], record.exit_code);
            child.wait().unwrap();
        }
    }
}

#[test]
fn concurrent_readers_prevent_no_start_and_see_the_states_in_order() {
    let host = Host::new(RootKind::Block);
    let state_dir = host.state_dir();
    let is_over = AtomicBool::new(false);
    let read = |seen: &mut Vec<(u32, bool)>| {
        let (pid, is_live) = match inspect(&state_dir, "demo") {
            Ok(BoxRecord::Live(run)) => (run.pid, true),
            Ok(BoxRecord::Ended(exit)) => (exit.pid, false),
            // `Absent` before the first start, and `Unsettled` while a starting shim has locked the
            // directory and not written its record yet.
            Ok(BoxRecord::Absent) | Err(RecordError::Unsettled { .. }) => return,
            other => panic!("{other:?}"),
        };
        if seen.last() != Some(&(pid, is_live)) {
            seen.push((pid, is_live));
        }
    };
    let (pids, seen) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        read(&mut seen);
                        // Up to 5,000 reads a second, as by a supervisor of hundreds of boxes.
                        std::thread::sleep(std::time::Duration::from_micros(200));
                    }
                    seen
                })
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut pids = Vec::new();
        // A panic must not end the scope before the readers are stopped, or it would wait forever.
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..20 {
                let demo = host.new_box(&EXITS);
                runtime.block_on(soon(demo.vm.boot())).unwrap();
                runtime.block_on(soon(demo.vm.wait()));
                pids.push(demo.shim_pid());
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        let seen: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        run.unwrap();
        (pids, seen)
    });
    for seen in seen {
        let order: Vec<(u32, bool)> =
            pids.iter().flat_map(|pid| [(*pid, true), (*pid, false)]).collect();
        let places: Vec<usize> =
            seen.iter().map(|one| order.iter().position(|other| one == other).unwrap()).collect();
        assert!(places.is_sorted(), "{seen:?}");
        assert!(places.len() > pids.len(), "{} states of {} boxes", places.len(), pids.len());
    }
}
