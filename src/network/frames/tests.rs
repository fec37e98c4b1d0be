//! What the gate passes on and drops.

use super::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);

/// Returns a frame of the guest with an IPv4 packet to `port`. The packet ends after the port.
fn frame(to: [u8; 4], protocol: u8, port: u16) -> Vec<u8> {
    let mut header = [0; IPV4_BYTES];
    header[0] = 0x45;
    header[9] = protocol;
    header[12..16].copy_from_slice(&GUEST_ADDRESS.octets());
    header[16..].copy_from_slice(&to);
    let parts: [&[u8]; 6] =
        [&[2; 6], &GUEST_MAC, &TYPE_IPV4, &header, &[1, 2], &port.to_be_bytes()];
    parts.concat()
}

fn passes(frame: &[u8]) -> bool {
    may_leave(frame, &[SERVER])
}

#[test]
fn frames_to_other_hosts_pass_and_frames_to_the_host_itself_are_dropped() {
    for to in [[1, 1, 1, 1], [10, 0, 2, 2], [192, 168, 0, 1], [169, 253, 0, 1], [223, 255, 0, 1]] {
        assert!(passes(&frame(to, PROTOCOL_TCP, 80)), "{to:?}");
    }
    for to in [
        [127, 0, 0, 1],
        [127, 255, 255, 254],
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
        [240, 0, 0, 1],
        [169, 254, 169, 254],
    ] {
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, 1] {
            assert!(!passes(&frame(to, protocol, 53)), "{to:?} {protocol}");
        }
    }
}

#[test]
fn only_questions_pass_to_a_link_local_name_server() {
    let to = SERVER.octets();
    assert!(passes(&frame(to, PROTOCOL_UDP, 53)) && passes(&frame(to, PROTOCOL_TCP, 53)));
    assert!(!passes(&frame(to, PROTOCOL_TCP, 80)) && !passes(&frame(to, 1, 53)));
    // A later fragment has no port, and the first one could be combined with an overlapping one.
    for (at, byte) in [(20, 0x20), (20, 0x01), (21, 0x01)] {
        let mut fragment = frame(to, PROTOCOL_UDP, 53);
        fragment[at] = byte;
        assert!(!passes(&fragment), "{at}");
    }
    // The header length decides where the port is. Lengths below 20 bytes are not valid, and larger
    // ones move the port behind the options, past the end of this packet.
    for length in [0x40, 0x44, 0x46, 0x4f] {
        let mut other = frame(to, PROTOCOL_UDP, 53);
        other[ETHERNET_BYTES] = length;
        assert!(!passes(&other), "{length:x}");
    }
}

#[test]
fn short_spoofed_and_foreign_frames_are_dropped() {
    let good = frame([1, 1, 1, 1], PROTOCOL_TCP, 80);
    for length in 0..ETHERNET_BYTES + IPV4_BYTES {
        assert!(!passes(&good[..length]), "{length}");
    }
    let mut spoofed = good.clone();
    spoofed[ETHERNET_BYTES + 12] = 127;
    assert!(!passes(&spoofed));
    // The types of IPv6 and of a VLAN tag.
    for kind in [[0x86, 0xdd], [0x81, 0x00]] {
        let mut other = good.clone();
        other[12..14].copy_from_slice(&kind);
        assert!(!passes(&other), "{kind:x?}");
    }
    assert!(passes(&arp_request()[LENGTH_BYTES..]));
}

#[test]
fn only_an_arp_reply_of_the_gateway_is_recognised() {
    let mut reply = arp_request()[LENGTH_BYTES..].to_vec();
    assert!(!is_arp_reply(&reply));
    reply[ETHERNET_BYTES + 7] = ARP_REPLY;
    assert!(!is_arp_reply(&reply), "its sender is the guest");
    reply[ETHERNET_BYTES + 14..ETHERNET_BYTES + 18].copy_from_slice(&GATEWAY_ADDRESS.octets());
    assert!(is_arp_reply(&reply));
    for length in 0..ETHERNET_BYTES + 18 {
        assert!(!is_arp_reply(&reply[..length]), "{length}");
    }
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
}

async fn carried(bytes: &[u8]) -> (io::Result<()>, Vec<u8>) {
    let mut to = Vec::new();
    let end = carry(bytes, &mut to, passes).await;
    (end, to)
}

#[tokio::test]
async fn allowed_frames_arrive_whole_and_in_order() {
    let (a, b) = (frame([1, 1, 1, 1], 6, 80), frame([9, 9, 9, 9], 17, 53));
    let loopback = frame([127, 0, 0, 1], 6, 80);
    let mut largest = a.clone();
    largest.resize(MAX_FRAME_BYTES, 7);
    let sent: Vec<u8> = [&a, &loopback, &largest, &b].map(|frame| with_length(frame)).concat();
    let expected: Vec<u8> = [&a, &largest, &b].map(|frame| with_length(frame)).concat();
    let (end, arrived) = carried(&sent).await;
    end.unwrap();
    assert!(arrived == expected);
}

#[tokio::test]
async fn invalid_length_and_incomplete_frame_end_the_stream() {
    for length in [0, 13, 65_551, u32::MAX] {
        let error = carried(&length.to_be_bytes()).await.0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length}");
    }
    let cut = with_length(&frame([1, 1, 1, 1], 6, 80));
    let (end, arrived) = carried(&cut[..cut.len() - 1]).await;
    assert!(end.is_err() && arrived.is_empty());
}
