//! `VmManager::boot`: from the config to a box that is ready or has ended.

use a3s_box_core::event::{EventKind, StopReason};
use a3s_box_core::{BoxConfig, BoxState, ErrorCode, EventEmitter};
use a3s_box_runtime::{ShimStartError, VmError, VmManager};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::harness::{ScriptedBox, in_time};

#[tokio::test]
async fn box_is_ready_by_the_event_of_the_shim_and_stops_on_sigterm() {
    let demo = ScriptedBox::new("trap 'stopped stopped 143' TERM; started; ready; nap");
    let directory = demo.make_box_directory();
    assert_eq!(demo.vm.id(), "demo");
    assert_eq!(demo.vm.state(), BoxState::Created);
    in_time(demo.vm.boot()).await.unwrap();
    assert_eq!(demo.vm.state(), BoxState::Ready);
    let again = in_time(demo.vm.boot()).await.unwrap_err();
    assert!(matches!(again, VmError::AlreadyBooted { state: BoxState::Ready }), "{again}");

    in_time(demo.vm.destroy()).await.unwrap();
    assert_eq!(demo.vm.state(), BoxState::Stopped);
    let outcome = in_time(demo.vm.wait()).await;
    assert_eq!((outcome.reason, outcome.exit_code), (StopReason::Stopped, Some(143)));
    assert!(!directory.exists());
    assert!(directory.parent().unwrap().exists());
    assert_eq!(kill(Pid::from_raw(demo.shim_pid()), None), Err(Errno::ESRCH));
    in_time(demo.vm.destroy()).await.unwrap();
    assert_eq!(demo.sequence_numbers(), [0, 1, 2]);
}

#[tokio::test]
async fn boot_returns_the_error_of_the_shim() {
    let demo = ScriptedBox::new(
        r#"event error '"code":"image_invalid","message":"no such tag","causes":["a"],"retryable":false'
           stopped failed 125"#,
    );
    let error = in_time(demo.vm.boot()).await.unwrap_err();
    let VmError::BootFailed { report } = error else { panic!("{error}") };
    assert_eq!(report.code, ErrorCode::ImageInvalid);
    assert_eq!(
        (report.message.as_str(), report.causes.as_slice()),
        ("no such tag", &["a".to_owned()][..])
    );
    assert_eq!(demo.vm.state(), BoxState::Stopped);
    let outcome = in_time(demo.vm.wait()).await;
    assert_eq!((outcome.reason, outcome.exit_code), (StopReason::Failed, Some(125)));
}

#[tokio::test]
async fn boot_succeeds_if_the_workload_exits_before_the_box_is_ready() {
    let demo = ScriptedBox::new("started; exited 3");
    in_time(demo.vm.boot()).await.unwrap();
    assert_eq!(demo.vm.state(), BoxState::Stopped);
    let outcome = in_time(demo.vm.wait()).await;
    assert_eq!((outcome.reason, outcome.exit_code), (StopReason::Exited, Some(3)));
    assert!(!in_time(demo.vm.health_check()).await.unwrap());
}

#[tokio::test]
async fn destroy_ends_a_boot() {
    let demo = ScriptedBox::new("trap 'stopped stopped 143' TERM; started; nap");
    let destroy = async {
        while demo.events().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        demo.vm.destroy().await
    };
    let (booted, destroyed) = in_time(async { tokio::join!(demo.vm.boot(), destroy) }).await;
    destroyed.unwrap();
    let error = booted.unwrap_err();
    assert!(matches!(error, VmError::StoppedWhileBooting { .. }), "{error}");
}

#[tokio::test]
async fn shim_reads_the_config_byte_for_byte() {
    // The config is longer than a pipe has space, so the write and the read must overlap.
    let secret = "s\"\n\u{1}é".repeat(50_000);
    let mut sent = Vec::new();
    let demo = ScriptedBox::with_config("exited 0", |config| {
        config.process.env.0.insert("TOKEN".to_owned(), secret);
        sent = config.to_json().unwrap();
    });
    in_time(demo.vm.boot()).await.unwrap();
    assert_eq!(demo.stdin(), sent);
}

#[tokio::test]
async fn config_without_an_id_gets_a_generated_one() {
    let new = || VmManager::new(BoxConfig::default(), EventEmitter::new());
    assert_ne!(new().id(), new().id());
    let demo = ScriptedBox::with_config("exited 0", |config| config.id = None);
    in_time(demo.vm.boot()).await.unwrap();
    let received = BoxConfig::from_json(&demo.stdin()).unwrap();
    assert_eq!(received.id.as_deref(), Some(demo.vm.id()));
}

#[tokio::test]
async fn boot_names_a_shim_that_cannot_run_and_may_be_repeated() {
    let vm = VmManager::new(BoxConfig::default(), EventEmitter::new());
    let vm = vm.with_shim("/nowhere/shim");
    for _ in 0..2 {
        let error = in_time(vm.boot()).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot run the shim `/nowhere/shim`");
        assert_eq!(vm.state(), BoxState::Created);
    }
}

#[tokio::test]
async fn boot_without_a_shim_lists_all_searched_paths() {
    let vm = VmManager::new(BoxConfig::default(), EventEmitter::new());
    // A build of the whole workspace puts a shim beside the executable of this test. The boot then
    // starts it.
    let Err(VmError::Start(ShimStartError::NotFound { searched })) = in_time(vm.boot()).await
    else {
        return in_time(vm.destroy()).await.unwrap();
    };
    let program = std::env::current_exe().unwrap();
    let beside = program.parent().unwrap();
    assert_eq!(searched[0], beside.join("a3s-box-shim"));
    assert_eq!(searched[1], beside.parent().unwrap().join("a3s-box-shim"));
    let in_path = std::env::var("PATH").unwrap();
    assert!(searched.len() > 2, "{in_path}");
}

#[tokio::test]
async fn destroy_of_a_box_that_was_never_booted_makes_it_stopped() {
    let demo = ScriptedBox::new("started");
    in_time(demo.vm.destroy()).await.unwrap();
    in_time(demo.vm.destroy()).await.unwrap();
    assert_eq!(demo.vm.state(), BoxState::Stopped);
    assert_eq!(in_time(demo.vm.wait()).await.reason, StopReason::Stopped);
    let error = in_time(demo.vm.boot()).await.unwrap_err();
    assert!(matches!(error, VmError::AlreadyBooted { state: BoxState::Stopped }), "{error}");
    assert!(demo.events().is_empty());
}

#[tokio::test]
async fn observers_get_the_events_of_the_shim_unchanged() {
    let demo = ScriptedBox::new(
        "started; event vm.starting '\"vcpus\":2,\"memory_mib\":64'; event from.the.future '\"x\":1'; exited 0",
    );
    in_time(demo.vm.boot()).await.unwrap();
    let events = demo.events();
    assert_eq!(events[1], EventKind::VmStarting { vcpus: 2, memory_mib: 64, ipv6: None });
    assert_eq!(events[2], EventKind::Unknown);
    assert_eq!(demo.sequence_numbers(), [0, 1, 2, 3, 4]);
}
