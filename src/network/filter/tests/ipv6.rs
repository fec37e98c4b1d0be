//! What the gate passes on and drops of IPv6.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use a3s_box_core::config::{self, PublishConfig};
use a3s_box_core::event::RefusedProtocol;

use crate::network::addresses::GUEST_MAC;
use crate::network::filter::*;
use crate::network::packet::{ETHERNET_BYTES, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, TYPE_IPV6};

/// An address of the host.
const HOST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

/// A name server of a cloud that serves metadata in the same network.
const AWS_SERVER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253);

/// The ports of the guest that are published.
const PUBLISHED: u16 = 53;
const PUBLISHED_TCP: u16 = 80;

/// A port that the guest's kernel gives to a client.
const CLIENT: u16 = 40_000;

fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn packet(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [0x60, 0, 0, 0, high, low, protocol, 64];
    [&[2; 6][..], &GUEST_MAC, &TYPE_IPV6, &header, &from.octets(), &to.octets(), payload].concat()
}

/// Returns a packet with ports, or an echo request.
fn frame(from: SocketAddrV6, to: SocketAddrV6, protocol: u8) -> Vec<u8> {
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let payload = if protocol == PROTOCOL_ICMPV6 { vec![128, 0, 0, 0] } else { ports };
    packet(*from.ip(), *to.ip(), protocol, &payload)
}

fn at(ip: Ipv6Addr, port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(ip, port, 0, 0)
}

fn guest(port: u16) -> SocketAddrV6 {
    at(GUEST_ADDRESS_V6, port)
}

/// Returns a frame of a client in the guest.
fn sent(to: &str, protocol: u8, port: u16) -> Vec<u8> {
    frame(guest(CLIENT), at(address(to), port), protocol)
}

/// Returns a frame with a TCP packet of the guest.
fn segment(from: SocketAddrV6, to: SocketAddrV6, flags: u8) -> Vec<u8> {
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let rest = [0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0];
    packet(*from.ip(), *to.ip(), PROTOCOL_TCP, &[&ports, &rest[..]].concat())
}

/// Returns the first packet of a TCP connection of a client in the guest.
pub(super) fn opening(from: u16, to: Ipv6Addr, port: u16) -> Vec<u8> {
    segment(guest(from), at(to, port), TCP_SYN)
}

fn filter_with(egress: &str, not_host: bool) -> Filter {
    let egress: config::Egress = serde_json::from_str(egress).unwrap();
    let published = |guest_port, protocol| PublishConfig {
        host_address: Ipv6Addr::LOCALHOST.into(),
        host_port: 8053,
        guest_port,
        protocol,
    };
    let spec = PasstSpec {
        egress: egress.try_into().unwrap(),
        not_host,
        publish: vec![published(PUBLISHED, Protocol::Udp), published(PUBLISHED_TCP, Protocol::Tcp)],
        dns: vec![AWS_SERVER.into()],
    };
    let of_host = [HOST.into(), IpAddr::from([192, 0, 2, 10])];
    Filter::new(&spec, Egress::new(&spec, &of_host), None)
}

fn allow() -> Filter {
    filter_with(r#""allow""#, false)
}

fn passes(filter: &mut Filter, frame: &[u8]) -> bool {
    filter.leave(frame, Instant::now()) == Verdict::Pass
}

#[test]
fn only_tcp_udp_and_echo_requests_leave() {
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMPV6] {
        let frame = sent("2001:db8::7", protocol, 80);
        assert!(passes(&mut allow(), &frame), "{protocol}");
        for length in 0..frame.len() {
            assert!(!passes(&mut allow(), &frame[..length]), "{protocol} {length}");
        }
        let mut other_version = frame.clone();
        other_version[ETHERNET_BYTES] = 0x40;
        assert!(!passes(&mut allow(), &other_version), "{protocol}");
        // The packet ends before its ports or its type, and the frame does not.
        let mut shorter = frame.clone();
        shorter[ETHERNET_BYTES + 5] = if protocol == PROTOCOL_ICMPV6 { 0 } else { 3 };
        assert!(!passes(&mut allow(), &shorter), "{protocol}");
    }
    for next_header in (0..=u8::MAX).filter(|number| ![6, 17, 58].contains(number)) {
        // Behind an extension header, a TCP header follows.
        let payload = [&[PROTOCOL_TCP, 0, 1, 4, 0, 0, 0, 0][..], &[0; 20]].concat();
        let other = packet(GUEST_ADDRESS_V6, address("2001:db8::7"), next_header, &payload);
        assert_eq!(allow().leave(&other, Instant::now()), Verdict::Drop, "{next_header}");
        assert!(!allow().may_arrive(&other, Instant::now()), "{next_header}");
    }
    for kind in (0..=u8::MAX).filter(|kind| *kind != 128) {
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &[0; 16]].concat();
        let other = packet(GUEST_ADDRESS_V6, address("2001:db8::7"), PROTOCOL_ICMPV6, &message);
        assert_eq!(allow().leave(&other, Instant::now()), Verdict::Drop, "{kind}");
        // The errors, echo requests and their answers arrive, and no router advertisement.
        assert_eq!(allow().may_arrive(&other, Instant::now()), kind < 130, "{kind}");
    }
}

#[test]
fn guest_has_one_source_address_for_each_kind_of_destination() {
    let to = address("2001:db8::7");
    for source in ["::", "::1", "2001:db8::10", "fe80::a3:53ff:fe00:f", "fe80::1", "10.0.2.15"] {
        let source = source.parse().unwrap_or(address("::ffff:10.0.2.15"));
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMPV6] {
            let frame = frame(at(source, CLIENT), at(to, 80), protocol);
            assert_eq!(allow().leave(&frame, Instant::now()), Verdict::Drop, "{source}");
        }
    }
    // An answer to a client of the gateway's address.
    for (source, expected) in [(GUEST_LINK_LOCAL, true), (GUEST_ADDRESS_V6, false)] {
        let answer = segment(at(source, PUBLISHED_TCP), at(GATEWAY_LINK_LOCAL, 50_000), TCP_ACK);
        assert_eq!(passes(&mut allow(), &answer), expected, "{source}");
    }
}

#[test]
fn no_rule_allows_what_no_guest_may_reach() {
    for to in [
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::127.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b::100.100.100.200",
        "64:ff9b:1::8.8.8.8",
        "2001::1",
        "2002:808:808::1",
        "fe80::1",
        "fe80::a3:53ff:fe00:2",
        "fec0::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd00:ec2:ffff::1",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:42::42",
        "fd00:a9fe:a9fe::1",
        "fd00:100::100:200",
    ] {
        for egress in [r#""allow""#, r#"[{"to": "::/0"}, {"to": "0.0.0.0/0"}]"#] {
            for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMPV6] {
                let frame = sent(to, protocol, 80);
                assert!(!passes(&mut filter_with(egress, false), &frame), "{to} {protocol}");
            }
        }
    }
    for neighbour in ["fd00:ec3::254", "fd20:ce::253", "fd00:42::41", "64:ff9b::8.8.8.8"] {
        assert!(passes(&mut allow(), &sent(neighbour, PROTOCOL_TCP, 80)), "{neighbour}");
    }
}

#[test]
fn name_server_among_metadata_is_reachable_on_its_port() {
    let server = AWS_SERVER.to_string();
    for filter in [allow, || filter_with("[]", false)] {
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
            assert!(passes(&mut filter(), &sent(&server, protocol, 53)));
            assert!(!passes(&mut filter(), &sent(&server, protocol, 80)));
            assert!(!passes(&mut filter(), &sent("fd00:ec2::254", protocol, 53)));
        }
        assert!(!passes(&mut filter(), &sent(&server, PROTOCOL_ICMPV6, 53)));
    }
}

#[test]
fn rules_apply_to_ipv6_and_to_the_ipv4_address_behind_a_translator() {
    let rules = r#"[{"to": "2001:db8:1::/48", "ports": [443], "protocol": "tcp"},
                    {"to": "2001:db8:2::7"}, {"to": "192.0.2.0/24", "ports": [443]}]"#;
    for (to, protocol, port, expected) in [
        ("2001:db8:1:ffff::1", PROTOCOL_TCP, 443, true),
        ("2001:db8:1::1", PROTOCOL_TCP, 444, false),
        ("2001:db8:1::1", PROTOCOL_UDP, 443, false),
        ("2001:db8:1::1", PROTOCOL_ICMPV6, 0, false),
        ("2001:db8:2::7", PROTOCOL_TCP, 1, true),
        ("2001:db8:2::7", PROTOCOL_ICMPV6, 0, true),
        ("2001:db8:2::8", PROTOCOL_TCP, 443, false),
        ("64:ff9b::192.0.2.7", PROTOCOL_TCP, 443, true),
        ("64:ff9b::192.0.2.7", PROTOCOL_TCP, 444, false),
        ("64:ff9b::192.0.3.7", PROTOCOL_TCP, 443, false),
        ("::ffff:192.0.2.7", PROTOCOL_TCP, 443, false),
    ] {
        let frame = sent(to, protocol, port);
        let found = passes(&mut filter_with(rules, false), &frame);
        assert_eq!(found, expected, "{to} {protocol} {port}");
    }
    // An IPv6 rule names no IPv4 address, also behind a translator, and the other way round.
    let v6_only = &mut filter_with(r#"[{"to": "::/0"}]"#, false);
    assert!(!passes(v6_only, &sent("64:ff9b::192.0.2.7", PROTOCOL_TCP, 443)));
    assert!(passes(v6_only, &sent("2001:db8::7", PROTOCOL_TCP, 443)));
    let v4_only = &mut filter_with(r#"[{"to": "0.0.0.0/0"}]"#, false);
    assert!(!passes(v4_only, &sent("2001:db8::7", PROTOCOL_TCP, 443)));
}

#[test]
fn addresses_of_the_host_are_out_of_reach_if_the_config_says_so() {
    for egress in [r#""allow""#, r#"[{"to": "::/0"}, {"to": "0.0.0.0/0"}]"#] {
        for not_host in [true, false] {
            let mut filter = filter_with(egress, not_host);
            for to in ["2001:db8::10", "64:ff9b::192.0.2.10"] {
                let frame = sent(to, PROTOCOL_TCP, 80);
                assert_eq!(passes(&mut filter, &frame), !not_host, "{to} {egress}");
            }
            assert!(passes(&mut filter, &sent("2001:db8::11", PROTOCOL_TCP, 80)));
        }
    }
}

#[test]
fn udp_leaves_from_client_ports_and_arrives_as_an_answer() {
    let (mut filter, now) = (allow(), Instant::now());
    let server = at(address("2001:db8::7"), 53);
    for port in [0, 123, 5353, 8053, FIRST_CLIENT_PORT - 1] {
        assert!(!passes(&mut filter, &frame(guest(port), server, PROTOCOL_UDP)), "{port}");
    }
    let answer = |from, port| frame(from, guest(port), PROTOCOL_UDP);
    assert!(!filter.may_arrive(&answer(server, CLIENT), now), "the guest has not sent yet");
    assert!(passes(&mut filter, &frame(guest(CLIENT), server, PROTOCOL_UDP)));
    assert!(filter.may_arrive(&answer(server, CLIENT), now));
    for (from, port) in
        [(at(*server.ip(), 54), CLIENT), (at(HOST, 53), CLIENT), (server, CLIENT + 1)]
    {
        assert!(!filter.may_arrive(&answer(from, port), now), "{from} {port}");
    }
    assert!(!filter.may_arrive(&answer(server, CLIENT), now + Duration::from_secs(181)));
    assert!(filter.may_arrive(&answer(at(HOST, 9), PUBLISHED), now), "a published port");
    assert!(filter.may_arrive(&frame(server, guest(CLIENT + 1), PROTOCOL_TCP), now));
}

#[test]
fn published_ports_answer_and_open_nothing() {
    let stranger = at(address("2001:db8:9::9"), 50_000);
    let gateway = at(GATEWAY_LINK_LOCAL, 50_000);
    for (from, peer) in [(GUEST_ADDRESS_V6, stranger), (GUEST_LINK_LOCAL, gateway)] {
        let mut filter = filter_with("[]", false);
        for flags in [TCP_SYN | TCP_ACK, TCP_ACK, TCP_FIN | TCP_ACK, TCP_RST] {
            let answer = segment(at(from, PUBLISHED_TCP), peer, flags);
            assert!(passes(&mut filter, &answer), "{peer} {flags:x}");
            let other = segment(at(from, PUBLISHED_TCP + 1), peer, flags);
            assert!(!passes(&mut filter, &other), "{peer} {flags:x}");
            // The packet ends before its flags, and the frame does not.
            let mut cut = answer;
            cut[ETHERNET_BYTES + 5] = 13;
            assert!(!passes(&mut filter, &cut), "{peer} {flags:x}");
        }
        for flags in [TCP_SYN, TCP_SYN | TCP_FIN, TCP_SYN | 0xe8] {
            let opening = segment(at(from, PUBLISHED_TCP), peer, flags);
            assert!(!passes(&mut filter, &opening), "{peer} {flags:x}");
        }
        let answer = frame(at(from, PUBLISHED), peer, PROTOCOL_UDP);
        assert!(!passes(&mut filter, &answer), "{peer} has not asked");
        let question = frame(peer, at(from, PUBLISHED), PROTOCOL_UDP);
        assert!(filter.may_arrive(&question, Instant::now()));
        assert!(passes(&mut filter, &answer), "{peer}");
    }
    // With egress, a connection to the gateway is refused all the same.
    let opening = segment(at(GUEST_LINK_LOCAL, PUBLISHED_TCP), gateway, TCP_SYN);
    assert!(matches!(allow().leave(&opening, Instant::now()), Verdict::Refuse(_)));
}

#[test]
fn only_a_single_host_is_reported_as_refused() {
    let verdict = |to: &str, protocol| {
        filter_with("[]", false).leave(&sent(to, protocol, 443), Instant::now())
    };
    for (number, protocol, port) in [
        (PROTOCOL_TCP, RefusedProtocol::Tcp, Some(443)),
        (PROTOCOL_UDP, RefusedProtocol::Udp, Some(443)),
        (PROTOCOL_ICMPV6, RefusedProtocol::Icmp, None),
    ] {
        let destination =
            Destination { protocol, address: address("2001:db8::9").into(), port, name: None };
        assert_eq!(verdict("2001:db8::9", number), Verdict::Refuse(destination));
        assert_eq!(verdict("ff02::fb", number), Verdict::Drop);
    }
}
