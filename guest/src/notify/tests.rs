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

const PATIENCE: Duration = Duration::from_secs(20);

/// An address that no other test has: abstract ones are the machine's.
pub(crate) fn address() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("@a3s-box-test/{}/{number}", std::process::id())
}

/// A socket of someone who has something to say.
pub(crate) fn sender(address: &str) -> UnixDatagram {
    let socket = UnixDatagram::unbound().unwrap();
    let name = address.strip_prefix('@').unwrap();
    socket.connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    socket
}

/// Says it once.
pub(crate) fn send(address: &str, datagram: &[u8]) {
    sender(address).send(datagram).unwrap();
}

fn bound() -> (Notices, UnixDatagram) {
    let address = address();
    let notices = Notices::bind(&address).unwrap();
    (notices, sender(&address))
}

async fn changed(notices: &mut Notices) -> Notified {
    timeout(PATIENCE, notices.changed()).await.expect("nothing is told")
}

fn status(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test]
async fn the_workloads_address_is_the_one_that_is_listened_on() {
    // With its NUL byte in place of the `@`, and of exactly this length, as libsystemd has it.
    let mut notices = Notices::bind(ADDRESS).unwrap();
    let theirs = UnixDatagram::unbound().unwrap();
    let path = UnixAddr::new_abstract(b"a3s-box/notify").unwrap();
    nix::sys::socket::connect(theirs.as_raw_fd(), &path).unwrap();
    theirs.send(b"READY=1").unwrap();
    assert!(changed(&mut notices).await.ready);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let address = address();
    let _notices = Notices::bind(&address).unwrap();
    let message = Notices::bind(&address).unwrap_err().to_string();
    assert_eq!(message, format!("cannot listen on the notify socket `{address}`"));
}

#[tokio::test(start_paused = true)]
async fn the_first_change_goes_at_once_and_later_ones_are_merged() {
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
async fn what_did_not_change_is_not_told() {
    let (mut notices, workload) = bound();
    workload.send(b"READY=1\nSTATUS=a").unwrap();
    changed(&mut notices).await;
    let unchanged: [&[u8]; 4] = [b"READY=1", b"STATUS=a", b"WATCHDOG=1", b""];
    for datagram in unchanged {
        workload.send(datagram).unwrap();
    }
    // Changed, and changed back before its time.
    workload.send(b"STATUS=b").unwrap();
    workload.send(b"STATUS=a").unwrap();
    timeout(PERIOD * 5, notices.changed()).await.unwrap_err();
    assert_eq!(notices.last(), None);
}

#[tokio::test(start_paused = true)]
async fn at_most_ten_a_second_are_told_and_the_last_one_is() {
    let (mut notices, workload) = bound();
    let talk = async {
        for number in 0..1000 {
            workload.send(format!("STATUS={number}").as_bytes()).unwrap();
            sleep(Duration::from_millis(1)).await;
        }
    };
    let mut told = Vec::new();
    let start = Instant::now();
    let hear = async {
        while told.last() != Some(&status("999")) {
            told.push(changed(&mut notices).await.status);
        }
    };
    tokio::join!(talk, hear);
    assert!((5..=12).contains(&told.len()), "{told:?}");
    assert!(start.elapsed() <= Duration::from_millis(1101), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_flood_from_many_is_read_to_its_last_word_and_nobody_starves() {
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
    // A task beside it, as orders and the reaping are.
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let beside = tokio::spawn(async move {
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
    let mut told = 0;
    while changed(&mut notices).await.status != status("last") {
        told += 1;
    }
    let elapsed = start.elapsed();
    last.join().unwrap();
    assert_eq!(*state.borrow(), State::Compacting);
    assert!(told <= elapsed.as_millis() / PERIOD.as_millis() + 1, "{told} in {elapsed:?}");
    stop.send(()).unwrap();
    let longest = beside.await.unwrap();
    assert!(longest < Duration::from_millis(500), "{longest:?} without a turn");
}

#[tokio::test]
async fn others_get_their_turn_after_a_batch() {
    // A queue that holds more than a batch is the privilege of a network namespace's owner. The
    // thread keeps the namespace, and ends with the test.
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
    // Found by a turn of the event loop, before the count.
    notices.socket.readable().await.unwrap();
    turns.store(0, Ordering::Relaxed);
    assert_eq!(changed(&mut notices).await.status, status(&BATCH.to_string()));
    assert_eq!(turns.load(Ordering::Relaxed), 1);
    assert_eq!(changed(&mut notices).await.status, status(&(BATCH * 3).to_string()));
    other.abort();
}

#[tokio::test]
async fn a_datagram_beyond_the_limit_is_dropped_whole() {
    let (mut notices, workload) = bound();
    let mut datagram = b"READY=1\nSTATUS=x\n".to_vec();
    datagram.resize(DATAGRAM_BYTES, b'y');
    workload.send(&datagram).unwrap();
    assert!(notices.last().unwrap().ready);
    let mut datagram = b"STOPPING=1\nSTATUS=z\n".to_vec();
    for length in [DATAGRAM_BYTES + 1, DATAGRAM_BYTES + 2, 100_000] {
        datagram.resize(length, b'\n');
        workload.send(&datagram).unwrap();
        assert_eq!(notices.last(), None, "{length}");
    }
    workload.send(b"STATUS=after").unwrap();
    assert_eq!(notices.last().unwrap().status, status("after"));
}

/// Sends the only copy of a pipe's end for writing, as `sd_notify_barrier` does.
fn send_barrier(workload: &UnixDatagram, datagram: &[u8]) -> OwnedFd {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    let rights = [ControlMessage::ScmRights(&[write.as_raw_fd()])];
    let text = [IoSlice::new(datagram)];
    sendmsg::<UnixAddr>(workload.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).unwrap();
    read
}

/// Whether no copy of the other end is left anywhere.
fn is_closed(barrier: &OwnedFd) -> bool {
    match nix::unistd::read(barrier, &mut [0]) {
        Ok(0) => true,
        Err(Errno::EAGAIN) => false,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_descriptor_of_a_barrier_is_closed_once_it_is_read() {
    let (mut notices, workload) = bound();
    let too_long = [b"BARRIER=1\n".as_slice(), &[b'x'; DATAGRAM_BYTES]].concat();
    let datagrams: [&[u8]; 4] = [b"BARRIER=1", b"FDSTORE=1\nFDNAME=x", b"", &too_long];
    for datagram in datagrams.into_iter().cycle().take(400) {
        let barrier = send_barrier(&workload, datagram);
        assert!(!is_closed(&barrier), "the socket holds it");
        notices.last();
        assert!(is_closed(&barrier), "{} bytes", datagram.len());
    }
}

#[tokio::test]
async fn a_barrier_means_that_what_came_before_was_heard() {
    let (mut notices, workload) = bound();
    workload.send(b"X_A3S_STATE=busy").unwrap();
    let barrier = send_barrier(&workload, b"BARRIER=1");
    let state = notices.state();
    let heard = tokio::spawn(async move { notices.changed().await });
    timeout(PATIENCE, async {
        while !is_closed(&barrier) {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the barrier is not closed");
    assert_eq!(*state.borrow(), State::Busy);
    assert_eq!(heard.await.unwrap().state(), BoxState::Busy);
}

#[tokio::test]
async fn a_barrier_that_nobody_reads_is_closed_with_the_socket() {
    let (notices, workload) = bound();
    let barrier = send_barrier(&workload, b"BARRIER=1");
    drop(notices);
    assert!(is_closed(&barrier));
}
