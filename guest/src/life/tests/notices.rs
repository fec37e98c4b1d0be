//! Lives whose workload says something about itself.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use a3s_box_proto::control::BoxState;
use nix::sys::signal::kill;
use tokio::time::Instant;

use super::*;
use crate::notify::tests::{send, sender};

async fn said(shim: &mut Shim) -> Notified {
    let Message::Notified(notified) = shim.hear().await else { panic!("expected Notified") };
    notified
}

/// Waits, without giving the guest a turn, until the workload has ended.
fn end(pid: u32) {
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

/// Says it as fast as it is heard, until someone stops it.
fn flood(address: &str, running: &Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let workload: UnixDatagram = sender(address);
    let running = Arc::clone(running);
    thread::spawn(move || {
        let mut count = 0;
        // The socket goes with the guest.
        while running.load(Ordering::Relaxed)
            && workload.send(format!("READY=1\nSTATUS={count}").as_bytes()).is_ok()
        {
            count += 1;
        }
        count
    })
}

#[tokio::test]
async fn what_is_said_before_the_start_is_known_is_told_after_it() {
    let _serial = serial().await;
    let mut shim = Shim::running("exec sleep 300");
    send(&shim.notify, b"READY=1\nSTATUS=early");
    shim.start().await;
    let first = said(&mut shim).await;
    assert_eq!((first.ready, first.status()), (true, "early"));
    send(&shim.notify, b"X_A3S_STATE=busy\nSTOPPING=1");
    let second = said(&mut shim).await;
    assert_eq!((second.ready, second.stopping, second.state()), (true, true, BoxState::Busy));
    shim.say(Word::Kill(Kill {})).await;
    assert_eq!(shim.ended().await, exited::Status::Signal(9));
    shim.drained().await;
    shim.acknowledge().await.unwrap();
}

#[tokio::test]
async fn what_is_said_right_before_the_end_is_told_before_it() {
    let _serial = serial().await;
    // Which of two things that have happened is seen first is left to chance.
    for _ in 0..10 {
        let mut shim = Shim::running("exec sleep 300");
        let pid = shim.start().await;
        send(&shim.notify, b"STATUS=first");
        assert_eq!(said(&mut shim).await.status(), "first");
        send(&shim.notify, b"STATUS=second");
        send(&shim.notify, b"READY=1\nSTATUS=last");
        end(pid);
        let last = said(&mut shim).await;
        assert_eq!((last.ready, last.status()), (true, "last"));
        assert_eq!(shim.ended().await, exited::Status::Signal(9));
        shim.drained().await;
        assert_eq!(shim.acknowledge().await.unwrap(), 137);
    }
}

#[tokio::test]
async fn what_is_said_while_the_output_drains_is_ignored() {
    let _serial = serial().await;
    let mut shim = Shim::running("exec yes");
    let pid = shim.start().await;
    // Until all pipes are full.
    tokio::time::sleep(Duration::from_millis(300)).await;
    end(pid);
    assert_eq!(shim.ended().await, exited::Status::Signal(9));
    // Nobody has read the output yet, so the socket is still there.
    send(&shim.notify, b"READY=1");
    let output = shim.output();
    shim.drained().await;
    assert_eq!(shim.acknowledge().await.unwrap(), 137);
    output.await.unwrap();
}

#[tokio::test]
async fn a_flood_delays_no_order_and_is_told_ten_times_a_second() {
    let _serial = serial().await;
    let mut shim = Shim::running("exec sleep 300");
    shim.start().await;
    let running = Arc::new(AtomicBool::new(true));
    let floods: Vec<_> = (0..4).map(|_| flood(&shim.notify, &running)).collect();
    let start = Instant::now();
    let mut told = 0;
    while start.elapsed() < Duration::from_secs(1) {
        assert!(said(&mut shim).await.ready);
        told += 1;
    }
    shim.say(Word::Kill(Kill {})).await;
    let ordered = Instant::now();
    let status = loop {
        match shim.hear().await {
            Message::Notified(_) => told += 1,
            Message::Exited(exited) => break exited.status.unwrap(),
            other => panic!("expected Notified or Exited, not {other:?}"),
        }
    };
    let elapsed = ordered.elapsed();
    assert_eq!(status, exited::Status::Signal(9));
    assert!(elapsed < Duration::from_secs(1), "{elapsed:?} to obey");
    // One at once, one at the end.
    let most = start.elapsed().as_millis() / 100 + 2;
    assert!((5..=most).contains(&told), "{told}, at most {most}");
    running.store(false, Ordering::Relaxed);
    shim.drained().await;
    shim.acknowledge().await.unwrap();
    let count: u64 = floods.into_iter().map(|flood| flood.join().unwrap()).sum();
    assert!(count > 10_000, "{count} is no flood");
}
