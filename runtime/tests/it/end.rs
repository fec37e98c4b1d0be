//! Shims that end without `box.stopped`, and shims that do not end.

#![expect(clippy::unwrap_used, reason = "a failed setup fails the test")]

use std::time::{Duration, Instant};

use a3s_box_core::event::{EventKind, StopReason};
use a3s_box_core::{BoxState, ErrorCode, ErrorReport};
use a3s_box_runtime::VmError;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::timeout;

use crate::harness::{ScriptedBox, in_time, until};

const SECOND: Duration = Duration::from_secs(1);

/// Returns the error, the reason and the signal of an ending that the manager made. The error comes
/// just before `box.stopped`, which the events contain once.
fn made_ending(demo: &ScriptedBox) -> (ErrorReport, StopReason, Option<u8>) {
    let events = demo.events();
    let ends = events.iter().filter(|kind| matches!(kind, EventKind::BoxStopped { .. }));
    assert_eq!(ends.count(), 1, "{events:#?}");
    let [.., EventKind::Error(report), EventKind::BoxStopped { reason, signal, .. }] = &events[..]
    else {
        panic!("{events:#?}")
    };
    let numbers: Vec<u64> = (0..).take(events.len()).collect();
    assert_eq!(demo.sequence_numbers(), numbers);
    (report.clone(), *reason, *signal)
}

/// Kills the shim of `script`, and checks that the box is Stopped within a second.
async fn check_that_a_killed_box_stops(script: &str) {
    let demo = ScriptedBox::new(script);
    in_time(demo.vm.boot()).await.unwrap();
    kill(Pid::from_raw(demo.shim_pid()), Signal::SIGKILL).unwrap();
    until(SECOND, || demo.vm.state() == BoxState::Stopped).await;
    let outcome = in_time(demo.vm.wait()).await;
    assert_eq!((outcome.reason, outcome.signal), (StopReason::Killed, Some(9)));
    let (report, reason, signal) = made_ending(&demo);
    assert_eq!((report.code, reason, signal), (ErrorCode::ShimLost, StopReason::Killed, Some(9)));
    assert_eq!(report.message, "the shim was ended by signal 9 (SIGKILL)");
    assert!(report.retryable);
    in_time(demo.vm.destroy()).await.unwrap();
}

#[tokio::test]
async fn box_of_a_killed_shim_is_stopped_and_has_a_terminal_event() {
    check_that_a_killed_box_stops("started; ready; nap").await;
}

#[tokio::test]
async fn process_that_inherited_the_stream_does_not_delay_the_end_of_the_box() {
    check_that_a_killed_box_stops("sleep 5 & started; ready; nap").await;
}

#[tokio::test]
async fn shim_that_exits_without_an_event_is_lost() {
    let demo = ScriptedBox::new("exit 7");
    let error = in_time(demo.vm.boot()).await.unwrap_err();
    let VmError::BootFailed { report } = error else { panic!("{error}") };
    assert_eq!(report, made_ending(&demo).0);
    assert_eq!(report.message, "the shim ended with status 7 and without `box.stopped`");
    assert_eq!(in_time(demo.vm.wait()).await.exit_code, Some(7));
}

#[tokio::test]
async fn line_that_is_no_event_ends_the_box() {
    let cases = [
        ("echo hello; nap", "line 1 is not an event: `hello`"),
        ("started; printf '\\377\\n'; nap", "line 2 is not an event: `\u{fffd}`"),
        ("head -c 1048577 /dev/zero; nap", "line 1 is longer than 1048576 bytes"),
        (
            r#"echo '{"v":2,"seq":0,"time":"","elapsed_ms":0,"box_id":"","type":"x"}'; nap"#,
            "line 1 has version 2 of the event format, expected 1",
        ),
    ];
    for (script, cause) in cases {
        let demo = ScriptedBox::new(script);
        let error = in_time(demo.vm.boot()).await.unwrap_err();
        let VmError::BootFailed { report } = error else { panic!("{error}") };
        assert_eq!(report.code, ErrorCode::ShimLost);
        assert_eq!(report.message, "the shim was killed: it does not write events");
        assert_eq!(report.causes[0], cause);
        assert_eq!(made_ending(&demo).2, Some(9));
        assert_eq!(demo.vm.state(), BoxState::Stopped);
    }
}

#[tokio::test]
async fn shim_that_ignores_sigterm_is_killed_after_its_time() {
    let demo = ScriptedBox::new("trap '' TERM; started; ready; nap");
    in_time(demo.vm.boot()).await.unwrap();
    let start = Instant::now();
    timeout(Duration::from_secs(60), demo.vm.destroy()).await.unwrap().unwrap();
    // The grace period is 0, so the shim has only the margin of 45 s.
    assert!((45..50).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    let (report, reason, signal) = made_ending(&demo);
    assert_eq!((reason, signal), (StopReason::Killed, Some(9)));
    assert!(report.message.contains("asked to stop"), "{}", report.message);
    assert_eq!(kill(Pid::from_raw(demo.shim_pid()), None), Err(Errno::ESRCH));
}

#[tokio::test]
async fn stop_continues_after_the_future_of_destroy_is_dropped() {
    let demo = ScriptedBox::new("trap 'stopped stopped 143' TERM; started; ready; nap");
    in_time(demo.vm.boot()).await.unwrap();
    tokio::select! {
        biased;
        destroyed = demo.vm.destroy() => panic!("destroy did not wait for the shim: {destroyed:?}"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(in_time(demo.vm.wait()).await.reason, StopReason::Stopped);
}

#[tokio::test]
async fn dropped_manager_kills_its_shim() {
    let demo = ScriptedBox::new("trap '' TERM; started; ready; nap");
    in_time(demo.vm.boot()).await.unwrap();
    let pid = Pid::from_raw(demo.shim_pid());
    let _dir = demo.drop_manager();
    until(SECOND, || kill(pid, None) == Err(Errno::ESRCH)).await;
}

#[test]
fn end_of_the_tokio_runtime_kills_the_shim_and_completes_wait() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let demo = ScriptedBox::new("trap '' TERM; started; ready; nap");
    runtime.block_on(in_time(demo.vm.boot())).unwrap();
    drop(runtime);
    let other = tokio::runtime::Runtime::new().unwrap();
    let outcome = other.block_on(async { in_time(demo.vm.wait()).await });
    assert_eq!(outcome.reason, StopReason::Killed);
    assert_eq!(demo.vm.state(), BoxState::Stopped);
    other.block_on(async { in_time(demo.vm.destroy()).await }).unwrap();
}

#[tokio::test]
async fn destroy_removes_the_cgroup_of_the_box() {
    // An ordinary directory takes the place of the cgroup: rmdir(2) removes both, if they are
    // empty.
    let directory = tempfile::tempdir().unwrap();
    let cgroup = directory.path().join("demo");
    let demo = ScriptedBox::with_config("started; ready; nap", |config| {
        config.resources.cgroup = Some(cgroup.clone());
    });
    in_time(demo.vm.boot()).await.unwrap();
    std::fs::create_dir_all(cgroup.join("busy")).unwrap();
    let error = in_time(demo.vm.destroy()).await.unwrap_err();
    assert!(matches!(&error, VmError::Cgroup { path, .. } if *path == cgroup), "{error}");
    std::fs::remove_dir(cgroup.join("busy")).unwrap();
    in_time(demo.vm.destroy()).await.unwrap();
    assert!(!cgroup.exists());
    in_time(demo.vm.destroy()).await.unwrap();
}
