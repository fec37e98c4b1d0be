//! Tests with a workload that sends notifications.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use a3s_box_proto::control::BoxState;
use nix::sys::signal::kill;
use tokio::time::Instant;

use super::*;
use crate::notify::tests::{send, sender};

/// Receives `Notified`.
async fn notified(shim: &mut Shim) -> Notified {
    let Message::Notified(notified) = shim.receive().await else { panic!("expected Notified") };
    notified
}

/// Kills the workload and waits until it is a zombie. Blocks the thread, so that the guest cannot
/// run in the meantime.
fn kill_workload(pid: u32) {
    let pid = Pid::from_raw(pid.try_into().unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        if stat.rsplit_once(") ").unwrap().1.starts_with('Z') {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sends notifications as fast as the guest reads them, until `running` is false. Returns their
/// number.
fn flood(address: &str, running: &Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let workload: UnixDatagram = sender(address);
    let running = Arc::clone(running);
    thread::spawn(move || {
        let mut count = 0;
        // A send fails when the guest has closed the socket.
        while running.load(Ordering::Relaxed)
            && workload.send(format!("READY=1\nSTATUS={count}").as_bytes()).is_ok()
        {
            count += 1;
        }
        count
    })
}

#[tokio::test]
async fn sends_early_notifications_after_started() {
    let _serial = serial().await;
    let mut shim = Shim::with_script("exec sleep 300");
    send(&shim.notify, b"READY=1\nSTATUS=early");
    shim.start().await;
    let first = notified(&mut shim).await;
    assert_eq!((first.ready, first.status()), (true, "early"));
    send(&shim.notify, b"X_A3S_STATE=busy\nSTOPPING=1");
    let second = notified(&mut shim).await;
    assert_eq!((second.ready, second.stopping, second.state()), (true, true, BoxState::Busy));
    shim.send(ToGuest::Kill(Kill {})).await;
    assert_eq!(shim.ended().await, exited::Status::Signal(9));
    shim.drained().await;
    shim.acknowledge().await.unwrap();
}

#[tokio::test]
async fn sends_the_last_notification_before_exited() {
    let _serial = serial().await;
    // `select!` takes one of two events that have happened at random, so the test is repeated.
    for _ in 0..10 {
        let mut shim = Shim::with_script("exec sleep 300");
        let pid = shim.start().await;
        send(&shim.notify, b"STATUS=first");
        assert_eq!(notified(&mut shim).await.status(), "first");
        send(&shim.notify, b"STATUS=second");
        send(&shim.notify, b"READY=1\nSTATUS=last");
        kill_workload(pid);
        let last = notified(&mut shim).await;
        assert_eq!((last.ready, last.status()), (true, "last"));
        assert_eq!(shim.ended().await, exited::Status::Signal(9));
        shim.drained().await;
        assert_eq!(shim.acknowledge().await.unwrap(), 137);
    }
}

#[tokio::test]
async fn ignores_notifications_during_the_drain() {
    let _serial = serial().await;
    let mut shim = Shim::with_script("exec yes");
    let pid = shim.start().await;
    // By the end of this time, all pipes are full.
    tokio::time::sleep(Duration::from_millis(300)).await;
    kill_workload(pid);
    assert_eq!(shim.ended().await, exited::Status::Signal(9));
    // The output has not been read yet, so the guest still drains and the socket exists.
    send(&shim.notify, b"READY=1");
    let output = shim.output();
    shim.drained().await;
    assert_eq!(shim.acknowledge().await.unwrap(), 137);
    output.await.unwrap();
}

#[tokio::test]
async fn a_flood_delays_no_order_and_causes_ten_messages_a_second() {
    let _serial = serial().await;
    let mut shim = Shim::with_script("exec sleep 300");
    shim.start().await;
    let running = Arc::new(AtomicBool::new(true));
    let floods: Vec<_> = (0..4).map(|_| flood(&shim.notify, &running)).collect();
    let start = Instant::now();
    let mut messages = 0;
    while start.elapsed() < Duration::from_secs(1) {
        assert!(notified(&mut shim).await.ready);
        messages += 1;
    }
    shim.send(ToGuest::Kill(Kill {})).await;
    let ordered = Instant::now();
    let status = loop {
        match shim.receive().await {
            Message::Notified(_) => messages += 1,
            Message::Exited(exited) => break exited.status.unwrap(),
            other => panic!("expected Notified or Exited, not {other:?}"),
        }
    };
    let elapsed = ordered.elapsed();
    assert_eq!(status, exited::Status::Signal(9));
    assert!(elapsed < Duration::from_secs(1), "{elapsed:?} between the order and the end");
    // The rate limit does not apply to the first message and to the last one.
    let most = start.elapsed().as_millis() / 100 + 2;
    assert!((5..=most).contains(&messages), "{messages}, at most {most}");
    running.store(false, Ordering::Relaxed);
    shim.drained().await;
    shim.acknowledge().await.unwrap();
    let count: u64 = floods.into_iter().map(|flood| flood.join().unwrap()).sum();
    assert!(count > 10_000, "only {count} notifications were sent");
}
