//! The bytes of answers, read by a parser of their own.

use super::*;

/// A packet as a receiver reads it, with all checksums verified.
#[derive(Debug, PartialEq)]
struct Read {
    from: [u8; 4],
    protocol: u8,
    payload: Vec<u8>,
}

/// Adds up the words of a packet, with the checksum among them. The sum of a valid one is 0xffff
/// (RFC 1071).
fn ones_complement_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for (i, byte) in bytes.iter().enumerate() {
        sum += u64::from(*byte) << if i % 2 == 0 { 8 } else { 0 };
    }
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap()
}

fn read(frame: &[u8]) -> Read {
    assert_eq!(frame[..6], [0x02, 0xa3, 0x53, 0, 0, 0x0f], "the guest");
    assert_eq!(frame[6..12], [0x02, 0xa3, 0x53, 0, 0, 0x02], "the gateway");
    assert_eq!(frame[12..14], [0x08, 0x00]);
    let packet = &frame[14..];
    assert_eq!(packet[0], 0x45);
    assert_eq!(usize::from(packet[2]) * 256 + usize::from(packet[3]), packet.len());
    assert_eq!(packet[6..8], [0x40, 0], "no fragment");
    assert!(packet[8] > 1, "time to live");
    assert_eq!(ones_complement_sum(&packet[..20]), 0xffff);
    assert_eq!(packet[16..20], [10, 0, 2, 15]);
    let (protocol, payload) = (packet[9], packet[20..].to_vec());
    let mut summed = payload.clone();
    if protocol == 6 {
        summed =
            [&packet[12..20], &[0, 6, 0, u8::try_from(payload.len()).unwrap()], &payload].concat();
    }
    assert_eq!(ones_complement_sum(&summed), 0xffff);
    Read { from: packet[12..16].try_into().unwrap(), protocol, payload }
}

/// Returns a frame of the guest to 192.0.2.7.
fn sent(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let header = [0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    let ethernet = [&GATEWAY_MAC[..], &GUEST_MAC, &TYPE_IPV4].concat();
    [&ethernet, &header[..], &[10, 0, 2, 15, 192, 0, 2, 7], payload].concat()
}

/// Returns a TCP packet from port 40000 to port 443 with the sequence number 0xfffffffe.
fn segment(flags: u8, acknowledgement: u32, data: &[u8]) -> Vec<u8> {
    let ports = [40_000_u16.to_be_bytes(), 443_u16.to_be_bytes()].concat();
    let numbers = [0xffff_fffe_u32.to_be_bytes(), acknowledgement.to_be_bytes()].concat();
    // A header of 24 bytes, with one option of four bytes.
    let rest = [0x60, flags, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 0xff, 0xd7];
    [&ports, &numbers, &rest[..], data].concat()
}

#[test]
fn connection_is_reset_with_the_numbers_that_the_guest_expects() {
    for (flags, acknowledgement, data, expected) in [
        // Sequence number, acknowledgement, flags. A SYN counts as one byte, and so does a FIN.
        (TCP_SYN, 0, &b""[..], (0, 0xffff_ffff_u32, TCP_RST | TCP_ACK)),
        (TCP_SYN, 0, b"hello", (0, 4, TCP_RST | TCP_ACK)),
        (TCP_SYN | TCP_FIN, 7, b"", (0, 0, TCP_RST | TCP_ACK)),
        (TCP_ACK, 0x1234_5678, b"hello", (0x1234_5678, 0, TCP_RST)),
        (TCP_SYN | TCP_ACK, 9, b"", (9, 0, TCP_RST)),
    ] {
        let frame = sent(PROTOCOL_TCP, &segment(flags, acknowledgement, data));
        let Read { from, protocol, payload } = read(&answer(&frame).unwrap());
        assert_eq!((from, protocol), ([192, 0, 2, 7], PROTOCOL_TCP));
        assert_eq!(payload.len(), 20);
        let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        assert_eq!((port(0), port(2)), (443, 40_000));
        assert_eq!((number(4), number(8), payload[13]), expected, "{flags:x}");
        assert_eq!((payload[12], port(14), port(18)), (0x50, 0, 0));
    }
}

#[test]
fn datagram_and_echo_request_are_answered_with_prohibited() {
    let udp =
        [&40_000_u16.to_be_bytes()[..], &53_u16.to_be_bytes(), &[0, 13, 0, 0], b"hello"].concat();
    let echo = [8, 0, 1, 2, 3, 4, 5, 6, 7];
    for (protocol, payload) in [(PROTOCOL_UDP, udp.as_slice()), (PROTOCOL_ICMP, &echo)] {
        let frame = sent(protocol, payload);
        let Read { from, protocol, payload } = read(&answer(&frame).unwrap());
        assert_eq!((from, protocol), ([10, 0, 2, 2], PROTOCOL_ICMP));
        assert_eq!(payload[..2], [3, 13]);
        assert_eq!(payload[4..8], [0; 4]);
        assert_eq!(payload[8..], frame[14..14 + 20 + 8], "header and eight bytes of the packet");
    }
    // The options of the packet are repeated, and a short packet is repeated as it is.
    let mut options = sent(PROTOCOL_UDP, &[1; 7]);
    options[14] = 0x46;
    let Read { payload, .. } = read(&answer(&options).unwrap());
    assert_eq!(payload[8..], options[14..]);
}

#[test]
fn padding_of_a_frame_is_no_data() {
    let mut frame = sent(PROTOCOL_TCP, &segment(TCP_SYN, 0, b""));
    frame.extend([0; 10]);
    let Read { payload, .. } = read(&answer(&frame).unwrap());
    assert_eq!(payload[8..12], 0xffff_ffff_u32.to_be_bytes());
}

#[test]
fn no_answer_where_it_would_be_wrong() {
    let udp = sent(PROTOCOL_UDP, &[1; 8]);
    assert!(answer(&udp).is_some());
    let changed = |at: usize, byte: u8| {
        let mut frame = udp.clone();
        frame[at] = byte;
        frame
    };
    for (frame, what) in [
        (changed(0, 0xff), "a frame to a group"),
        (changed(12, 0x86), "another type"),
        (changed(13, 0xdd), "another type"),
        (changed(20, 0x20), "the first fragment"),
        (changed(21, 1), "a later fragment"),
        (changed(30, 224), "a packet to a group"),
        (changed(14, 0x44), "a header that is too short"),
        (changed(14, 0x4f), "a header that is longer than the packet"),
        (changed(17, 40), "a packet that is longer than its frame"),
        (changed(17, 19), "a packet that is shorter than its header"),
        (changed(23, 47), "a protocol without answers"),
        (sent(PROTOCOL_TCP, &segment(TCP_RST, 0, b"")), "a reset"),
        (sent(PROTOCOL_TCP, &segment(TCP_SYN, 0, b"")[..19]), "a TCP header that is cut off"),
        (sent(PROTOCOL_TCP, &segment(TCP_SYN, 0, b"")[..20]), "TCP options that are cut off"),
        (sent(PROTOCOL_ICMP, &[3, 1, 0, 0, 0, 0, 0, 0]), "an ICMP error"),
        (sent(PROTOCOL_ICMP, &[0, 0, 0, 0, 0, 0, 0, 0]), "an echo reply"),
        (sent(PROTOCOL_ICMP, &[]), "an empty packet"),
    ] {
        assert_eq!(answer(&frame), None, "{what}");
    }
    let mut broadcast = udp.clone();
    broadcast[30..34].copy_from_slice(&[255; 4]);
    assert_eq!(answer(&broadcast), None);
    for length in 0..udp.len() {
        assert_eq!(answer(&udp[..length]), None, "{length}");
    }
}

/// The refused destination `2001:db8::7`, and the addresses of guest and gateway.
const DESTINATION_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const GUEST_V6: [u8; 16] = [0xfd, 0xfb, 0x61, 0xf7, 0xaf, 0xae, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x15];
const GATEWAY_V6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x53, 0xff, 0xfe, 0, 0, 2];

/// Returns an IPv6 frame of the guest to [`DESTINATION_V6`].
fn sent_v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [0x60, 0, 0, 0, high, low, protocol, 64];
    let ethernet = [&GATEWAY_MAC[..], &GUEST_MAC, &[0x86, 0xdd]].concat();
    [&ethernet, &header[..], &GUEST_V6, &DESTINATION_V6, payload].concat()
}

/// Returns the source, the protocol and the payload of an IPv6 answer, whose checksum is verified.
fn read_v6(frame: &[u8]) -> ([u8; 16], u8, Vec<u8>) {
    assert_eq!(frame[..6], [0x02, 0xa3, 0x53, 0, 0, 0x0f], "the guest");
    assert_eq!(frame[6..12], [0x02, 0xa3, 0x53, 0, 0, 0x02], "the gateway");
    assert_eq!(frame[12..18], [0x86, 0xdd, 0x60, 0, 0, 0]);
    let packet = &frame[14..];
    let length = u16::try_from(packet.len() - 40).unwrap();
    assert_eq!(packet[4..6], length.to_be_bytes());
    assert!(packet[7] > 1, "hop limit");
    assert_eq!(packet[24..40], GUEST_V6);
    let (protocol, payload) = (packet[6], packet[40..].to_vec());
    let pseudo = [&packet[8..40], &[0, 0], &length.to_be_bytes(), &[0, 0, 0, protocol]].concat();
    assert_eq!(ones_complement_sum(&[pseudo, payload.clone()].concat()), 0xffff);
    (packet[8..24].try_into().unwrap(), protocol, payload)
}

#[test]
fn ipv6_connection_is_reset_as_one_of_ipv4() {
    for (flags, acknowledgement, data) in
        [(TCP_SYN, 0, &b""[..]), (TCP_SYN, 0, b"hello"), (TCP_ACK, 0x1234_5678, b"hello")]
    {
        let segment = segment(flags, acknowledgement, data);
        let (from, protocol, mut reset) =
            read_v6(&answer(&sent_v6(PROTOCOL_TCP, &segment)).unwrap());
        assert_eq!((from, protocol), (DESTINATION_V6, PROTOCOL_TCP));
        let mut expected = read(&answer(&sent(PROTOCOL_TCP, &segment)).unwrap()).payload;
        // Only the checksums differ.
        reset[16..18].fill(0);
        expected[16..18].fill(0);
        assert_eq!(reset, expected);
    }
}

#[test]
fn ipv6_datagram_and_echo_request_are_answered_with_prohibited() {
    let long = vec![7; 3000];
    for (protocol, payload, repeated) in [
        (PROTOCOL_UDP, &b"\x9c\x40\0\x35\0\x0d\0\0hello"[..], 13),
        (58, &[128, 0, 1, 2, 3, 4, 5, 6, 7], 9),
        // The answer is no longer than the least MTU of IPv6: two headers and 8 bytes, and the rest.
        (PROTOCOL_UDP, &long, 1280 - 40 - 8 - 40),
    ] {
        let frame = sent_v6(protocol, payload);
        let (from, protocol, message) = read_v6(&answer(&frame).unwrap());
        assert_eq!((from, protocol), (GATEWAY_V6, 58));
        assert_eq!((&message[..2], &message[4..8]), (&[1, 1][..], &[0; 4][..]));
        assert_eq!(message[8..], frame[14..14 + 40 + repeated]);
    }
}

#[test]
fn no_ipv6_answer_where_it_would_be_wrong() {
    let udp = sent_v6(PROTOCOL_UDP, &[1; 8]);
    assert!(answer(&udp).is_some());
    let changed = |at: usize, byte: u8| {
        let mut frame = udp.clone();
        frame[at] = byte;
        frame
    };
    for (frame, what) in [
        (changed(0, 0x33), "a frame to a group"),
        (changed(13, 0xde), "another type"),
        (changed(14, 0x40), "another version"),
        (changed(19, 9), "a packet that is longer than its frame"),
        (changed(20, 0), "an extension header"),
        (changed(20, 44), "a fragment"),
        (changed(20, 132), "a protocol without answers"),
        (changed(22, 0xff), "a packet from a group"),
        (changed(38, 0xff), "a packet to a group"),
        (sent_v6(PROTOCOL_TCP, &segment(TCP_RST, 0, b"")), "a reset"),
        (sent_v6(PROTOCOL_TCP, &segment(TCP_SYN, 0, b"")[..19]), "a TCP header that is cut off"),
        (sent_v6(58, &[1, 1, 0, 0, 0, 0, 0, 0]), "an ICMPv6 error"),
        (sent_v6(58, &[129, 0, 0, 0, 0, 0, 0, 0]), "an echo reply"),
        (sent_v6(58, &[135, 0, 0, 0, 0, 0, 0, 0]), "neighbour discovery"),
        (sent_v6(58, &[]), "an empty packet"),
    ] {
        assert_eq!(answer(&frame), None, "{what}");
    }
    let mut unspecified = udp.clone();
    unspecified[22..38].fill(0);
    assert_eq!(answer(&unspecified), None);
    for length in 0..udp.len() {
        assert_eq!(answer(&udp[..length]), None, "{length}");
    }
}
