//! What the gate passes on and drops: IPv4 here, and IPv6 in `ipv6`.

mod ipv6;
mod names;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use a3s_box_core::config::{self, PublishConfig};
use a3s_box_core::event::RefusedProtocol;

use super::*;
use crate::network::addresses::GUEST_MAC;
use crate::network::packet::{
    ETHERNET_BYTES, IPV4_BYTES, PROTOCOL_ICMP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, TYPE_ARP,
    TYPE_IPV4,
};

/// A name server at a link-local address, and one at the address of Azure's metadata.
const LINK_LOCAL_SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// An ordinary host, and its address with port 53.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const HOST_DNS: SocketAddrV4 = SocketAddrV4::new(HOST, PORT_DNS);

/// The UDP port of the guest that is published.
const PUBLISHED: u16 = 53;

/// The TCP port of the guest that is published.
const PUBLISHED_TCP: u16 = 80;

/// A port that the guest's kernel gives to a client.
const CLIENT: u16 = 40_000;

/// Returns a frame with an IPv4 packet that ends after its ports.
fn frame(from: SocketAddrV4, to: SocketAddrV4, protocol: u8) -> Vec<u8> {
    let mut header = [0; IPV4_BYTES];
    header[0] = 0x45;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from.ip().octets());
    header[16..].copy_from_slice(&to.ip().octets());
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    [&[2; 6][..], &GUEST_MAC, &TYPE_IPV4, &header, &ports].concat()
}

fn guest(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(GUEST_ADDRESS, port)
}

/// Returns a frame of a client in the guest.
fn sent(to: [u8; 4], protocol: u8, port: u16) -> Vec<u8> {
    frame(guest(CLIENT), SocketAddrV4::new(to.into(), port), protocol)
}

fn filter() -> Filter {
    filter_with(EgressSpec::Allow, false)
}

/// Returns a filter with this egress, for a host with the address [`HOST`].
fn filter_with(egress: EgressSpec, not_host: bool) -> Filter {
    let published = |guest_port, protocol| PublishConfig {
        host_address: Ipv4Addr::LOCALHOST.into(),
        host_port: 8053,
        guest_port,
        protocol,
    };
    let spec = PasstSpec {
        egress,
        not_host,
        publish: vec![published(PUBLISHED, Protocol::Udp), published(PUBLISHED_TCP, Protocol::Tcp)],
        dns: vec![LINK_LOCAL_SERVER.into(), AZURE.into()],
    };
    Filter::new(&spec, Egress::new(&spec, &[HOST.into()]), None)
}

/// Returns a filter with these rules.
fn with_rules(json: &str) -> Filter {
    let egress: config::Egress = serde_json::from_str(json).unwrap();
    filter_with(egress.try_into().unwrap(), false)
}

/// Returns a frame with a TCP packet of the guest.
fn segment(from: u16, to: SocketAddrV4, flags: u8) -> Vec<u8> {
    let mut frame = frame(guest(from), to, PROTOCOL_TCP);
    // Sequence numbers, the length of the header, flags, window, checksum and urgent pointer.
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    frame
}

/// Returns whether a frame of the guest passes a new filter.
fn leaves(frame: &[u8]) -> bool {
    passes(&mut filter(), frame)
}

fn passes(filter: &mut Filter, frame: &[u8]) -> bool {
    filter.leave(frame, Instant::now()) == Verdict::Pass
}

#[test]
fn frames_to_other_hosts_pass_and_frames_to_the_host_itself_are_dropped() {
    let others =
        [[1, 1, 1, 1], [10, 0, 2, 2], [192, 168, 0, 1], [169, 253, 0, 1], [223, 255, 0, 1]];
    for to in others {
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP] {
            assert!(leaves(&sent(to, protocol, 80)), "{to:?} {protocol}");
        }
    }
    for to in [
        [127, 0, 0, 1],
        [127, 255, 255, 254],
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
        [240, 0, 0, 1],
    ] {
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP] {
            assert!(!leaves(&sent(to, protocol, PORT_DNS)), "{to:?} {protocol}");
        }
    }
}

#[test]
fn metadata_of_clouds_is_not_reachable() {
    for to in [
        [169, 254, 169, 254],
        [169, 254, 170, 2],
        [169, 254, 0, 23],
        [100, 100, 100, 200],
        [168, 63, 129, 16],
        [192, 0, 0, 192],
        [100, 80, 80, 80],
        [100, 96, 0, 96],
    ] {
        for (protocol, port) in
            [(PROTOCOL_TCP, 80), (PROTOCOL_TCP, 32_526), (PROTOCOL_UDP, 80), (PROTOCOL_ICMP, 53)]
        {
            assert!(!leaves(&sent(to, protocol, port)), "{to:?} {protocol} {port}");
        }
        // The neighbour of such an address is an ordinary host, unless it is link-local as well.
        let [a, b, c, d] = to;
        let is_link_local = a == 169;
        assert_eq!(leaves(&sent([a, b, c, d - 1], PROTOCOL_TCP, 80)), !is_link_local, "{to:?}");
    }
}

#[test]
fn only_questions_pass_to_a_name_server_at_an_address_with_metadata() {
    for to in [LINK_LOCAL_SERVER.octets(), AZURE.octets()] {
        assert!(leaves(&sent(to, PROTOCOL_UDP, 53)) && leaves(&sent(to, PROTOCOL_TCP, 53)));
        assert!(!leaves(&sent(to, PROTOCOL_TCP, 80)) && !leaves(&sent(to, PROTOCOL_ICMP, 53)));
        // A later fragment has no port, and the first one could be combined with an overlapping
        // one.
        for (at, byte) in [(20, 0x20), (20, 0x01), (21, 0x01)] {
            let mut fragment = sent(to, PROTOCOL_TCP, 53);
            fragment[at] = byte;
            assert!(!leaves(&fragment), "{at}");
        }
        // The header length decides where the port is. Lengths below 20 bytes are not valid, and
        // larger ones move the port behind the options, past the end of this packet.
        for length in [0x40, 0x44, 0x46, 0x4f] {
            let mut other = sent(to, PROTOCOL_UDP, 53);
            other[ETHERNET_BYTES] = length;
            assert!(!leaves(&other), "{length:x}");
        }
    }
    // The address is no name server of this guest.
    assert!(!leaves(&sent([169, 254, 169, 254], PROTOCOL_UDP, 53)));
}

#[test]
fn short_spoofed_and_foreign_frames_are_dropped() {
    let good = sent([1, 1, 1, 1], PROTOCOL_TCP, 80);
    for length in 0..ETHERNET_BYTES + IPV4_BYTES {
        assert!(!leaves(&good[..length]), "{length}");
        assert!(!filter().may_arrive(&good[..length], Instant::now()), "{length}");
    }
    let mut spoofed = good.clone();
    spoofed[ETHERNET_BYTES + 12] = 127;
    assert!(!leaves(&spoofed));
    // The types of IPv6 and of a VLAN tag.
    for kind in [[0x86, 0xdd], [0x81, 0x00]] {
        let mut other = good.clone();
        other[12..14].copy_from_slice(&kind);
        assert!(!leaves(&other), "{kind:x?}");
        assert!(!filter().may_arrive(&other, Instant::now()), "{kind:x?}");
    }
    let mut arp = good;
    arp[12..14].copy_from_slice(&TYPE_ARP);
    assert!(leaves(&arp) && filter().may_arrive(&arp, Instant::now()));
}

#[test]
fn udp_leaves_from_ports_of_clients_and_from_published_ports_only() {
    let from = |port| frame(guest(port), HOST_DNS, PROTOCOL_UDP);
    for port in [FIRST_CLIENT_PORT, CLIENT, u16::MAX, PUBLISHED] {
        assert!(leaves(&from(port)), "{port}");
    }
    // Port 80 is published for TCP, and 8053 is a port of the host.
    for port in [0, 1, 68, 80, 123, 5353, 8053, FIRST_CLIENT_PORT - 1] {
        assert!(!leaves(&from(port)), "{port}");
    }
    let tcp = frame(guest(80), HOST_DNS, PROTOCOL_TCP);
    assert!(leaves(&tcp), "passt gives a port of the host's choice to a TCP connection");
    // passt takes the start of each fragment as ports.
    for (at, byte) in [(20, 0x20), (20, 0x01), (21, 0x01)] {
        let mut fragment = from(CLIENT);
        fragment[at] = byte;
        assert!(!leaves(&fragment), "{at}");
    }
    // The options of IPv4 move the ports. These four bytes are the ports that a reader without
    // regard for the header length would see.
    let mut options = from(CLIENT);
    options[ETHERNET_BYTES] = 0x46;
    options.extend([5353_u16.to_be_bytes(), 53_u16.to_be_bytes()].concat());
    assert!(!leaves(&options));
    assert!(!leaves(&from(CLIENT)[..ETHERNET_BYTES + IPV4_BYTES + 3]), "the ports are cut off");
}

#[test]
fn udp_arrives_as_an_answer_or_at_a_published_port_only() {
    let (mut filter, now) = (filter(), Instant::now());
    let answer = |from, port| frame(from, guest(port), PROTOCOL_UDP);
    assert!(!filter.may_arrive(&answer(HOST_DNS, CLIENT), now), "the guest has not sent yet");
    assert_eq!(filter.leave(&frame(guest(CLIENT), HOST_DNS, PROTOCOL_UDP), now), Verdict::Pass);
    assert!(filter.may_arrive(&answer(HOST_DNS, CLIENT), now));
    assert!(filter.may_arrive(&answer(HOST_DNS, CLIENT), now), "a second answer");
    let other_port = SocketAddrV4::new(HOST, 54);
    let other_host = SocketAddrV4::new(GATEWAY_ADDRESS, 53);
    for (from, port) in [(other_port, CLIENT), (other_host, CLIENT), (HOST_DNS, CLIENT + 1)] {
        assert!(!filter.may_arrive(&answer(from, port), now), "{from} {port}");
    }
    let mut fragment = answer(HOST_DNS, CLIENT);
    fragment[20] = 0x20;
    assert!(!filter.may_arrive(&fragment, now));
    let later = now + Duration::from_secs(180);
    assert!(!filter.may_arrive(&answer(HOST_DNS, CLIENT), later));
    // A datagram that the filter drops opens no flow.
    assert!(!passes(&mut filter, &frame(guest(5353), HOST_DNS, PROTOCOL_UDP)));
    assert!(!filter.may_arrive(&answer(HOST_DNS, 5353), now));
    assert!(filter.may_arrive(&answer(other_host, PUBLISHED), now), "a published port");
    for protocol in [PROTOCOL_TCP, PROTOCOL_ICMP] {
        assert!(filter.may_arrive(&frame(HOST_DNS, guest(CLIENT + 1), protocol), now));
    }
}

#[test]
fn rules_let_through_what_they_name() {
    let rules = r#"[{"to": "10.1.0.0/16", "ports": [443], "protocol": "tcp"},
                    {"to": "10.2.0.0/16", "ports": ["50-60"]}, {"to": "10.3.0.0/16"},
                    {"to": "10.4.0.0/16", "protocol": "udp"}]"#;
    let (tcp, udp, icmp) = (PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP);
    for (to, protocol, port, expected) in [
        ([10, 1, 9, 9], tcp, 443, true),
        ([10, 1, 9, 9], tcp, 444, false),
        ([10, 1, 9, 9], udp, 443, false),
        ([10, 1, 9, 9], icmp, 0, false),
        ([10, 2, 9, 9], tcp, 50, true),
        ([10, 2, 9, 9], udp, 60, true),
        ([10, 2, 9, 9], udp, 61, false),
        ([10, 2, 9, 9], icmp, 55, false),
        ([10, 3, 9, 9], tcp, 1, true),
        ([10, 3, 9, 9], udp, 1, true),
        ([10, 3, 9, 9], icmp, 0, true),
        ([10, 3, 9, 9], 47, 0, true),
        ([10, 4, 9, 9], udp, 1, true),
        ([10, 4, 9, 9], icmp, 0, false),
        ([10, 5, 9, 9], tcp, 443, false),
        (GATEWAY_ADDRESS.octets(), tcp, 443, false),
        // The name servers of the config need no rule.
        (AZURE.octets(), udp, 53, true),
        (AZURE.octets(), tcp, 53, true),
        (AZURE.octets(), udp, 54, false),
    ] {
        let frame = sent(to, protocol, port);
        assert_eq!(passes(&mut with_rules(rules), &frame), expected, "{to:?} {protocol} {port}");
    }
    assert!(!passes(&mut with_rules("[]"), &sent([10, 3, 9, 9], tcp, 443)));
}

#[test]
fn rule_without_ports_is_needed_for_a_fragment() {
    let fragment = |protocol| {
        let mut fragment = sent([10, 1, 9, 9], protocol, 443);
        fragment[20] = 0x20;
        fragment
    };
    let mut named = with_rules(r#"[{"to": "10.1.0.0/16", "ports": ["1-65535"]}]"#);
    let mut open = with_rules(r#"[{"to": "10.1.0.0/16"}]"#);
    assert!(!passes(&mut named, &fragment(PROTOCOL_TCP)));
    assert!(passes(&mut open, &fragment(PROTOCOL_TCP)));
    // A fragment of UDP never passes, because passt takes its start as ports.
    assert!(!passes(&mut named, &fragment(PROTOCOL_UDP)));
    assert!(!passes(&mut open, &fragment(PROTOCOL_UDP)));
}

#[test]
fn no_rule_allows_what_no_guest_may_reach() {
    for to in [
        [127, 0, 0, 1],
        [0, 0, 0, 0],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
        [169, 254, 169, 254],
        [100, 100, 100, 200],
        [168, 63, 129, 16],
    ] {
        for network in ["0.0.0.0/0".to_owned(), Ipv4Addr::from(to).to_string()] {
            let mut filter = with_rules(&format!(r#"[{{"to": "{network}"}}]"#));
            for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP] {
                assert!(!passes(&mut filter, &sent(to, protocol, 80)), "{to:?} {network}");
            }
        }
    }
}

#[test]
fn published_port_answers_everyone_and_opens_no_connection() {
    let stranger = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 9), 50_000);
    for mut filter in [with_rules("[]"), with_rules(r#"[{"to": "10.0.0.0/8"}]"#)] {
        for flags in [TCP_SYN | TCP_ACK, TCP_ACK, TCP_FIN | TCP_ACK, TCP_RST, TCP_RST | TCP_ACK] {
            let answer = segment(PUBLISHED_TCP, stranger, flags);
            assert!(passes(&mut filter, &answer), "{flags:x}");
            // From another port, and without the flags, which are cut off.
            assert!(
                !passes(&mut filter, &segment(PUBLISHED_TCP + 1, stranger, flags)),
                "{flags:x}"
            );
            let flags_at = ETHERNET_BYTES + IPV4_BYTES + 13;
            assert!(!passes(&mut filter, &answer[..flags_at]), "{flags:x}");
            // A fragment, whose start is not the start of the segment.
            for (at, byte) in [(20, 0x20), (21, 0x01)] {
                let mut fragment = answer.clone();
                fragment[at] = byte;
                assert!(!passes(&mut filter, &fragment), "{flags:x}");
            }
        }
        for flags in [TCP_SYN, TCP_SYN | TCP_FIN, TCP_SYN | TCP_RST, TCP_SYN | 0xe8] {
            let spoofed = segment(PUBLISHED_TCP, stranger, flags);
            assert!(!passes(&mut filter, &spoofed), "{flags:x}");
        }
        // The options of IPv4 move the flags. Byte 13 behind the shortest header is an ACK here.
        let mut options = segment(PUBLISHED_TCP, stranger, TCP_SYN);
        options[ETHERNET_BYTES] = 0x46;
        options
            .splice(34..34, [PUBLISHED_TCP.to_be_bytes()[0], PUBLISHED_TCP.to_be_bytes()[1], 0, 0]);
        options[34 + 13] = TCP_ACK;
        assert!(!passes(&mut filter, &options));
    }
    // A port that is published for UDP only.
    let answer = segment(PUBLISHED, stranger, TCP_ACK);
    assert!(!passes(&mut with_rules("[]"), &answer));
}

#[test]
fn published_udp_port_answers_only_who_has_asked() {
    let (mut filter, now) = (with_rules(r#"[{"to": "10.0.0.0/8"}]"#), Instant::now());
    let peer = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 9), 50_000);
    let answer = |to| frame(guest(PUBLISHED), to, PROTOCOL_UDP);
    assert!(!passes(&mut filter, &answer(peer)));
    assert!(filter.may_arrive(&frame(peer, guest(PUBLISHED), PROTOCOL_UDP), now));
    assert!(passes(&mut filter, &answer(peer)));
    for other in [SocketAddrV4::new(*peer.ip(), 50_001), SocketAddrV4::new(HOST, 50_000)] {
        assert!(!passes(&mut filter, &answer(other)), "{other}");
    }
    assert!(!passes(&mut filter, &frame(guest(CLIENT), peer, PROTOCOL_UDP)), "another port");
    let later = now + Duration::from_secs(180);
    assert!(matches!(filter.leave(&answer(peer), later), Verdict::Refuse(_)));
    // A rule makes any peer reachable, from a published port as well.
    let named = SocketAddrV4::new(Ipv4Addr::new(10, 9, 9, 9), 50_000);
    assert!(passes(&mut filter, &answer(named)));
}

#[test]
fn addresses_of_the_host_are_out_of_reach_if_the_config_says_so() {
    let everything: config::Egress = serde_json::from_str(r#"[{"to": "0.0.0.0/0"}]"#).unwrap();
    for egress in [EgressSpec::Allow, everything.try_into().unwrap()] {
        for (not_host, expected) in [(true, false), (false, true)] {
            let mut filter = filter_with(egress.clone(), not_host);
            for to in [HOST, GATEWAY_ADDRESS] {
                for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP] {
                    let frame = sent(to.octets(), protocol, 80);
                    assert_eq!(passes(&mut filter, &frame), expected, "{egress:?} {to} {protocol}");
                }
            }
            assert!(passes(&mut filter, &sent([192, 0, 2, 8], PROTOCOL_TCP, 80)));
            // Clients on the host itself reach published ports, from the gateway's address.
            let client = SocketAddrV4::new(GATEWAY_ADDRESS, 50_000);
            let answer = segment(PUBLISHED_TCP, client, TCP_SYN | TCP_ACK);
            assert!(passes(&mut filter, &answer));
        }
    }
}

#[test]
fn only_a_single_host_is_reported_as_refused() {
    // In an ICMP message, type and code are in the place of the source port.
    let (echo_request, port_unreachable) = (0x0800, 0x0303);
    let verdict_from = |source, to: [u8; 4], protocol| {
        let to = SocketAddrV4::new(to.into(), 443);
        with_rules("[]").leave(&frame(guest(source), to, protocol), Instant::now())
    };
    let verdict = |to, protocol| verdict_from(echo_request, to, protocol);
    let host = [10, 9, 9, 9];
    let address = host.into();
    for (number, protocol, port) in [
        (PROTOCOL_TCP, RefusedProtocol::Tcp, Some(443)),
        (PROTOCOL_UDP, RefusedProtocol::Udp, Some(443)),
        (PROTOCOL_ICMP, RefusedProtocol::Icmp, None),
    ] {
        let destination = Destination { protocol, address, port, name: None };
        assert_eq!(verdict(host, number), Verdict::Refuse(destination));
        for group in [[224, 0, 0, 251], [255, 255, 255, 255]] {
            assert_eq!(verdict(group, number), Verdict::Drop);
        }
    }
    assert_eq!(verdict(host, 47), Verdict::Drop);
    let error = verdict_from(port_unreachable, host, PROTOCOL_ICMP);
    assert_eq!(error, Verdict::Drop, "the guest's kernel sends it by itself");
    // With egress `allow` as well.
    let metadata = [169, 254, 169, 254];
    let found = filter().leave(&sent(metadata, PROTOCOL_TCP, 80), Instant::now());
    assert!(matches!(found, Verdict::Refuse(_)));
    // A packet that is not the guest's own, or is no packet.
    let mut spoofed = sent(metadata, PROTOCOL_TCP, 80);
    spoofed[ETHERNET_BYTES + 12] = 11;
    assert_eq!(filter().leave(&spoofed, Instant::now()), Verdict::Drop);
    assert_eq!(filter().leave(&spoofed[..20], Instant::now()), Verdict::Drop);
}

#[test]
fn questions_need_a_reachable_name_server() {
    let spec = |egress: &str, not_host| {
        let egress: config::Egress = serde_json::from_str(egress).unwrap();
        let egress = egress.try_into().unwrap();
        PasstSpec { egress, not_host, publish: Vec::new(), dns: Vec::new() }
    };
    for (egress, not_host, expected) in [
        (r#""allow""#, false, true),
        (r#""allow""#, true, false),
        (r#"[{"to": "192.0.2.0/24"}]"#, false, true),
        (r#"[{"to": "192.0.2.7", "ports": [53], "protocol": "udp"}]"#, false, true),
        (r#"[{"to": "192.0.2.7", "ports": [53], "protocol": "tcp"}]"#, false, false),
        (r#"[{"to": "192.0.2.7", "ports": [443]}]"#, false, false),
        ("[]", false, false),
    ] {
        let spec = spec(egress, not_host);
        let found = Egress::new(&spec, &[HOST.into()]).allows_questions_to(HOST.into());
        assert_eq!(found, expected, "{egress} {not_host}");
    }
}
