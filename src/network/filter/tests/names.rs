//! What the gate passes on of a guest whose rules have names.

use std::net::Ipv6Addr;

use super::*;

/// A filter with rules for a name, and the time at which an answer for the name expires.
fn with_name(rule: &str) -> (Filter, Instant) {
    let json = format!(r#"[{rule}, {{"to": "198.51.100.0/24"}}]"#);
    let egress: config::Egress = serde_json::from_str(&json).unwrap();
    let egress = EgressSpec::try_from(egress).unwrap();
    let EgressSpec::Rules(rules) = &egress else { panic!("{egress:?}") };
    let names = NameRules::new(rules, &[HOST.into()]).map(Rc::new);
    let published = PublishConfig {
        host_address: Ipv4Addr::LOCALHOST.into(),
        host_port: 8080,
        guest_port: PUBLISHED_TCP,
        protocol: Protocol::Tcp,
    };
    let dns = vec![LINK_LOCAL_SERVER.into()];
    let spec = PasstSpec { egress, not_host: false, publish: vec![published], dns };
    let mut filter = Filter::new(&spec, Egress::new(&spec, &[]), names);
    let expires = Instant::now() + Duration::from_secs(60);
    filter.note_answer(&"a.example".into(), &[NAMED.into(), NAMED_V6], expires);
    (filter, expires)
}

/// An address that was answered for the name.
const NAMED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// Another one.
const NAMED_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7));

#[test]
fn answered_address_is_reachable_on_the_ports_of_its_rule_until_it_expires() {
    let rule = r#"{"to": "a.example", "ports": [443], "protocol": "tcp"}"#;
    let (mut filter, expires) = with_name(rule);
    let now = Instant::now();
    let named = SocketAddrV4::new(NAMED, 443);
    let opening = segment(CLIENT, named, TCP_SYN);
    assert_eq!(filter.leave(&opening, now), Verdict::Pass);
    let other_port = segment(CLIENT, SocketAddrV4::new(NAMED, 80), TCP_SYN);
    let other_address = segment(CLIENT, SocketAddrV4::new([203, 0, 113, 8].into(), 443), TCP_SYN);
    let datagram = sent(NAMED.octets(), PROTOCOL_UDP, 443);
    let echo_request = frame(guest(0x0800), named, PROTOCOL_ICMP);
    for frame in [&other_port, &other_address, &datagram, &echo_request] {
        assert!(matches!(filter.leave(frame, now), Verdict::Refuse(_)), "{frame:?}");
    }
    // A refused packet has the name, also after the answer has expired.
    let expected = Destination {
        protocol: RefusedProtocol::Tcp,
        address: NAMED.into(),
        port: Some(443),
        name: Some("a.example".into()),
    };
    assert_eq!(filter.leave(&opening, expires), Verdict::Refuse(expected));
    // What is no first packet belongs to a connection that began before.
    for flags in [TCP_ACK, TCP_SYN | TCP_ACK, TCP_FIN | TCP_ACK, TCP_RST] {
        assert_eq!(filter.leave(&segment(CLIENT, named, flags), expires), Verdict::Pass);
    }
    // Rules with addresses are as before.
    assert!(passes(&mut filter, &sent([198, 51, 100, 1], PROTOCOL_UDP, 9)));
    assert!(passes(&mut filter, &sent([198, 51, 100, 1], PROTOCOL_ICMP, 9)));
}

#[test]
fn answered_ipv6_address_is_reachable_until_it_expires_and_through_a_translator() {
    let rule = r#"{"to": "a.example", "ports": [443], "protocol": "tcp"}"#;
    let (mut filter, expires) = with_name(rule);
    let now = Instant::now();
    let syn = |to: &str, port| {
        let IpAddr::V6(to) = to.parse().unwrap() else { panic!("{to}") };
        ipv6::opening(CLIENT, to, port)
    };
    for (to, port, is_open) in [
        ("2001:db8::7", 443, true),
        ("2001:db8::7", 80, false),
        ("2001:db8::8", 443, false),
        // An IPv4 address that was answered, and one that was not.
        ("64:ff9b::203.0.113.7", 443, true),
        ("64:ff9b::203.0.113.8", 443, false),
    ] {
        let found = filter.leave(&syn(to, port), now);
        assert_eq!(found == Verdict::Pass, is_open, "{to} {port} {found:?}");
        let Verdict::Refuse(refused) = filter.leave(&syn(to, port), expires) else {
            panic!("{to} {port} has expired");
        };
        let is_known = !to.ends_with('8');
        assert_eq!(refused.name.as_deref(), is_known.then_some("a.example"), "{to}");
    }
    // The name server of the gate is at no other address.
    let found = filter.leave(&syn("64:ff9b::10.0.2.3", 53), now);
    assert!(matches!(found, Verdict::Refuse(_)), "{found:?}");
}

#[test]
fn udp_flow_to_an_answered_address_goes_on_while_it_is_in_use() {
    let (mut filter, expires) = with_name(r#"{"to": "a.example"}"#);
    let datagram = |port| frame(guest(port), SocketAddrV4::new(NAMED, 443), PROTOCOL_UDP);
    let before = expires.checked_sub(Duration::from_secs(1)).unwrap();
    assert_eq!(filter.leave(&datagram(CLIENT), before), Verdict::Pass);
    let at = |seconds| expires + Duration::from_secs(seconds);
    // Each datagram keeps the flow for 180 seconds more.
    assert_eq!(filter.leave(&datagram(CLIENT), at(170)), Verdict::Pass);
    assert_eq!(filter.leave(&datagram(CLIENT), at(340)), Verdict::Pass);
    assert!(matches!(filter.leave(&datagram(CLIENT + 1), at(340)), Verdict::Refuse(_)));
    assert!(matches!(filter.leave(&datagram(CLIENT), at(520)), Verdict::Refuse(_)));
    // A rule without ports and protocol is also for ICMP, while the answer counts.
    let echo_request = frame(guest(0x0800), SocketAddrV4::new(NAMED, 0), PROTOCOL_ICMP);
    assert_eq!(filter.leave(&echo_request, before), Verdict::Pass);
    assert!(matches!(filter.leave(&echo_request, at(0)), Verdict::Refuse(_)));
}

#[test]
fn fragments_and_forbidden_addresses_do_not_pass_by_a_name() {
    let (mut filter, expires) = with_name(r#"{"to": "a.example"}"#);
    let now = Instant::now();
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
        let mut fragment = segment(CLIENT, SocketAddrV4::new(NAMED, 443), TCP_ACK);
        fragment[ETHERNET_BYTES + 9] = protocol;
        // The flag "more fragments".
        fragment[ETHERNET_BYTES + 6] = 0x20;
        assert!(matches!(filter.leave(&fragment, now), Verdict::Refuse(_)), "{protocol}");
    }
    // The gate answers no such address. If it did, the packets would be refused all the same.
    let forbidden = [
        [127, 0, 0, 1],
        [169, 254, 169, 254],
        [100, 100, 100, 200],
        GATEWAY_ADDRESS.octets(),
        HOST.octets(),
        LINK_LOCAL_SERVER.octets(),
    ];
    for address in forbidden.map(Ipv4Addr::from) {
        filter.note_answer(&"a.example".into(), &[address.into()], expires);
        for flags in [TCP_SYN, TCP_ACK] {
            for port in [443, PORT_DNS] {
                let segment = segment(CLIENT, SocketAddrV4::new(address, port), flags);
                let found = filter.leave(&segment, now);
                assert!(matches!(found, Verdict::Refuse(_)), "{address} {port} {flags}");
            }
        }
    }
}

#[test]
fn only_datagrams_to_the_port_of_dns_are_questions_and_only_with_names() {
    let (mut filter, _) = with_name(r#"{"to": "*.example"}"#);
    let now = Instant::now();
    let server = NAME_SERVER_ADDRESS.octets();
    assert_eq!(filter.leave(&sent(server, PROTOCOL_UDP, 53), now), Verdict::Ask);
    // Also from a port below those of clients, because the packet does not reach passt.
    let to = SocketAddrV4::new(NAME_SERVER_ADDRESS, 53);
    assert_eq!(filter.leave(&frame(guest(53), to, PROTOCOL_UDP), now), Verdict::Ask);
    let mut fragment = sent(server, PROTOCOL_UDP, 53);
    fragment[ETHERNET_BYTES + 6] = 0x20;
    let others = [
        sent(server, PROTOCOL_TCP, 53),
        segment(CLIENT, to, TCP_ACK),
        segment(PUBLISHED_TCP, to, TCP_ACK),
        sent(server, PROTOCOL_UDP, 54),
        sent(server, PROTOCOL_ICMP, 53),
        fragment,
    ];
    for other in &others {
        let found = filter.leave(other, now);
        assert!(!matches!(found, Verdict::Pass | Verdict::Ask), "{found:?} {other:?}");
    }
    // A rule with the network of the guest does not open the address.
    let (mut filter, _) = with_name(r#"{"to": "a.example"}, {"to": "10.0.0.0/8"}"#);
    assert!(matches!(filter.leave(&segment(CLIENT, to, TCP_SYN), now), Verdict::Refuse(_)));
    // Without names the address is one like any other.
    assert!(leaves(&sent(server, PROTOCOL_UDP, 53)));
}
