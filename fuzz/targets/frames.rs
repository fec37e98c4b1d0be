//! Ethernet frames of a guest, as the gate of its network carries them. What arrived is read by etherparse.

#![no_main]
#![allow(clippy::unwrap_used, reason = "what cannot be set up ends the fuzzer")]

use std::net::Ipv4Addr;

use etherparse::{Ethernet2HeaderSlice, Ipv4HeaderSlice, ether_type, ip_number};
use ground::pieces::Pieces;
use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "the rest is for the shim itself")]
#[path = "../../src/network/addresses.rs"]
mod addresses;
#[expect(dead_code, reason = "the rest is for the shim's own question")]
#[path = "../../src/network/frames.rs"]
mod frames;
#[allow(dead_code, reason = "the rest is for the shim's config")]
#[path = "../../src/spec/network.rs"]
mod spec;

use self::addresses::GUEST_ADDRESS;

/// A name server with a link-local address.
const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);

const LENGTH_BYTES: usize = 4;
const DNS_PORT: u16 = 53;

fuzz_target!(|input: &[u8]| {
    let pieces = Pieces::new(input);
    let sent = split(pieces.stream());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut arrived = Vec::new();
    let may_leave = |frame: &[u8]| frames::may_leave(frame, &[SERVER]);
    // What is no frame ends it: what came before has arrived.
    let _ended = runtime.block_on(frames::carry(pieces, &mut arrived, may_leave));
    let mut arrived = split(&arrived).into_iter().peekable();
    for frame in sent {
        let has_arrived = arrived.next_if_eq(&frame).is_some();
        // One without a packet in it is nobody's.
        if let Some(expected) = expected(frame) {
            assert_eq!(has_arrived, expected, "{}", frame.escape_ascii());
        }
    }
    assert_eq!(arrived.next(), None, "nobody sent it");
});

/// The frames of a stream, up to what is none.
fn split(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk::<LENGTH_BYTES>()
        && let length @ 14..=65_550 = u32::from_be_bytes(*length)
        && let Some((frame, rest)) = rest.split_at_checked(length.try_into().unwrap())
    {
        frames.push(frame);
        stream = rest;
    }
    frames
}

/// Whether a frame is to arrive; nothing of one whose packet has no header.
fn expected(frame: &[u8]) -> Option<bool> {
    let ethernet = Ethernet2HeaderSlice::from_slice(frame).unwrap();
    match ethernet.ether_type() {
        ether_type::ARP => return Some(true),
        ether_type::IPV4 => {}
        _ => return Some(false),
    }
    let packet = &frame[ethernet.slice().len()..];
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let to = header.destination_addr();
    let first = to.octets()[0];
    let is_hosts = to.is_loopback() || first == 0 || first >= 224;
    if header.source_addr() != GUEST_ADDRESS || is_hosts {
        return Some(false);
    }
    Some(!to.is_link_local() || (to == SERVER && is_question(&header, packet)))
}

fn is_question(header: &Ipv4HeaderSlice<'_>, packet: &[u8]) -> bool {
    let knows_ports = [ip_number::TCP, ip_number::UDP].contains(&header.protocol());
    let port = packet.get(header.slice().len() + 2..).and_then(<[u8]>::first_chunk);
    let is_whole = !header.is_fragmenting_payload();
    knows_ports && is_whole && port.map(|port| u16::from_be_bytes(*port)) == Some(DNS_PORT)
}
