//! Datagrams on `$NOTIFY_SOCKET`, one after the other, with a byte 0xfe between each two.

#![no_main]

use a3s_box_proto::control::{BoxState, GuestMessage, Notified, guest_message};
use a3s_box_proto::frame::{self, FrameBuffer};
use libfuzzer_sys::fuzz_target;

#[path = "../../guest/src/notify/datagram.rs"]
mod datagram;

/// Longest status, in characters: the contract's.
const STATUS_CHARS: usize = 256;

fuzz_target!(|input: &[u8]| {
    let mut said = Notified::default();
    for datagram in input.split(|byte| *byte == 0xfe) {
        let before = said.clone();
        datagram::apply(datagram, &mut said);
        check(datagram, &before, &said);
    }
    check_message(said);
});

/// Checks what a datagram made of what was said before.
fn check(datagram: &[u8], before: &Notified, after: &Notified) {
    let text = datagram.strip_suffix(b"\0").unwrap_or(datagram);
    if text.contains(&0) {
        assert_eq!(before, after, "a NUL byte in {}", datagram.escape_ascii());
        return;
    }
    let lines = || text.split(|byte| *byte == b'\n');
    let says = |said: &[u8]| lines().any(|line| line == said);
    assert_eq!(after.ready, before.ready || says(b"READY=1"));
    assert_eq!(after.stopping, before.stopping || says(b"STOPPING=1"));
    BoxState::try_from(after.state).expect("a state that there is");
    if let Some(status) = after.status.as_deref() {
        assert!(!status.is_empty() && status.chars().count() <= STATUS_CHARS, "{status:?}");
        let said = |line: &[u8]| {
            let line = line.strip_prefix(b"STATUS=");
            line.is_some_and(|line| line.starts_with(status.as_bytes()))
        };
        assert!(before.status == after.status || lines().any(said), "nobody said {status:?}");
    }
    let mut by_line = before.clone();
    lines().for_each(|line| datagram::apply(line, &mut by_line));
    assert_eq!(*after, by_line, "{} by line", datagram.escape_ascii());
}

/// Checks that the shim hears it as it was said.
fn check_message(said: Notified) {
    let message = GuestMessage { message: Some(guest_message::Message::Notified(said)) };
    let mut buffer = FrameBuffer::default();
    buffer.push(&frame::encode(&message));
    let heard = buffer.next_message().expect("a frame as it should be");
    assert_eq!(heard, Some(message));
}
