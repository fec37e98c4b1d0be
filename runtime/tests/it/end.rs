//! Ends that the shim does not tell, and shims that do not end.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::time::{Duration, Instant};

use a3s_box_core::event::{EventKind, StopReason};
use a3s_box_core::{BoxState, ErrorCode, ErrorReport};
use a3s_box_runtime::VmError;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{ScriptedBox, soon, within};

const SECOND: Duration = Duration::from_secs(1);

/// The error of the end that this side made: it comes just before the one terminal event.
fn made_end(demo: &ScriptedBox) -> (ErrorReport, StopReason, Option<u8>) {
    let events = demo.events();
    let ends = events.iter().filter(|kind| matches!(kind, EventKind::BoxStopped { .. }));
    assert_eq!(ends.count(), 1, "{events:#?}");
    let [.., EventKind::Error(report), EventKind::BoxStopped { reason, signal, .. }] = &events[..]
    else {
        panic!("{events:#?}")
    };
    let numbers: Vec<u64> = (0..).take(events.len()).collect();
    assert_eq!(demo.numbers(), numbers);
    (report.clone(), *reason, *signal)
}

async fn killed_box_is_stopped_within_a_second(script: &str) {
    let demo = ScriptedBox::new(script);
    soon(demo.vm.boot()).await.unwrap();
    kill(Pid::from_raw(demo.shim_pid()), Signal::SIGKILL).unwrap();
    within(SECOND, || demo.vm.state() == BoxState::Stopped).await;
    let outcome = soon(demo.vm.wait()).await;
    assert_eq!((outcome.reason, outcome.signal), (StopReason::Killed, Some(9)));
    let (report, reason, signal) = made_end(&demo);
    assert_eq!((report.code, reason, signal), (ErrorCode::ShimLost, StopReason::Killed, Some(9)));
    assert_eq!(report.message, "the shim was ended by signal 9 (SIGKILL)");
    assert!(report.retryable);
    soon(demo.vm.destroy()).await.unwrap();
}

#[tokio::test]
async fn killed_shim_is_stopped_and_its_end_is_told() {
    killed_box_is_stopped_within_a_second("started; ready; nap").await;
}

#[tokio::test]
async fn process_that_inherited_the_stream_does_not_delay_the_end() {
    killed_box_is_stopped_within_a_second("sleep 5 & started; ready; nap").await;
}

#[tokio::test]
async fn shim_that_ends_without_a_word_is_lost() {
    let demo = ScriptedBox::new("exit 7");
    let error = soon(demo.vm.boot()).await.unwrap_err();
    let VmError::BootFailed { report } = error else { panic!("{error}") };
    assert_eq!(report, made_end(&demo).0);
    assert_eq!(report.message, "the shim ended with status 7 and without `box.stopped`");
    assert_eq!(soon(demo.vm.wait()).await.exit_code, Some(7));
}

#[tokio::test]
async fn what_is_no_event_ends_the_box() {
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
        let error = soon(demo.vm.boot()).await.unwrap_err();
        let VmError::BootFailed { report } = error else { panic!("{error}") };
        assert_eq!(report.code, ErrorCode::ShimLost);
        assert_eq!(report.message, "the shim was killed: it does not write events");
        assert_eq!(report.causes[0], cause);
        assert_eq!(made_end(&demo).2, Some(9));
        assert_eq!(demo.vm.state(), BoxState::Stopped);
    }
}

#[tokio::test]
async fn shim_that_ignores_term_is_killed_within_the_bound() {
    let demo = ScriptedBox::new("trap '' TERM; started; ready; nap");
    soon(demo.vm.boot()).await.unwrap();
    let start = Instant::now();
    soon(demo.vm.destroy()).await.unwrap();
    // A grace of 0, and the 10 s in which a VM shuts down.
    assert!((10..15).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    let (report, reason, signal) = made_end(&demo);
    assert_eq!((reason, signal), (StopReason::Killed, Some(9)));
    assert!(report.message.contains("asked to stop"), "{}", report.message);
    assert_eq!(kill(Pid::from_raw(demo.shim_pid()), None), Err(Errno::ESRCH));
}

#[tokio::test]
async fn stop_goes_on_when_nobody_waits_for_it() {
    let demo = ScriptedBox::new("trap 'stopped stopped 143' TERM; started; ready; nap");
    soon(demo.vm.boot()).await.unwrap();
    tokio::select! {
        biased;
        destroyed = demo.vm.destroy() => panic!("it waits for the shim: {destroyed:?}"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(soon(demo.vm.wait()).await.reason, StopReason::Stopped);
}

#[tokio::test]
async fn dropped_manager_kills_its_shim() {
    let demo = ScriptedBox::new("trap '' TERM; started; ready; nap");
    soon(demo.vm.boot()).await.unwrap();
    let pid = Pid::from_raw(demo.shim_pid());
    let _dir = demo.drop_manager();
    within(SECOND, || kill(pid, None) == Err(Errno::ESRCH)).await;
}

#[test]
fn runtime_that_ends_kills_the_shim_and_nobody_waits_for_ever() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let demo = ScriptedBox::new("trap '' TERM; started; ready; nap");
    runtime.block_on(soon(demo.vm.boot())).unwrap();
    drop(runtime);
    let other = tokio::runtime::Runtime::new().unwrap();
    let outcome = other.block_on(async { soon(demo.vm.wait()).await });
    assert_eq!(outcome.reason, StopReason::Killed);
    assert_eq!(demo.vm.state(), BoxState::Stopped);
    other.block_on(async { soon(demo.vm.destroy()).await }).unwrap();
}

#[tokio::test]
async fn cgroup_that_the_shim_has_made_goes_with_the_box() {
    // What counts for it is that it is a directory with nothing in it.
    let directory = tempfile::tempdir().unwrap();
    let cgroup = directory.path().join("demo");
    let demo = ScriptedBox::with_config("started; ready; nap", |config| {
        config.resources.cgroup = Some(cgroup.clone());
    });
    soon(demo.vm.boot()).await.unwrap();
    std::fs::create_dir_all(cgroup.join("busy")).unwrap();
    let error = soon(demo.vm.destroy()).await.unwrap_err();
    assert!(matches!(&error, VmError::Cgroup { path, .. } if *path == cgroup), "{error}");
    std::fs::remove_dir(cgroup.join("busy")).unwrap();
    soon(demo.vm.destroy()).await.unwrap();
    assert!(!cgroup.exists());
    soon(demo.vm.destroy()).await.unwrap();
}
