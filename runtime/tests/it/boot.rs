//! From the config to a box that is ready, or is not.

use a3s_box_core::event::{EventKind, StopReason};
use a3s_box_core::{BoxConfig, BoxState, ErrorCode, EventEmitter};
use a3s_box_runtime::{ShimStartError, VmError, VmManager};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::harness::{ScriptedBox, soon};

#[tokio::test]
async fn box_is_ready_when_the_shim_says_so_and_stops_on_term() {
    let demo = ScriptedBox::new("trap 'stopped stopped 143' TERM; started; ready; nap");
    let directory = demo.state_directory();
    assert_eq!(demo.vm.id(), "demo");
    assert_eq!(demo.vm.state(), BoxState::Created);
    soon(demo.vm.boot()).await.unwrap();
    assert_eq!(demo.vm.state(), BoxState::Ready);
    let again = soon(demo.vm.boot()).await.unwrap_err();
    assert!(matches!(again, VmError::AlreadyBooted { state: BoxState::Ready }), "{again}");

    soon(demo.vm.destroy()).await.unwrap();
    assert_eq!(demo.vm.state(), BoxState::Stopped);
    let outcome = soon(demo.vm.wait()).await;
    assert_eq!((outcome.reason, outcome.exit_code), (StopReason::Stopped, Some(143)));
    assert!(!directory.exists());
    assert!(directory.parent().unwrap().exists());
    assert_eq!(kill(Pid::from_raw(demo.shim_pid()), None), Err(Errno::ESRCH));
    soon(demo.vm.destroy()).await.unwrap();
    assert_eq!(demo.numbers(), [0, 1, 2]);
}

#[tokio::test]
async fn error_of_the_shim_is_the_error_of_boot() {
    let demo = ScriptedBox::new(
        r#"event error '"code":"image_invalid","message":"no such tag","causes":["a"],"retryable":false'
           stopped failed 125"#,
    );
    let error = soon(demo.vm.boot()).await.unwrap_err();
    let VmError::BootFailed { report } = error else { panic!("{error}") };
    assert_eq!(report.code, ErrorCode::ImageInvalid);
    assert_eq!(
        (report.message.as_str(), report.causes.as_slice()),
        ("no such tag", &["a".to_owned()][..])
    );
    assert_eq!(demo.vm.state(), BoxState::Stopped);
    let outcome = soon(demo.vm.wait()).await;
    assert_eq!((outcome.reason, outcome.exit_code), (StopReason::Failed, Some(125)));
}

#[tokio::test]
async fn workload_that_ends_before_the_box_is_ready_is_no_failure() {
    let demo = ScriptedBox::new("started; exited 3");
    soon(demo.vm.boot()).await.unwrap();
    assert_eq!(demo.vm.state(), BoxState::Stopped);
    let outcome = soon(demo.vm.wait()).await;
    assert_eq!((outcome.reason, outcome.exit_code), (StopReason::Exited, Some(3)));
    assert!(!soon(demo.vm.health_check()).await.unwrap());
}

#[tokio::test]
async fn stop_during_the_boot_ends_the_boot() {
    let demo = ScriptedBox::new("trap 'stopped stopped 143' TERM; started; nap");
    let destroy = async {
        while demo.events().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        demo.vm.destroy().await
    };
    let (booted, destroyed) = soon(async { tokio::join!(demo.vm.boot(), destroy) }).await;
    destroyed.unwrap();
    let error = booted.unwrap_err();
    assert!(matches!(error, VmError::StoppedWhileBooting { .. }), "{error}");
}

#[tokio::test]
async fn config_arrives_byte_for_byte() {
    // Longer than a pipe holds.
    let secret = "s\"\n\u{1}é".repeat(50_000);
    let mut sent = Vec::new();
    let demo = ScriptedBox::with_config("exited 0", |config| {
        config.process.env.0.insert("TOKEN".to_owned(), secret);
        sent = config.to_json().unwrap();
    });
    soon(demo.vm.boot()).await.unwrap();
    assert_eq!(demo.stdin(), sent);
}

#[tokio::test]
async fn config_without_an_id_gets_one() {
    let new = || VmManager::new(BoxConfig::default(), EventEmitter::new());
    assert_ne!(new().id(), new().id());
    let demo = ScriptedBox::with_config("exited 0", |config| config.id = None);
    soon(demo.vm.boot()).await.unwrap();
    let received = BoxConfig::from_json(&demo.stdin()).unwrap();
    assert_eq!(received.id.as_deref(), Some(demo.vm.id()));
}

#[tokio::test]
async fn shim_that_cannot_be_run_is_named_and_the_boot_may_be_tried_again() {
    let vm = VmManager::new(BoxConfig::default(), EventEmitter::new());
    let vm = vm.with_shim("/nowhere/shim");
    for _ in 0..2 {
        let error = soon(vm.boot()).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot run the shim `/nowhere/shim`");
        assert_eq!(vm.state(), BoxState::Created);
    }
}

#[tokio::test]
async fn shim_that_is_nowhere_is_an_error_with_all_places() {
    let vm = VmManager::new(BoxConfig::default(), EventEmitter::new());
    // One may stand beside the test's own program, where the whole workspace was built.
    let Err(VmError::Start(ShimStartError::NotFound { searched })) = soon(vm.boot()).await else {
        return soon(vm.destroy()).await.unwrap();
    };
    let program = std::env::current_exe().unwrap();
    let beside = program.parent().unwrap();
    assert_eq!(searched[0], beside.join("a3s-box-shim"));
    assert_eq!(searched[1], beside.parent().unwrap().join("a3s-box-shim"));
    let in_path = std::env::var("PATH").unwrap();
    assert!(searched.len() > 2, "{in_path}");
}

#[tokio::test]
async fn box_that_was_never_booted_can_be_destroyed() {
    let demo = ScriptedBox::new("started");
    soon(demo.vm.destroy()).await.unwrap();
    soon(demo.vm.destroy()).await.unwrap();
    assert_eq!(demo.vm.state(), BoxState::Stopped);
    assert_eq!(soon(demo.vm.wait()).await.reason, StopReason::Stopped);
    let error = soon(demo.vm.boot()).await.unwrap_err();
    assert!(matches!(error, VmError::AlreadyBooted { state: BoxState::Stopped }), "{error}");
    assert!(demo.events().is_empty());
}

#[tokio::test]
async fn events_reach_the_observers_as_they_are() {
    let demo = ScriptedBox::new(
        "started; event vm.starting '\"vcpus\":2,\"memory_mib\":64'; event from.the.future '\"x\":1'; exited 0",
    );
    soon(demo.vm.boot()).await.unwrap();
    let events = demo.events();
    assert_eq!(events[1], EventKind::VmStarting { vcpus: 2, memory_mib: 64 });
    assert_eq!(events[2], EventKind::Unknown);
    assert_eq!(demo.numbers(), [0, 1, 2, 3, 4]);
}
