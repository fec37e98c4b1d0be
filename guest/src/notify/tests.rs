//! Tests of the notify socket with real sockets and senders.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, UnixAddr, sendmsg};
use nix::unistd::pipe2;
use tokio::time::{sleep, timeout};

use super::*;

/// Limit for each wait, far above the usual time.
const PATIENCE: Duration = Duration::from_secs(20);

/// Returns an address that no other test uses. Tests share the network namespace of the host, to
/// which abstract addresses belong.
pub(crate) fn address() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("@a3s-box-test/{}/{number}", std::process::id())
}

/// Returns a socket that is connected to the address.
pub(crate) fn sender(address: &str) -> UnixDatagram {
    let socket = UnixDatagram::unbound().unwrap();
    let name = address.strip_prefix('@').unwrap();
    socket.connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    socket
}

/// Sends one datagram from a socket of its own.
pub(crate) fn send(address: &str, datagram: &[u8]) {
    sender(address).send(datagram).unwrap();
}

fn bound() -> (Notices, UnixDatagram) {
    let address = address();
    let notices = Notices::bind(&address).unwrap();
    (notices, sender(&address))
}

async fn changed(notices: &mut Notices) -> Notified {
    timeout(PATIENCE, notices.changed()).await.expect("the socket reports no change")
}

fn status(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test]
async fn listens_on_the_address_of_the_environment_variable() {
    // An abstract address has a NUL byte in place of the `@`, and includes no NUL bytes at its end.
    // The library of systemd makes it in the same way.
    let mut notices = Notices::bind(ADDRESS).unwrap();
    let workload = UnixDatagram::unbound().unwrap();
    let path = UnixAddr::new_abstract(b"a3s-box/notify").unwrap();
    nix::sys::socket::connect(workload.as_raw_fd(), &path).unwrap();
    workload.send(b"READY=1").unwrap();
    assert!(changed(&mut notices).await.ready);
}

#[tokio::test]
async fn names_an_address_that_is_in_use() {
    let address = address();
    let _notices = Notices::bind(&address).unwrap();
    let message = Notices::bind(&address).unwrap_err().to_string();
    assert_eq!(message, format!("cannot listen on the notify socket `{address}`"));
}

#[tokio::test(start_paused = true)]
async fn returns_the_first_change_at_once_and_merges_later_ones() {
    let (mut notices, workload) = bound();
    let start = Instant::now();
    workload.send(b"READY=1").unwrap();
    let first = changed(&mut notices).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(first, Notified { ready: true, ..Notified::default() });

    workload.send(b"STATUS=b").unwrap();
    workload.send(b"STATUS=c").unwrap();
    let second = changed(&mut notices).await;
    assert_eq!(start.elapsed(), PERIOD);
    assert_eq!(second, Notified { ready: true, status: status("c"), ..Notified::default() });

    sleep(PERIOD * 3).await;
    workload.send(b"STATUS=d").unwrap();
    assert_eq!(changed(&mut notices).await.status, status("d"));
    assert_eq!(start.elapsed(), PERIOD * 4);
}

#[tokio::test(start_paused = true)]
async fn returns_nothing_without_a_change() {
    let (mut notices, workload) = bound();
    workload.send(b"READY=1\nSTATUS=a").unwrap();
    changed(&mut notices).await;
    let unchanged: [&[u8]; 4] = [b"READY=1", b"STATUS=a", b"WATCHDOG=1", b""];
    for datagram in unchanged {
        workload.send(datagram).unwrap();
    }
    // This change is reverted before the rate limit allows a message.
    workload.send(b"STATUS=b").unwrap();
    workload.send(b"STATUS=a").unwrap();
    timeout(PERIOD * 5, notices.changed()).await.unwrap_err();
    assert_eq!(notices.unsent(), None);
}

#[tokio::test(start_paused = true)]
async fn returns_at_most_ten_changes_a_second_and_always_the_last_one() {
    let (mut notices, workload) = bound();
    let send_all = async {
        for number in 0..1000 {
            workload.send(format!("STATUS={number}").as_bytes()).unwrap();
            sleep(Duration::from_millis(1)).await;
        }
    };
    let mut changes = Vec::new();
    let start = Instant::now();
    let receive_all = async {
        while changes.last() != Some(&status("999")) {
            changes.push(changed(&mut notices).await.status);
        }
    };
    tokio::join!(send_all, receive_all);
    assert!((5..=12).contains(&changes.len()), "{changes:?}");
    assert!(start.elapsed() <= Duration::from_millis(1101), "{:?}", start.elapsed());
}

#[tokio::test]
async fn reads_a_flood_to_its_last_datagram_while_other_tasks_run() {
    let address = address();
    let mut notices = Notices::bind(&address).unwrap();
    let floods: Vec<_> = (0..4)
        .map(|_| {
            let workload = sender(&address);
            thread::spawn(move || {
                for number in 0..25_000 {
                    workload.send(format!("STATUS={number}\nX_A3S_STATE=busy").as_bytes()).unwrap();
                }
            })
        })
        .collect();
    let state = notices.state();
    // This task stands for the tasks that read orders and reap children.
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let other = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        while stopped.try_recv().is_err() {
            let before = Instant::now();
            sleep(Duration::from_millis(1)).await;
            longest = longest.max(before.elapsed());
        }
        longest
    });
    let last = thread::spawn(move || {
        floods.into_iter().for_each(|flood| flood.join().unwrap());
        send(&address, b"STATUS=last\nX_A3S_STATE=compacting");
    });
    let start = Instant::now();
    let mut changes = 0;
    while changed(&mut notices).await.status != status("last") {
        changes += 1;
    }
    let elapsed = start.elapsed();
    last.join().unwrap();
    assert_eq!(*state.borrow(), State::Compacting);
    assert!(changes <= elapsed.as_millis() / PERIOD.as_millis() + 1, "{changes} in {elapsed:?}");
    stop.send(()).unwrap();
    let longest = other.await.unwrap();
    assert!(longest < Duration::from_millis(500), "the other task waited {longest:?}");
}

#[tokio::test]
async fn other_tasks_run_after_each_batch() {
    // By default the queue is shorter than a batch. Only the owner of a network namespace can make
    // it longer, so this thread enters a new one. The thread ends with the test.
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    std::fs::write("/proc/sys/net/unix/max_dgram_qlen", (BATCH * 4).to_string()).unwrap();
    let (mut notices, workload) = bound();
    for number in 1..=BATCH * 3 {
        workload.send(format!("STATUS={number}").as_bytes()).unwrap();
    }
    let turns = Arc::new(AtomicU32::new(0));
    let other = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        }
    });
    // The event loop must report the socket as readable before the count starts.
    notices.socket.readable().await.unwrap();
    turns.store(0, Ordering::Relaxed);
    assert_eq!(changed(&mut notices).await.status, status(&BATCH.to_string()));
    assert_eq!(turns.load(Ordering::Relaxed), 1);
    assert_eq!(changed(&mut notices).await.status, status(&(BATCH * 3).to_string()));
    other.abort();
}

#[tokio::test]
async fn drops_a_datagram_beyond_the_limit_as_a_whole() {
    let (mut notices, workload) = bound();
    let mut datagram = b"READY=1\nSTATUS=x\n".to_vec();
    datagram.resize(DATAGRAM_BYTES, b'y');
    workload.send(&datagram).unwrap();
    assert!(notices.unsent().unwrap().ready);
    let mut datagram = b"STOPPING=1\nSTATUS=z\n".to_vec();
    for length in [DATAGRAM_BYTES + 1, DATAGRAM_BYTES + 2, 100_000] {
        datagram.resize(length, b'\n');
        workload.send(&datagram).unwrap();
        assert_eq!(notices.unsent(), None, "{length}");
    }
    workload.send(b"STATUS=after").unwrap();
    assert_eq!(notices.unsent().unwrap().status, status("after"));
}

/// Sends the only copy of a pipe's writing end, as `sd_notify_barrier(3)` does. Returns the reading
/// end.
fn send_barrier(workload: &UnixDatagram, datagram: &[u8]) -> OwnedFd {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    let rights = [ControlMessage::ScmRights(&[write.as_raw_fd()])];
    let text = [IoSlice::new(datagram)];
    sendmsg::<UnixAddr>(workload.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).unwrap();
    read
}

/// Returns whether all copies of the writing end are closed.
fn is_closed(barrier: &OwnedFd) -> bool {
    match nix::unistd::read(barrier, &mut [0]) {
        Ok(0) => true,
        Err(Errno::EAGAIN) => false,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn reading_a_datagram_closes_its_descriptors() {
    let (mut notices, workload) = bound();
    let too_long = [b"BARRIER=1\n".as_slice(), &[b'x'; DATAGRAM_BYTES]].concat();
    let datagrams: [&[u8]; 4] = [b"BARRIER=1", b"FDSTORE=1\nFDNAME=x", b"", &too_long];
    for datagram in datagrams.into_iter().cycle().take(400) {
        let barrier = send_barrier(&workload, datagram);
        assert!(!is_closed(&barrier), "the descriptor is closed before the read");
        notices.unsent();
        assert!(is_closed(&barrier), "{} bytes", datagram.len());
    }
}

#[tokio::test]
async fn a_barrier_is_closed_after_earlier_datagrams_are_read() {
    let (mut notices, workload) = bound();
    workload.send(b"X_A3S_STATE=busy").unwrap();
    let barrier = send_barrier(&workload, b"BARRIER=1");
    let state = notices.state();
    let change = tokio::spawn(async move { notices.changed().await });
    timeout(PATIENCE, async {
        while !is_closed(&barrier) {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the barrier is not closed");
    assert_eq!(*state.borrow(), State::Busy);
    assert_eq!(change.await.unwrap().state(), BoxState::Busy);
}

#[tokio::test]
async fn closing_the_socket_closes_a_barrier_that_was_not_read() {
    let (notices, workload) = bound();
    let barrier = send_barrier(&workload, b"BARRIER=1");
    drop(notices);
    assert!(is_closed(&barrier));
}
