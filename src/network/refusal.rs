//! What the gate answers to a packet that it refuses, so that the guest's program fails at once and
//! does not wait for a timeout.
//!
//! | packet | answer |
//! |---|---|
//! | TCP | a reset from the address that was refused, which the guest reports as ECONNREFUSED |
//! | UDP, and a question by ICMP | the ICMP message "communication administratively prohibited" of the gateway, which the guest reports as EHOSTUNREACH |
//! | fragments, packets to groups of hosts, resets, other ICMP messages | none (RFC 1122, 3.2.2; RFC 9293, 3.10.7.1) |
//!
//! An answer has a fixed length of less than 100 bytes, and goes to the guest only.

use std::net::Ipv4Addr;

use super::addresses::{GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC};
use super::packet::{
    ECHO_REQUEST, ETHERNET_BYTES, IPV4_BYTES, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK,
    TCP_FIN, TCP_RST, TCP_SYN, TYPE_IPV4, is_fragment,
};

/// Size of a TCP header without options (RFC 9293).
const TCP_BYTES: usize = 20;

/// Type and code of the ICMP message (RFC 792, RFC 1812).
const UNREACHABLE: u8 = 3;
const PROHIBITED: u8 = 13;

/// Bytes of the refused packet behind its header that an ICMP message repeats (RFC 792). They
/// contain the ports, by which the guest finds the socket.
const REPEATED_BYTES: usize = 8;

/// Initial time to live (RFC 1700).
const TTL: u8 = 64;

/// The refused packet.
#[derive(Debug)]
struct Refused<'a> {
    destination: Ipv4Addr,
    header: &'a [u8],
    payload: &'a [u8],
}

/// Returns the frame that answers a refused frame of the guest, if it must be answered.
pub(super) fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET_BYTES)?;
    // The lowest bit of the first byte marks the address of a group (IEEE 802.3).
    if ethernet.first()? & 1 != 0 || !ethernet.ends_with(&TYPE_IPV4) {
        return None;
    }
    let header: &[u8; IPV4_BYTES] = packet.first_chunk()?;
    let [version_length, _, high, low, _, _, fragment_high, fragment_low, _, protocol, ..] =
        *header;
    let [.., a, b, c, d] = *header;
    let destination = Ipv4Addr::new(a, b, c, d);
    let is_group = destination.is_multicast() || destination.is_broadcast();
    let header_bytes = usize::from(version_length & 0x0f) * 4;
    if is_fragment(fragment_high, fragment_low) || is_group || header_bytes < IPV4_BYTES {
        return None;
    }
    // The frame may be longer than its packet, because short frames are padded.
    let packet = packet.get(..usize::from(u16::from_be_bytes([high, low])))?;
    let (header, payload) = packet.split_at_checked(header_bytes)?;
    let refused = Refused { destination, header, payload };
    match protocol {
        PROTOCOL_TCP => reset(&refused),
        PROTOCOL_UDP => Some(prohibited(&refused)),
        PROTOCOL_ICMP if payload.first() == Some(&ECHO_REQUEST) => Some(prohibited(&refused)),
        _ => None,
    }
}

/// Returns the reset of a TCP connection, as a host without this connection sends it (RFC 9293,
/// 3.10.7.1).
fn reset(refused: &Refused<'_>) -> Option<Vec<u8>> {
    let header: &[u8; TCP_BYTES] = refused.payload.first_chunk()?;
    let [a, b, c, d, s0, s1, s2, s3, acknowledged @ ..] = header;
    let [a0, a1, a2, a3, offset, flags, ..] = *acknowledged;
    if flags & TCP_RST != 0 {
        return None;
    }
    let data = refused.payload.len().checked_sub(usize::from(offset >> 4) * 4)?;
    let (sequence, acknowledgement, answer_flags) = if flags & TCP_ACK == 0 {
        // A packet has less than 64 KiB, so the conversion cannot fail.
        let length = u32::try_from(data).unwrap_or_default()
            + u32::from(flags & TCP_SYN != 0)
            + u32::from(flags & TCP_FIN != 0);
        let next = u32::from_be_bytes([*s0, *s1, *s2, *s3]).wrapping_add(length);
        (0, next, TCP_RST | TCP_ACK)
    } else {
        (u32::from_be_bytes([a0, a1, a2, a3]), 0, TCP_RST)
    };
    let start: [&[u8]; 5] = [
        // The ports change places.
        &[*c, *d, *a, *b],
        &sequence.to_be_bytes(),
        &acknowledgement.to_be_bytes(),
        // The length of the header in words of four bytes.
        &[5 << 4, answer_flags],
        // The window.
        &[0; 2],
    ];
    let (start, urgent) = (start.concat(), [0; 2]);
    let length = u16::try_from(TCP_BYTES).unwrap_or_default().to_be_bytes();
    let sum = checksum(&[
        // The pseudo header of TCP.
        &refused.destination.octets(),
        &GUEST_ADDRESS.octets(),
        &[0, PROTOCOL_TCP],
        &length,
        &start,
        &urgent,
    ]);
    Some(frame(refused.destination, PROTOCOL_TCP, &[&start, &sum, &urgent]))
}

/// Returns the ICMP message that a packet was filtered.
fn prohibited(refused: &Refused<'_>) -> Vec<u8> {
    let repeated = refused.payload.get(..REPEATED_BYTES).unwrap_or(refused.payload);
    let (start, unused) = ([UNREACHABLE, PROHIBITED], [0; 4]);
    let sum = checksum(&[&start, &unused, refused.header, repeated]);
    frame(GATEWAY_ADDRESS, PROTOCOL_ICMP, &[&start, &sum, &unused, refused.header, repeated])
}

/// Returns a frame with an IPv4 packet for the guest.
pub(super) fn frame(source: Ipv4Addr, protocol: u8, payload: &[&[u8]]) -> Vec<u8> {
    let payload = payload.concat();
    // An answer has less than 1 KiB, so the conversion cannot fail.
    let length = u16::try_from(IPV4_BYTES + payload.len()).unwrap_or_default().to_be_bytes();
    // Version 4 and a header of five words of four bytes, type of service, length, no identifier,
    // and the flag "do not fragment".
    let start = [0x45, 0, length[0], length[1], 0, 0, 0x40, 0, TTL, protocol];
    let addresses = [source.octets(), GUEST_ADDRESS.octets()].concat();
    let sum = checksum(&[&start, &addresses]);
    let ethernet = [&GUEST_MAC[..], &GATEWAY_MAC, &TYPE_IPV4].concat();
    [&ethernet, &start[..], &sum, &addresses, &payload].concat()
}

/// Returns the checksum of the internet protocols (RFC 1071). All parts but the last have an even
/// length.
pub(super) fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let value = |word: &[u8]| {
        let [high, low] = [word.first(), word.get(1)].map(|byte| byte.copied().unwrap_or_default());
        u32::from(u16::from_be_bytes([high, low]))
    };
    let mut sum: u32 = words.map(value).sum();
    while sum > u16::MAX.into() {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The loop leaves 16 bits, so the conversion cannot fail.
    (!u16::try_from(sum).unwrap_or_default()).to_be_bytes()
}

#[cfg(test)]
mod tests;
