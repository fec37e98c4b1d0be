use super::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);

/// A frame of the guest with an IPv4 packet, to this port.
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

fn leaves(frame: &[u8]) -> bool {
    may_leave(frame, &[SERVER])
}

#[test]
fn a_guest_speaks_to_others_and_not_to_the_host_itself() {
    for to in [[1, 1, 1, 1], [10, 0, 2, 2], [192, 168, 0, 1], [169, 253, 0, 1], [223, 255, 0, 1]] {
        assert!(leaves(&frame(to, PROTOCOL_TCP, 80)), "{to:?}");
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
            assert!(!leaves(&frame(to, protocol, 53)), "{to:?} {protocol}");
        }
    }
}

#[test]
fn a_link_local_name_server_answers_questions_and_nothing_else() {
    let to = SERVER.octets();
    assert!(leaves(&frame(to, PROTOCOL_UDP, 53)) && leaves(&frame(to, PROTOCOL_TCP, 53)));
    assert!(!leaves(&frame(to, PROTOCOL_TCP, 80)) && !leaves(&frame(to, 1, 53)));
    // A later fragment has no port; an earlier one could be put together with another.
    for (at, byte) in [(20, 0x20), (20, 0x01), (21, 0x01)] {
        let mut fragment = frame(to, PROTOCOL_UDP, 53);
        fragment[at] = byte;
        assert!(!leaves(&fragment), "{at}");
    }
    // Options in the header move the port, and a header cannot be shorter than it is.
    for length in [0x40, 0x44, 0x46, 0x4f] {
        let mut other = frame(to, PROTOCOL_UDP, 53);
        other[ETHERNET_BYTES] = length;
        assert!(!leaves(&other), "{length:x}");
    }
}

#[test]
fn what_is_not_the_guests_does_not_leave() {
    let good = frame([1, 1, 1, 1], PROTOCOL_TCP, 80);
    for length in 0..ETHERNET_BYTES + IPV4_BYTES {
        assert!(!leaves(&good[..length]), "{length}");
    }
    let mut spoofed = good.clone();
    spoofed[ETHERNET_BYTES + 12] = 127;
    assert!(!leaves(&spoofed));
    // IPv6, VLAN.
    for kind in [[0x86, 0xdd], [0x81, 0x00]] {
        let mut other = good.clone();
        other[12..14].copy_from_slice(&kind);
        assert!(!leaves(&other), "{kind:x?}");
    }
    assert!(leaves(&arp_request()[LENGTH_BYTES..]));
}

#[test]
fn the_answer_for_the_gateway_is_known() {
    let mut answer = arp_request()[LENGTH_BYTES..].to_vec();
    assert!(!is_arp_reply(&answer));
    answer[ETHERNET_BYTES + 7] = ARP_REPLY;
    assert!(!is_arp_reply(&answer), "it is of the guest");
    answer[ETHERNET_BYTES + 14..ETHERNET_BYTES + 18].copy_from_slice(&GATEWAY_ADDRESS.octets());
    assert!(is_arp_reply(&answer));
    for length in 0..ETHERNET_BYTES + 18 {
        assert!(!is_arp_reply(&answer[..length]), "{length}");
    }
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
}

async fn carried(bytes: &[u8]) -> (io::Result<()>, Vec<u8>) {
    let mut to = Vec::new();
    let end = carry(bytes, &mut to, leaves).await;
    (end, to)
}

#[tokio::test]
async fn frames_arrive_whole_and_in_order_without_those_that_must_not() {
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
async fn what_is_no_frame_ends_it() {
    for length in [0, 13, 65_551, u32::MAX] {
        let error = carried(&length.to_be_bytes()).await.0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length}");
    }
    let cut = with_length(&frame([1, 1, 1, 1], 6, 80));
    let (end, arrived) = carried(&cut[..cut.len() - 1]).await;
    assert!(end.is_err() && arrived.is_empty());
}
