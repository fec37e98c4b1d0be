//! What the gate answers to a packet that it refuses, so that the guest's program fails at once and
//! does not wait for a timeout.
//!
//! | packet | answer |
//! |---|---|
//! | TCP | a reset from the address that was refused, which the guest reports as ECONNREFUSED |
//! | UDP, and a question by ICMP | the message "communication administratively prohibited" of the gateway: by ICMP, which the guest reports as EHOSTUNREACH, or by ICMPv6, which it reports as EACCES |
//! | fragments, packets to groups of hosts, resets, other ICMP messages | none (RFC 1122, 3.2.2; RFC 4443, 2.4; RFC 9293, 3.10.7.1) |
//!
//! An answer is at most as long as the packet that it repeats and 62 bytes more, and goes to the
//! guest only.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::addresses::{
    GATEWAY_ADDRESS, GATEWAY_LINK_LOCAL, GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC,
};
use super::checksum::{checksum, pseudo_header};
use super::notice::is_group;
use super::packet::{
    ECHO_REQUEST, ECHO_REQUEST_V6, ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, PROTOCOL_ICMP,
    PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet6, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN,
    TYPE_IPV4, TYPE_IPV6, is_fragment,
};

/// Size of a TCP header without options (RFC 9293).
const TCP_HEADER_BYTES: u16 = 20;

/// Type and code of the ICMP message (RFC 792, RFC 1812).
const UNREACHABLE: u8 = 3;
const PROHIBITED: u8 = 13;

/// Type and code of the ICMPv6 message (RFC 4443).
const UNREACHABLE_V6: u8 = 1;
const PROHIBITED_V6: u8 = 1;

/// Bytes of the refused packet behind its header that an ICMP message repeats (RFC 792). They
/// contain the ports, by which the guest finds the socket.
const REPEATED_BYTES: usize = 8;

/// Size of an ICMPv6 message in front of the refused packet (RFC 4443).
const ICMPV6_BYTES: usize = 8;

/// Size that every link must carry (RFC 8200). An ICMPv6 message repeats as much of the refused
/// packet as fits in a packet of this size.
const MIN_MTU: usize = 1280;

/// Initial time to live (RFC 1700), and hop limit.
const TTL: u8 = 64;

/// Returns the frame that answers a refused frame of the guest, if it must be answered.
pub(super) fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    // The lowest bit of the first byte marks the address of a group (IEEE 802.3).
    if frame.first()? & 1 != 0 {
        return None;
    }
    answer_v4(frame).or_else(|| answer_v6(&Packet6::read(frame)?))
}

fn answer_v4(frame: &[u8]) -> Option<Vec<u8>> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET_BYTES)?;
    if !ethernet.ends_with(&TYPE_IPV4) {
        return None;
    }
    let header: &[u8; IPV4_BYTES] = packet.first_chunk()?;
    let [version_length, _, high, low, _, _, fragment_high, fragment_low, _, protocol, ..] =
        *header;
    let [.., a, b, c, d] = *header;
    let destination = Ipv4Addr::new(a, b, c, d);
    let header_bytes = usize::from(version_length & 0x0f) * 4;
    if is_fragment(fragment_high, fragment_low)
        || is_group(destination.into())
        || header_bytes < IPV4_BYTES
    {
        return None;
    }
    // The frame may be longer than its packet, because short frames are padded.
    let packet = packet.get(..usize::from(u16::from_be_bytes([high, low])))?;
    let (header, payload) = packet.split_at_checked(header_bytes)?;
    match protocol {
        PROTOCOL_TCP => {
            let addresses = [destination.octets(), GUEST_ADDRESS.octets()].concat();
            let [high, low] = TCP_HEADER_BYTES.to_be_bytes();
            let pseudo = [&addresses[..], &[0, PROTOCOL_TCP, high, low]].concat();
            Some(frame_v4(destination, PROTOCOL_TCP, &[&reset(payload, &pseudo)?]))
        }
        PROTOCOL_UDP => Some(prohibited_v4(header, payload)),
        PROTOCOL_ICMP if payload.first() == Some(&ECHO_REQUEST) => {
            Some(prohibited_v4(header, payload))
        }
        _ => None,
    }
}

fn answer_v6(refused: &Packet6<'_>) -> Option<Vec<u8>> {
    let (guest, destination, payload) = (refused.source, refused.destination, refused.payload);
    if is_group(destination.into()) || is_group(guest.into()) || guest.is_unspecified() {
        return None;
    }
    match refused.next_header {
        PROTOCOL_TCP => {
            let pseudo = pseudo_header(destination, guest, PROTOCOL_TCP, TCP_HEADER_BYTES);
            Some(frame_v6([destination, guest], PROTOCOL_TCP, &reset(payload, &pseudo)?))
        }
        PROTOCOL_UDP => Some(prohibited_v6(refused)),
        PROTOCOL_ICMPV6 if payload.first() == Some(&ECHO_REQUEST_V6) => {
            Some(prohibited_v6(refused))
        }
        _ => None,
    }
}

/// Returns the header that resets a TCP connection, as a host without this connection sends it
/// (RFC 9293, 3.10.7.1). `pseudo` is what precedes it in its checksum.
fn reset(payload: &[u8], pseudo: &[u8]) -> Option<Vec<u8>> {
    let header: &[u8; 20] = payload.first_chunk()?;
    let [a, b, c, d, s0, s1, s2, s3, acknowledged @ ..] = header;
    let [a0, a1, a2, a3, offset, flags, ..] = *acknowledged;
    if flags & TCP_RST != 0 {
        return None;
    }
    let data = payload.len().checked_sub(usize::from(offset >> 4) * 4)?;
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
    let sum = checksum(&[pseudo, &start, &urgent]);
    Some([&start[..], &sum, &urgent].concat())
}

/// Returns the ICMP message that a packet was filtered.
fn prohibited_v4(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let repeated = payload.get(..REPEATED_BYTES).unwrap_or(payload);
    let (start, unused) = ([UNREACHABLE, PROHIBITED], [0; 4]);
    let sum = checksum(&[&start, &unused, header, repeated]);
    frame_v4(GATEWAY_ADDRESS, PROTOCOL_ICMP, &[&start, &sum, &unused, header, repeated])
}

/// Returns the ICMPv6 message that a packet was filtered. It goes to the address of the guest that the
/// packet came from.
fn prohibited_v6(refused: &Packet6<'_>) -> Vec<u8> {
    let room = MIN_MTU - IPV6_BYTES - ICMPV6_BYTES - refused.header.len();
    let repeated = refused.payload.get(..room).unwrap_or(refused.payload);
    let (start, unused) = ([UNREACHABLE_V6, PROHIBITED_V6], [0; 4]);
    let length = ICMPV6_BYTES + refused.header.len() + repeated.len();
    // The message has at most 1240 bytes, so the conversion cannot fail.
    let length = u16::try_from(length).unwrap_or_default();
    let (gateway, guest) = (GATEWAY_LINK_LOCAL, refused.source);
    let pseudo = pseudo_header(gateway, guest, PROTOCOL_ICMPV6, length);
    let sum = checksum(&[&pseudo, &start, &unused, refused.header, repeated]);
    let message: [&[u8]; 5] = [&start, &sum, &unused, refused.header, repeated];
    frame_v6([gateway, guest], PROTOCOL_ICMPV6, &message.concat())
}

/// Returns a frame with an IPv6 packet for the guest. The first of the addresses is its source.
fn frame_v6(addresses: [Ipv6Addr; 2], protocol: u8, payload: &[u8]) -> Vec<u8> {
    // An answer has at most 1280 bytes, so the conversion cannot fail.
    let [high, low] = u16::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let start = [0x60, 0, 0, 0, high, low, protocol, TTL];
    let ethernet = [&GUEST_MAC[..], &GATEWAY_MAC, &TYPE_IPV6].concat();
    let addresses = addresses.map(|address| address.octets()).concat();
    [&ethernet, &start[..], &addresses, payload].concat()
}

/// Returns a frame with an IPv4 packet for the guest.
pub(super) fn frame_v4(source: Ipv4Addr, protocol: u8, payload: &[&[u8]]) -> Vec<u8> {
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

#[cfg(test)]
mod tests;
