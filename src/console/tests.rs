use std::fs::{self, OpenOptions};
use std::io::{PipeWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

/// Starts a relay to `sink`. Returns it with the write ends of its pipes.
fn relay_to(sink: Sink) -> (Relay, PipeWriter, PipeWriter) {
    let (stdout, stdout_port) = io::pipe().unwrap();
    let (stderr, stderr_port) = io::pipe().unwrap();
    let pipes = [File::from(OwnedFd::from(stdout)), File::from(OwnedFd::from(stderr))];
    (Relay::start(pipes, sink).unwrap(), stdout_port, stderr_port)
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Returns `count` bytes of numbered lines, so that each byte's position can be read from it.
fn numbered(count: usize) -> Vec<u8> {
    (0_u32..).flat_map(|i| format!("{i:07}\n").into_bytes()).take(count).collect()
}

fn fifo(directory: &tempfile::TempDir) -> (PathBuf, File) {
    let path = directory.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let mut options = OpenOptions::new();
    let reader = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
    (path, reader)
}

/// Reads all that is available from a non-blocking file.
fn read_available(reader: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    let end = reader.read_to_end(&mut bytes);
    assert!(end.is_ok() || end.unwrap_err().kind() == io::ErrorKind::WouldBlock);
    bytes
}

#[test]
fn file_keeps_the_end_of_a_flood_and_counts_the_discarded_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let sink = Sink::open_path(&path, 1 << 20, Rotation::Rename).unwrap();
    let (relay, mut stdout, mut stderr) = relay_to(sink);
    let mut truncation = relay.truncation();
    assert_eq!(*truncation.borrow_and_update(), None);
    let flood = numbered(5_000_000);
    stdout.write_all(&flood).unwrap();
    wait_until("the relay has read all output", || relay.has(5_000_000, 0));
    stderr.write_all(b"the end").unwrap();
    wait_until("the relay has read all output", || relay.has(5_000_000, 7));
    let previous = fs::read(directory.path().join("console.1")).unwrap();
    let kept = [previous, fs::read(&path).unwrap()].concat();
    assert!((1 << 19..=1 << 20).contains(&kept.len()), "{}", kept.len());
    assert!([&flood[..], b"the end"].concat().ends_with(&kept));
    let discarded_bytes = 5_000_007 - kept.len() as u64;
    let expected = ConsoleMetrics { stdout_bytes: 5_000_000, stderr_bytes: 7, discarded_bytes };
    assert_eq!(relay.metrics(), expected);
    assert!(truncation.has_changed().unwrap());
    let cause = TruncationCause::Size;
    assert_eq!(*truncation.borrow(), Some(Truncation { discarded_bytes, cause }));
}

#[test]
fn stuck_reader_of_a_fifo_delays_the_relay_once() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mut reader) = fifo(&directory);
    let (relay, mut stdout, _stderr) =
        relay_to(Sink::open_path(&path, 1 << 20, Rotation::Rename).unwrap());
    let start = Instant::now();
    let flood = numbered(5_000_000);
    stdout.write_all(&flood).unwrap();
    wait_until("the relay has read all output", || relay.has(5_000_000, 0));
    let took = start.elapsed();
    // Waiting for each of some 80 chunks would take over a minute.
    assert!((1000..10_000).contains(&took.as_millis()), "{took:?}");
    let received = read_available(&mut reader);
    assert!(flood.starts_with(&received));
    let discarded_bytes = 5_000_000 - received.len() as u64;
    let cause = TruncationCause::SlowReader;
    assert_eq!(*relay.truncation().borrow(), Some(Truncation { discarded_bytes, cause }));
    // A reader that reads again receives the output from then on.
    stdout.write_all(b"again").unwrap();
    wait_until("the relay has read all output", || relay.has(5_000_005, 0));
    assert_eq!(read_available(&mut reader), b"again");
    assert_eq!(relay.metrics().discarded_bytes, discarded_bytes);
    // Without a reader, output is discarded at once, and the relay goes on.
    drop(reader);
    stdout.write_all(b"lost").unwrap();
    wait_until("the relay has read all output", || relay.has(5_000_009, 0));
    assert_eq!(relay.metrics().discarded_bytes, discarded_bytes + 4);
    wait_until("the thread ends", || relay.finish());
}

#[test]
fn slow_reader_delays_several_chunks_by_one_second_in_all() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mut reader) = fifo(&directory);
    let mut sink = Sink::open_path(&path, 1 << 20, Rotation::Rename).unwrap();
    let slow_reader = thread::spawn(move || {
        for _ in 0..30 {
            thread::sleep(Duration::from_millis(100));
            // The FIFO may be empty, which is EAGAIN.
            let _count = reader.read(&mut [0; 4096]);
        }
    });
    let mut lost = 0;
    let start = Instant::now();
    for _ in 0..3 {
        sink.write(&[b'x'; 64 * 1024], |bytes, _cause| lost += bytes);
    }
    let took = start.elapsed();
    // The first chunk waits a second. A wait for each of the three would exceed the limit.
    assert!(took < Duration::from_millis(2500), "{took:?}");
    assert!(lost > 0);
    slow_reader.join().unwrap();
}

#[test]
fn fifo_without_a_reader_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let (path, reader) = fifo(&directory);
    drop(reader);
    let error = Sink::open_path(&path, 1 << 20, Rotation::Rename).unwrap_err();
    assert!(matches!(error, ConsoleError::Open(OutputError::Open { .. })), "{error:?}");
}

#[test]
fn output_that_a_full_disk_refuses_is_counted() {
    let sink = Sink::open_path(Path::new("/dev/full"), 1 << 20, Rotation::Rename).unwrap();
    let (relay, mut stdout, _stderr) = relay_to(sink);
    stdout.write_all(b"12345").unwrap();
    wait_until("the relay has read all output", || relay.has(5, 0));
    let cause = TruncationCause::WriteFailed;
    let expected = Some(Truncation { discarded_bytes: 5, cause });
    assert_eq!(*relay.truncation().borrow(), expected);
}

#[test]
fn symlink_is_refused_and_its_target_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let (link, target) = (directory.path().join("link"), directory.path().join("target"));
    symlink("target", &link).unwrap();
    let error = Sink::open_path(&link, 20, Rotation::Rename).unwrap_err();
    assert!(matches!(error, ConsoleError::Unsuitable { found: "a symlink", .. }), "{error:?}");
    assert!(!target.exists());
}
