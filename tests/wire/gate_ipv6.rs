//! The gate with a real passt and with the test in the place of a guest that has IPv6.
//!
//! Each test runs in a network namespace of its own, which takes the place of the host's network.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket,
};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::gate::{
    ACK, GATEWAY_MAC, GUEST_MAC, Gate, PATIENCE, PROTOCOL_TCP, PROTOCOL_UDP, PSH, RST, SYN,
    received,
};
use crate::names::{GATES, TYPE_AAAA, question};

/// An address of the host in its network (from the prefix for documentation, RFC 3849).
const HOST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

/// The host's IPv4 address and its link-local address.
const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const HOST_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10);

/// The interface of the host with these addresses.
const INTERFACE: &str = "host0";

const GUEST: Ipv6Addr = Ipv6Addr::new(0xfdfb, 0x61f7, 0xafae, 0, 0, 0, 0, 0x15);
const GUEST_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xa3, 0x53ff, 0xfe00, 0xf);
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xa3, 0x53ff, 0xfe00, 2);

const PROTOCOL_ICMPV6: u8 = 58;

/// Types of ICMPv6 messages (RFC 4443, RFC 4861).
const ECHO_REQUEST: u8 = 128;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Moves this thread, and the processes that it starts, into a new network namespace with the
/// addresses of a host.
fn enter_host_network() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for arguments in [
        "link set lo up".to_owned(),
        format!("address add {HOST_V4}/32 dev lo"),
        format!("link add {INTERFACE} type veth peer name peer0"),
        format!("link set {INTERFACE} addrgenmode none"),
        format!("link set {INTERFACE} up"),
        "link set peer0 up".to_owned(),
        format!("address add {HOST}/64 dev {INTERFACE} nodad"),
        format!("address add {HOST_LINK_LOCAL}/64 dev {INTERFACE} nodad"),
    ] {
        let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }
}

/// A packet for the guest.
#[derive(Debug)]
struct Packet {
    from: Ipv6Addr,
    to: Ipv6Addr,
    payload: Vec<u8>,
}

impl Packet {
    fn port(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.payload[at], self.payload[at + 1]])
    }

    fn source(&self) -> SocketAddrV6 {
        SocketAddrV6::new(self.from, self.port(0), 0, 0)
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// Returns the flags of a TCP segment.
    fn flags(&self) -> u8 {
        self.payload[13]
    }
}

/// Starts a gate with this egress and these published ports, and waits until passt has answered as
/// for a shim.
fn start(network: Value) -> Gate {
    ready(Gate::start_with(&with_mode(network), Some(INTERFACE)))
}

/// Waits until passt has answered for the gateway.
fn ready(mut gate: Gate) -> Gate {
    gate.send_neighbour(SOLICITATION, GUEST_LINK_LOCAL, GATEWAY, GATEWAY);
    let answer = gate.receive_v6(PROTOCOL_ICMPV6);
    assert_eq!((answer.from, answer.to), (GATEWAY, GUEST_LINK_LOCAL));
    assert_eq!((answer.payload[0], &answer.payload[26..]), (ADVERTISEMENT, &GATEWAY_MAC[..]));
    gate
}

fn with_mode(mut network: Value) -> Value {
    network["mode"] = json!("passt");
    network
}

impl Gate {
    /// Sends an IPv6 packet of the guest.
    fn send_v6(&mut self, next_header: u8, from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) {
        self.send(&packet(next_header, from, to, payload));
    }

    /// Sends a message of neighbour discovery, without options.
    fn send_neighbour(&mut self, kind: u8, from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr) {
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
        self.send_v6(PROTOCOL_ICMPV6, from, to, &message);
    }

    /// Sends a TCP segment of the guest with this number and acknowledged number.
    fn send_segment(
        &mut self,
        ports: [u16; 2],
        ends: [Ipv6Addr; 2],
        tcp: (u8, [u32; 2]),
        data: &str,
    ) {
        let segment = segment(ports, tcp, data);
        self.send_v6(PROTOCOL_TCP, ends[0], ends[1], &segment);
    }

    fn send_datagram(&mut self, ports: [u16; 2], ends: [Ipv6Addr; 2], data: &str) {
        let length = u16::try_from(8 + data.len()).unwrap();
        let header = [ports[0], ports[1], length, 0].map(u16::to_be_bytes).concat();
        self.send_v6(PROTOCOL_UDP, ends[0], ends[1], &[&header, data.as_bytes()].concat());
    }

    /// Waits for the next IPv6 packet of this protocol.
    fn receive_v6(&mut self, protocol: u8) -> Packet {
        let address = |bytes: &[u8]| Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap());
        loop {
            let frame = self.receive();
            if frame[12..14] == [0x86, 0xdd] && frame[20] == protocol {
                let (from, to) = (address(&frame[22..38]), address(&frame[38..54]));
                return Packet { from, to, payload: frame[54..].to_vec() };
            }
        }
    }

    /// Opens a connection of the guest, and checks that it is reset at once, with a notice.
    fn assert_is_refused(&mut self, to: Ipv6Addr, port: u16) {
        self.send_segment([40_000, port], [GUEST, to], (SYN, [7, 0]), "");
        let reset = self.receive_v6(PROTOCOL_TCP);
        assert_eq!((reset.from, reset.to), (to, GUEST));
        assert_eq!((reset.port(0), reset.port(2)), (port, 40_000));
        assert_eq!((reset.flags(), reset.number(4), reset.number(8)), (RST | ACK, 0, 8), "{to}");
        assert_eq!(self.notice(), format!("tcp {to} {port} 1"));
    }
}

/// Returns a frame with an IPv6 packet of the guest.
fn packet(next_header: u8, from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [0x60, 0, 0, 0, high, low, next_header, 255];
    let ethernet = [&GATEWAY_MAC[..], &GUEST_MAC, &[0x86, 0xdd]].concat();
    let addresses = [from.octets(), to.octets()].concat();
    [&ethernet, &header[..], &addresses, payload].concat()
}

/// Returns a TCP segment. passt verifies no checksum. A SYN has the option "maximum segment size".
fn segment(ports: [u16; 2], (flags, numbers): (u8, [u32; 2]), data: &str) -> Vec<u8> {
    let numbers = numbers.map(u32::to_be_bytes).concat();
    let (words, option) =
        if flags & SYN == 0 { (0x50, &[][..]) } else { (0x60, &[2, 4, 5, 180][..]) };
    let rest = [words, flags, 0xff, 0xff, 0, 0, 0, 0];
    [&ports.map(u16::to_be_bytes).concat(), &numbers, &rest[..], option, data.as_bytes()].concat()
}

fn listener(address: impl Into<IpAddr>, port: u16) -> TcpListener {
    let listener = TcpListener::bind(SocketAddr::new(address.into(), port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

fn datagram_socket(address: Ipv6Addr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn guest_reaches_what_ipv6_rules_name_and_is_refused_the_rest_at_once() {
    enter_host_network();
    let (named, other) = (listener(HOST, 7000), listener(HOST, 7001));
    let mut gate = start(json!({"egress": [
        {"to": HOST, "ports": [7000], "protocol": "tcp"},
        {"to": "2001:db8::/32", "ports": ["7002-7003"]},
        {"to": "0.0.0.0/0"},
    ]}));
    gate.send_segment([40_000, 7000], [GUEST, HOST], (SYN, [7, 0]), "");
    let answer = gate.receive_v6(PROTOCOL_TCP);
    assert_eq!((answer.source().to_string().as_str(), answer.to), ("[2001:db8::10]:7000", GUEST));
    assert_eq!((answer.flags(), answer.number(8)), (SYN | ACK, 8));
    named.accept().unwrap();
    gate.assert_is_refused(HOST, 7001);
    assert!(other.accept().is_err(), "passt has not connected");
    // The rule is for TCP, and the datagram gets an answer as well.
    gate.send_datagram([40_000, 7000], [GUEST, HOST], "refused");
    let prohibited = gate.receive_v6(PROTOCOL_ICMPV6);
    assert_eq!((prohibited.from, prohibited.to), (GATEWAY, GUEST));
    // "Communication administratively prohibited", unused bytes, and the whole refused packet.
    assert_eq!(prohibited.payload[..2], [1, 1]);
    assert_eq!(prohibited.payload.len(), 8 + 40 + 8 + "refused".len());
    assert!(prohibited.payload.ends_with(b"refused"));
    assert_eq!(gate.notice(), "udp 2001:db8::10 7000 1");
    gate.send_v6(PROTOCOL_ICMPV6, GUEST, HOST, &[ECHO_REQUEST, 0, 0, 0, 0, 1, 0, 1]);
    assert_eq!(gate.receive_v6(PROTOCOL_ICMPV6).payload[..2], [1, 1]);
    assert_eq!(gate.notice(), "icmp 2001:db8::10 - 1");
    // A datagram that a rule names arrives, and so does the answer, but nothing else.
    let (server, stranger) = (datagram_socket(HOST, 7003), datagram_socket(HOST, 7004));
    gate.send_datagram([5353, 7003], [GUEST, HOST], "from the port of a service");
    gate.send_datagram([40_000, 7003], [GUEST, HOST], "question");
    assert_eq!(received(&server), (b"question".to_vec(), 40_000));
    stranger.send_to(b"unsolicited", (HOST, 40_000)).unwrap();
    server.send_to(b"answer", (HOST, 40_000)).unwrap();
    let answer = gate.receive_v6(PROTOCOL_UDP);
    assert_eq!((answer.source().to_string().as_str(), answer.to), ("[2001:db8::10]:7003", GUEST));
    assert!(answer.payload.ends_with(b"answer"));
}

/// Answers one question to port 53 of [`HOST`], which must be for IPv6 addresses, with these.
fn answer_once(addresses: Vec<Ipv6Addr>) {
    let socket = datagram_socket(HOST, 53);
    thread::spawn(move || {
        let mut message = vec![0; 512];
        let (count, from) = socket.recv_from(&mut message).unwrap();
        // Without the record of EDNS, which has 11 bytes.
        message.truncate(count - 11);
        assert_eq!(message[message.len() - 4..], [0, TYPE_AAAA, 0, 1]);
        message[2..4].copy_from_slice(&[0x81, 0x80]);
        message[6..12].copy_from_slice(&[0, u8::try_from(addresses.len()).unwrap(), 0, 0, 0, 0]);
        for address in addresses {
            // The name of the question, class IN, a time to live of 60 s, 16 bytes.
            message.extend([0xc0, 12, 0, TYPE_AAAA, 0, 1, 0, 0, 0, 60, 0, 16]);
            message.extend(address.octets());
        }
        socket.send_to(&message, from).unwrap();
    });
}

#[test]
fn name_leads_to_ipv6_addresses_but_to_none_of_the_host() {
    enter_host_network();
    let named: Ipv6Addr = "2001:db8:7::7".parse().unwrap();
    let forbidden = ["::1", "fe80::1", "fd00:ec2::254", "::ffff:127.0.0.1", "64:ff9b::7f00:1"];
    let mut addresses: Vec<Ipv6Addr> = forbidden.map(|text| text.parse().unwrap()).into();
    addresses.extend([HOST, named]);
    answer_once(addresses.clone());
    let rules = json!([{"to": "a.test", "ports": [7000], "protocol": "tcp"}]);
    let network = with_mode(json!({"egress": rules}));
    let mut gate = ready(Gate::start_asking(&network, &json!([HOST]), Some(INTERFACE)));
    // The host gets the address after the gate has started, so that it is one of another host.
    let status = Command::new("ip")
        .args(["address", "add", "2001:db8:7::7/128", "dev", "lo", "nodad"])
        .status();
    assert!(status.unwrap().success());
    let service = listener(named, 7000);
    gate.assert_is_refused(named, 7000);
    let asked = question(1, "a.test", TYPE_AAAA);
    gate.send_udp(40_000, GATES, &asked);
    let (from, _, answer) = gate.receive_udp();
    assert_eq!(from, GATES);
    // One record, whose address comes last.
    assert_eq!((answer[7], answer.len()), (1, asked.len() + 28));
    assert!(answer.ends_with(&named.octets()));
    for address in &addresses[..addresses.len() - 1] {
        assert_eq!(gate.notice(), format!("dns {address} - 1 a.test"));
    }
    gate.send_segment([40_001, 7000], [GUEST, named], (SYN, [7, 0]), "");
    assert_eq!(gate.receive_v6(PROTOCOL_TCP).flags(), SYN | ACK);
    service.accept().unwrap();
    gate.send_segment([40_002, 7001], [GUEST, named], (SYN, [7, 0]), "");
    assert_eq!(gate.receive_v6(PROTOCOL_TCP).flags(), RST | ACK);
    assert_eq!(gate.notice(), "tcp 2001:db8:7::7 7001 1 a.test");
}

#[test]
fn no_guest_reaches_the_loopback_addresses_or_metadata_by_ipv6() {
    enter_host_network();
    let services = [
        listener(Ipv4Addr::LOCALHOST, 7000),
        listener(Ipv6Addr::LOCALHOST, 7000),
        listener(HOST_V4, 7000),
    ];
    let everything = json!([{"to": "::/0"}, {"to": "127.0.0.0/8"}, {"to": "::1"}]);
    for egress in [json!("allow"), everything] {
        let mut gate = start(json!({"egress": egress}));
        for text in [
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:192.0.2.10",
            "::127.0.0.1",
            "64:ff9b::127.0.0.1",
            "2002:7f00:1::1",
            "fe80::10",
            "fd00:ec2::254",
            // A notice about a ninth destination would wait for a second.
            "fd20:ce::254",
        ] {
            gate.assert_is_refused(text.parse().unwrap(), 7000);
        }
        for service in &services {
            assert!(service.accept().is_err(), "passt has not connected");
        }
    }
}

#[test]
fn addresses_of_the_host_are_refused_with_not_host_only() {
    enter_host_network();
    let service = listener(HOST, 7000);
    for (not_host, is_reached) in [(true, false), (false, true)] {
        let mut gate = start(json!({"egress": "allow", "not_host": not_host}));
        if is_reached {
            gate.send_segment([40_000, 7000], [GUEST, HOST], (SYN, [7, 0]), "");
            assert_eq!(gate.receive_v6(PROTOCOL_TCP).flags(), SYN | ACK);
        } else {
            gate.assert_is_refused(HOST, 7000);
        }
        assert_eq!(service.accept().is_ok(), is_reached);
    }
}

/// Sends frames of the guest through a gate, and returns those that passt gets. A program that only
/// writes down what it gets takes the place of passt, because passt itself drops some frames as well.
fn frames_for_passt(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let (program, output) = (directory.path().join("passt"), directory.path().join("frames"));
    let script = format!("#!/bin/sh\nexec cat >'{}'\n", output.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let mut gate = Gate::start_program(&program, &with_mode(json!({"egress": "allow"})), None);
    // An ARP packet comes last. Once it has arrived, all others have been handled.
    let last = [&[0xff; 6][..], &GUEST_MAC, &[0x08, 0x06], &[0; 28]].concat();
    frames.iter().chain([&last]).for_each(|frame| gate.send(frame));
    let start = Instant::now();
    loop {
        let mut bytes = fs::read(&output).unwrap_or_default();
        if bytes.ends_with(&last) {
            let mut passed = Vec::new();
            while bytes.len() > 4 {
                let length = u32::from_be_bytes(bytes[..4].try_into().unwrap());
                let rest = bytes.split_off(4 + usize::try_from(length).unwrap());
                passed.push(bytes[4..].to_vec());
                bytes = rest;
            }
            passed.pop();
            return passed;
        }
        assert!(start.elapsed() < PATIENCE, "the last frame has not arrived");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn only_plain_packets_of_the_guest_and_questions_about_the_gateway_reach_passt() {
    let syn = segment([40_000, 7000], (SYN, [7, 0]), "");
    let extended = [&[PROTOCOL_TCP, 0, 1, 4, 0, 0, 0, 0][..], &syn].concat();
    let fragment = [&[PROTOCOL_TCP, 0, 0, 1, 0, 0, 0, 7][..], &syn].concat();
    let ask = |kind: u8, from, target: Ipv6Addr| {
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
        packet(PROTOCOL_ICMPV6, from, GATEWAY, &message)
    };
    let good = vec![
        packet(PROTOCOL_TCP, GUEST, HOST, &syn),
        packet(PROTOCOL_ICMPV6, GUEST, HOST, &[ECHO_REQUEST, 0, 0, 0, 0, 1, 0, 1]),
        ask(SOLICITATION, GUEST, GATEWAY),
        ask(SOLICITATION, GUEST_LINK_LOCAL, GATEWAY),
    ];
    let mut frames = good.clone();
    frames.push(packet(44, GUEST, HOST, &fragment));
    for header in [0, 43, 44, 50, 51, 60, 135, 139, 140, 253, 254] {
        frames.push(packet(header, GUEST, HOST, &extended));
    }
    for source in [Ipv6Addr::LOCALHOST, HOST, GUEST_LINK_LOCAL, Ipv6Addr::UNSPECIFIED] {
        frames.push(packet(PROTOCOL_TCP, source, HOST, &syn));
    }
    for (kind, from, target) in [
        (SOLICITATION, GUEST, HOST),
        (SOLICITATION, GUEST, GUEST),
        (SOLICITATION, HOST_LINK_LOCAL, GATEWAY),
        (SOLICITATION, Ipv6Addr::UNSPECIFIED, GATEWAY),
        (ADVERTISEMENT, GUEST, GATEWAY),
        (ROUTER_SOLICITATION, GUEST, GATEWAY),
        (ROUTER_ADVERTISEMENT, GUEST, GATEWAY),
        (REDIRECT, GUEST, GATEWAY),
    ] {
        frames.push(ask(kind, from, target));
    }
    assert_eq!(frames_for_passt(&frames), good);
}

#[test]
fn published_ports_on_ipv6_addresses_are_answered_and_no_way_out() {
    enter_host_network();
    let other = listener(HOST, 7001);
    for egress in [json!("allow"), json!([])] {
        let is_allow = egress == "allow";
        let mut gate = start(json!({"egress": egress, "publish": [
            {"host_address": "::1", "host_port": 6000, "guest_port": 80},
            {"host_address": HOST, "host_port": 6001, "guest_port": 81},
            {"host_address": HOST, "host_port": 6002, "guest_port": 53, "protocol": "udp"},
        ]}));
        // A client on the loopback address has the address of the gateway.
        for (address, host_port, guest_port, expected) in [
            (Ipv6Addr::LOCALHOST, 6000, 80, [GATEWAY, GUEST_LINK_LOCAL]),
            (HOST, 6001, 81, [HOST, GUEST]),
        ] {
            let mut client = TcpStream::connect((address, host_port)).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            // Segments of an earlier connection may come first.
            let mut syn = gate.receive_v6(PROTOCOL_TCP);
            while syn.flags() != SYN {
                syn = gate.receive_v6(PROTOCOL_TCP);
            }
            assert_eq!(([syn.from, syn.to], syn.port(2)), (expected, guest_port));
            let (ports, ends) = ([guest_port, syn.port(0)], [syn.to, syn.from]);
            let next = syn.number(4).wrapping_add(1);
            gate.send_segment(ports, ends, (SYN | ACK, [100, next]), "");
            gate.ask_for_gateway();
            gate.send_segment(ports, ends, (PSH | ACK, [101, next]), "answer");
            let mut answer = [0; 6];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"answer");
            client.write_all(b"more").unwrap();
        }
        // Not from the loopback address: passt of Debian 12 sends no answers there.
        let client = datagram_socket(HOST, 7002);
        client.send_to(b"question", (HOST, 6002)).unwrap();
        let question = gate.receive_v6(PROTOCOL_UDP);
        assert_eq!((question.from, question.to), (HOST, GUEST));
        gate.send_datagram([53, question.port(0)], [GUEST, HOST], "answer");
        assert_eq!(received(&client).0, b"answer");
        // A published port is no way to the gateway's address, or to one that no rule names.
        gate.send_segment([80, 7001], [GUEST_LINK_LOCAL, GATEWAY], (SYN, [7, 0]), "");
        assert_eq!(gate.notice(), format!("tcp {GATEWAY} 7001 1"));
        gate.send_segment([80, 7001], [GUEST, HOST], (SYN, [7, 0]), "");
        if is_allow {
            while gate.receive_v6(PROTOCOL_TCP).flags() != SYN | ACK {}
        } else {
            assert_eq!(gate.notice(), "tcp 2001:db8::10 7001 1");
        }
        assert_eq!(other.accept().is_ok(), is_allow);
    }
}

#[test]
fn guest_without_egress_is_reached_by_ipv6_clients_over_ipv4() {
    enter_host_network();
    let publish = json!([
        {"host_address": "::1", "host_port": 6000, "guest_port": 80},
        {"host_address": "::", "host_port": 6001, "guest_port": 81},
    ]);
    let mut gate = Gate::start_with(&with_mode(json!({"publish": publish})), None);
    // The second port is not taken for IPv4.
    listener(Ipv4Addr::UNSPECIFIED, 6001);
    for (address, host_port, guest_port) in
        [(Ipv6Addr::LOCALHOST, 6000, 80), (HOST, 6001, 81), (Ipv6Addr::LOCALHOST, 6001, 81)]
    {
        let _client = TcpStream::connect((address, host_port)).unwrap();
        let frame = loop {
            let frame = gate.receive();
            if frame[12..14] == [0x08, 0x00] {
                break frame;
            }
        };
        assert_eq!((frame[23], &frame[26..30]), (PROTOCOL_TCP, &[10, 0, 2, 2][..]));
        assert_eq!(u16::from_be_bytes([frame[36], frame[37]]), guest_port);
    }
    TcpStream::connect((HOST, 6000)).unwrap_err();
}
