//! Fuzzes the datagrams on `$NOTIFY_SOCKET`. The byte 0xfe, which is in no UTF-8 text, separates
//! them.

#![no_main]

use a3s_box_proto::control::{BoxState, GuestMessage, Notified, guest_message};
use a3s_box_proto::frame::{self, FrameBuffer};
use libfuzzer_sys::fuzz_target;

#[path = "../../guest/src/notify/datagram.rs"]
mod datagram;

/// Most characters of a status, as `docs/contract.md` promises.
const STATUS_CHARS: usize = 256;

fuzz_target!(|input: &[u8]| {
    let mut notified = Notified::default();
    for datagram in input.split(|byte| *byte == 0xfe) {
        let before = notified.clone();
        datagram::apply(datagram, &mut notified);
        check(datagram, &before, &notified);
    }
    check_message(notified);
});

/// Checks the effect of a datagram on the notifications so far.
fn check(datagram: &[u8], before: &Notified, after: &Notified) {
    // As with systemd, one NUL byte at the end is allowed, and any other makes a datagram invalid.
    let text = datagram.strip_suffix(b"\0").unwrap_or(datagram);
    if text.contains(&0) {
        assert_eq!(before, after, "a NUL byte in {}", datagram.escape_ascii());
        return;
    }
    let lines = || text.split(|byte| *byte == b'\n');
    let has_line = |wanted: &[u8]| lines().any(|line| line == wanted);
    assert_eq!(after.ready, before.ready || has_line(b"READY=1"));
    assert_eq!(after.stopping, before.stopping || has_line(b"STOPPING=1"));
    BoxState::try_from(after.state).expect("a state of the protocol");
    if let Some(status) = after.status.as_deref() {
        assert!(!status.is_empty() && status.chars().count() <= STATUS_CHARS, "{status:?}");
        let is_source = |line: &[u8]| {
            let line = line.strip_prefix(b"STATUS=");
            line.is_some_and(|line| line.starts_with(status.as_bytes()))
        };
        let has_source = before.status == after.status || lines().any(is_source);
        assert!(has_source, "{status:?} is in no line");
    }
    // A datagram has the same effect as its lines one after the other.
    let mut by_line = before.clone();
    lines().for_each(|line| datagram::apply(line, &mut by_line));
    assert_eq!(*after, by_line, "{} by line", datagram.escape_ascii());
}

/// Checks that the shim reads the message that the guest program writes.
fn check_message(notified: Notified) {
    let message = GuestMessage { message: Some(guest_message::Message::Notified(notified)) };
    let mut buffer = FrameBuffer::default();
    buffer.push(&frame::encode(&message));
    let read = buffer.next_message().expect("a valid frame");
    assert_eq!(read, Some(message));
}
