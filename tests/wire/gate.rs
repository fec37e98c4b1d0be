//! The gate with a real passt and with the test in the place of the VM: the datagrams and
//! connections that pass in each direction, and what the gate does with those that do not.
//!
//! Each test runs in a network namespace of its own, which takes the place of the host's network.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::shim;

/// An address of the host in its network (from TEST-NET-1, RFC 5737).
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(crate) const GUEST_MAC: [u8; 6] = [0x02, 0xa3, 0x53, 0, 0, 0x0f];

pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(crate) const GATEWAY_MAC: [u8; 6] = [0x02, 0xa3, 0x53, 0, 0, 0x02];

pub(crate) const PROTOCOL_ICMP: u8 = 1;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;

/// Flags of TCP (RFC 9293).
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// Time in which a refused packet is answered. The answer takes less than a millisecond, and without
/// it a connection takes minutes to fail.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Time after which a test gives up. It only matters for a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Moves this thread, and the processes that it starts, into a new network namespace with the
/// addresses of a host.
pub(crate) fn enter_host_network() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for arguments in ["link set lo up".to_owned(), format!("address add {HOST}/32 dev lo")] {
        let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }
}

/// A gate, and the guest's end of its wire.
pub(crate) struct Gate {
    process: Child,
    wire: UnixStream,
    notices: BufReader<ChildStdout>,
}

impl Gate {
    /// Starts a gate with this `network` of a config, and waits until passt answers.
    pub(crate) fn start(network: &Value) -> Self {
        Self::start_with(network, None)
    }

    /// Starts a gate whose guest has IPv6 if the host has an interface for it.
    pub(crate) fn start_with(network: &Value, ipv6: Option<&str>) -> Self {
        Self::start_asking(network, &json!([HOST]), ipv6)
    }

    /// Starts a gate that asks these name servers if a rule has a name.
    pub(crate) fn start_asking(network: &Value, name_servers: &Value, ipv6: Option<&str>) -> Self {
        let path = std::env::var_os("PATH").unwrap();
        let passt = std::env::split_paths(&path).map(|directory| directory.join("passt"));
        let passt = passt.into_iter().find(|path| path.exists()).unwrap();
        let mut gate = Self::start_process(&passt, network, name_servers, ipv6);
        gate.ask_for_gateway();
        gate
    }

    /// Starts a gate with a program in the place of passt.
    pub(crate) fn start_program(passt: &Path, network: &Value, ipv6: Option<&str>) -> Self {
        Self::start_process(passt, network, &json!([HOST]), ipv6)
    }

    fn start_process(
        passt: &Path,
        network: &Value,
        name_servers: &Value,
        ipv6: Option<&str>,
    ) -> Self {
        let (wire, gates_end) = UnixStream::pair().unwrap();
        wire.set_read_timeout(Some(PATIENCE)).unwrap();
        let config = json!({
            "network": network,
            "seccomp": "enforce",
            "name_servers": name_servers,
            "ipv6": ipv6,
        });
        let config = config.to_string();
        let mut process = Command::new(shim().get_program())
            .arg("--network-gate")
            .arg(passt)
            .env_clear()
            .stdin(OwnedFd::from(gates_end))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let notices = BufReader::new(process.stdout.take().unwrap());
        let mut gate = Self { process, wire, notices };
        // The config is the first message on the wire, with its length in front like a frame.
        gate.send(config.as_bytes());
        gate
    }

    /// Returns the hardware address that answers an ARP request of the guest for an address.
    pub(crate) fn hardware_address_of(&mut self, address: Ipv4Addr) -> Vec<u8> {
        self.send_arp_request(address);
        loop {
            let frame = self.receive();
            if frame[12..14] == [0x08, 0x06] && frame[28..32] == address.octets() {
                return frame[22..28].to_vec();
            }
        }
    }

    /// Waits until passt has handled all frames so far.
    ///
    /// passt of Debian 12 must get the first two segments of an answer one after the other, as a
    /// kernel sends them. If it reads both at once, it counts too many as handled and never stops.
    pub(crate) fn ask_for_gateway(&mut self) {
        self.send_arp_request(GATEWAY);
        while self.receive()[12..14] != [0x08, 0x06] {}
    }

    /// Sends a signal to the gate.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }

    /// Sends an ARP request of the guest (RFC 826).
    fn send_arp_request(&mut self, address: Ipv4Addr) {
        let head = [&[0xff; 6][..], &GUEST_MAC, &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]];
        let body = [&GUEST_MAC[..], &GUEST.octets(), &[0; 6], &address.octets()];
        self.send(&[head.concat(), body.concat()].concat());
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.wire.write_all(&[&length, frame].concat()).unwrap();
    }

    pub(crate) fn receive(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.wire.read_exact(&mut length).unwrap();
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        self.wire.read_exact(&mut frame).unwrap();
        frame
    }

    /// Sends an IPv4 packet of the guest.
    pub(crate) fn send_packet(&mut self, protocol: u8, to: Ipv4Addr, payload: &[u8]) {
        let [high, low] = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let ipv4 = [0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0];
        let ethernet = [&GATEWAY_MAC[..], &GUEST_MAC, &[0x08, 0x00]].concat();
        let addresses = [GUEST.octets(), to.octets()].concat();
        self.send(&[&ethernet, &ipv4[..], &addresses, payload].concat());
    }

    /// Sends a datagram of the guest.
    pub(crate) fn send_udp(&mut self, from: u16, to: SocketAddrV4, data: &[u8]) {
        let length = u16::try_from(8 + data.len()).unwrap();
        let udp = [from.to_be_bytes(), to.port().to_be_bytes(), length.to_be_bytes(), [0; 2]];
        self.send_packet(PROTOCOL_UDP, *to.ip(), &[&udp.concat(), data].concat());
    }

    /// Sends a TCP segment of the guest. `header` has its flags, its number and the acknowledged one.
    pub(crate) fn send_tcp(
        &mut self,
        from: u16,
        to: SocketAddrV4,
        header: (u8, [u32; 2]),
        data: &[u8],
    ) {
        let (flags, numbers) = header;
        let ports = [from.to_be_bytes(), to.port().to_be_bytes()].concat();
        let numbers = numbers.map(u32::to_be_bytes).concat();
        // passt verifies no checksum. A SYN has the option "maximum segment size".
        let (words, option) =
            if flags & SYN == 0 { (0x50, &[][..]) } else { (0x60, &[2, 4, 5, 180][..]) };
        let rest = [words, flags, 0xff, 0xff, 0, 0, 0, 0];
        self.send_packet(
            PROTOCOL_TCP,
            *to.ip(),
            &[&ports, &numbers, &rest[..], option, data].concat(),
        );
    }

    /// Waits for the next TCP segment, and returns its source, the port of the guest, its flags, its
    /// number and the acknowledged one.
    pub(crate) fn receive_tcp(&mut self) -> (SocketAddrV4, u16, u8, [u32; 2]) {
        let (from, port, rest) = self.receive_packet(PROTOCOL_TCP);
        let number = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
        (from, port, rest[9], [number(0), number(4)])
    }

    /// Opens a connection of the guest, and checks that it is reset at once.
    pub(crate) fn assert_is_reset(&mut self, from: u16, to: SocketAddrV4) {
        let start = Instant::now();
        self.send_tcp(from, to, (SYN, [7, 0]), b"");
        assert_eq!(self.receive_tcp(), (to, from, RST | ACK, [0, 8]));
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    }

    /// Waits for the next notice.
    pub(crate) fn notice(&mut self) -> String {
        let mut line = String::new();
        self.notices.read_line(&mut line).unwrap();
        line.trim_end_matches('\n').to_owned()
    }

    /// Waits for the next IPv4 packet of this protocol, and returns its source, the port of the
    /// guest, and what follows the ports.
    pub(crate) fn receive_packet(&mut self, protocol: u8) -> (SocketAddrV4, u16, Vec<u8>) {
        loop {
            let frame = self.receive();
            if frame[12..14] != [0x08, 0x00] || frame[23] != protocol {
                continue;
            }
            let address = Ipv4Addr::from(<[u8; 4]>::try_from(&frame[26..30]).unwrap());
            let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            return (SocketAddrV4::new(address, port(34)), port(36), frame[38..].to_vec());
        }
    }

    /// Waits for the next datagram, and returns its source, the port of the guest, and its data.
    pub(crate) fn receive_udp(&mut self) -> (SocketAddrV4, u16, Vec<u8>) {
        let (from, port, rest) = self.receive_packet(PROTOCOL_UDP);
        // Length and checksum.
        (from, port, rest[4..].to_vec())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // The gate ends when its wire closes.
        let _closed = self.wire.shutdown(std::net::Shutdown::Both);
        let _status = self.process.wait();
    }
}

pub(crate) fn host_socket(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((HOST, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Receives a datagram, and returns its data and the port that it comes from.
pub(crate) fn received(socket: &UdpSocket) -> (Vec<u8>, u16) {
    let mut data = [0; 100];
    let (count, from) = socket.recv_from(&mut data).unwrap();
    (data[..count].to_vec(), from.port())
}

#[test]
fn guest_takes_no_udp_port_of_a_service_and_gets_answers_only() {
    enter_host_network();
    let (server, stranger) = (host_socket(7000), host_socket(7001));
    let to_server = SocketAddrV4::new(HOST, 7000);
    let mut gate = Gate::start(&json!({"mode": "passt", "egress": "allow"}));
    gate.send_udp(5353, to_server, b"from the port of a service");
    gate.send_udp(40_000, to_server, b"from the port of a client");
    assert_eq!(received(&server), (b"from the port of a client".to_vec(), 40_000));
    // passt has bound the port of the client on the host, but not the other one.
    let is_free = |port: u16| UdpSocket::bind(("0.0.0.0", port)).is_ok();
    assert_eq!([40_000, 5353].map(is_free), [false, true]);
    // Both datagrams reach passt, and the gate drops the one that answers nothing.
    stranger.send_to(b"unsolicited", (HOST, 40_000)).unwrap();
    server.send_to(b"answer", (HOST, 40_000)).unwrap();
    assert_eq!(gate.receive_udp(), (to_server, 40_000, b"answer".to_vec()));
    // The guest may ask the stranger, and then gets its answer.
    gate.send_udp(40_000, SocketAddrV4::new(HOST, 7001), b"question");
    assert_eq!(received(&stranger), (b"question".to_vec(), 40_000));
    stranger.send_to(b"late answer", (HOST, 40_000)).unwrap();
    assert_eq!(gate.receive_udp().2, b"late answer");
}

#[test]
fn published_udp_port_is_reachable_by_everyone() {
    enter_host_network();
    let publish = json!([
        {"host_address": HOST, "host_port": 6000, "guest_port": 53, "protocol": "udp"},
    ]);
    let mut gate = Gate::start(&json!({"mode": "passt", "egress": "allow", "publish": publish}));
    for port in [7000, 7001] {
        let client = host_socket(port);
        client.send_to(b"question", (HOST, 6000)).unwrap();
        let (from, guest_port, data) = gate.receive_udp();
        assert_eq!((guest_port, data.as_slice()), (53, &b"question"[..]));
        gate.send_udp(53, from, b"answer");
        assert_eq!(received(&client), (b"answer".to_vec(), 6000));
    }
}

#[test]
fn connection_to_a_published_port_reaches_a_guest_without_egress() {
    enter_host_network();
    let publish = json!([
        {"host_address": HOST, "host_port": 6000, "guest_port": 80},
        {"host_address": HOST, "host_port": 6001, "guest_port": 81},
    ]);
    let mut gate = Gate::start(&json!({"mode": "passt", "publish": publish}));
    for (host_port, guest_port) in [(6000, 80), (6001, 81)] {
        let _client = TcpStream::connect((HOST, host_port)).unwrap();
        let (from, port, _) = gate.receive_packet(PROTOCOL_TCP);
        assert_eq!((from.ip(), port), (&Ipv4Addr::new(10, 0, 2, 2), guest_port));
    }
}

fn listener(port: u16) -> TcpListener {
    let listener = TcpListener::bind((HOST, port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

#[test]
fn guest_with_rules_reaches_what_they_name_and_is_refused_the_rest_at_once() {
    enter_host_network();
    let (named, other) = (listener(7000), listener(7001));
    let datagrams = host_socket(7000);
    let rules = json!([
        {"to": HOST, "ports": [7000], "protocol": "tcp"},
        {"to": "192.0.2.0/24", "ports": ["7002-7003"]},
    ]);
    let mut gate = Gate::start(&json!({"mode": "passt", "egress": rules}));
    let to_named = SocketAddrV4::new(HOST, 7000);
    gate.send_tcp(40_000, to_named, (SYN, [7, 0]), b"");
    let (from, port, flags, [_, acknowledged]) = gate.receive_tcp();
    assert_eq!((from, port, flags, acknowledged), (to_named, 40_000, SYN | ACK, 8));
    named.accept().unwrap();
    gate.assert_is_reset(40_001, SocketAddrV4::new(HOST, 7001));
    assert_eq!(gate.notice(), "tcp 192.0.2.10 7001 1");
    assert!(other.accept().is_err(), "passt has not connected");
    // The rule is for TCP, and the datagram gets an answer as well.
    gate.send_udp(40_000, to_named, b"refused");
    let (from, _, prohibited) = gate.receive_packet(PROTOCOL_ICMP);
    assert_eq!(*from.ip(), GATEWAY);
    // `receive_packet` takes type and code for a port. The refused packet follows the unused bytes.
    assert_eq!(from.port().to_be_bytes(), [3, 13]);
    assert_eq!(
        (&prohibited[4..8], &prohibited[20..24]),
        (&[0x45, 0, 0, 35][..], &HOST.octets()[..])
    );
    assert_eq!(prohibited[24..28], [40_000_u16.to_be_bytes(), 7000_u16.to_be_bytes()].concat());
    assert_eq!(gate.notice(), "udp 192.0.2.10 7000 1");
    gate.send_packet(PROTOCOL_ICMP, HOST, &[8, 0, 0, 0, 0, 1, 0, 1]);
    gate.receive_packet(PROTOCOL_ICMP);
    assert_eq!(gate.notice(), "icmp 192.0.2.10 - 1");
    assert!(datagrams.set_nonblocking(true).is_ok() && datagrams.recv(&mut [0; 10]).is_err());
    // A datagram that a rule names arrives, and so does the answer.
    let server = host_socket(7003);
    gate.send_udp(40_000, SocketAddrV4::new(HOST, 7003), b"question");
    assert_eq!(received(&server).0, b"question");
    server.send_to(b"answer", (HOST, 40_000)).unwrap();
    assert_eq!(gate.receive_udp().2, b"answer");
    // A flood of refused packets gives few notices, and does not hold up what passes.
    for _ in 0..1000 {
        gate.send_tcp(40_002, SocketAddrV4::new(HOST, 7001), (SYN, [7, 0]), b"");
    }
    gate.send_udp(40_000, SocketAddrV4::new(HOST, 7003), b"behind the flood");
    assert_eq!(received(&server).0, b"behind the flood");
}

#[test]
fn guest_with_rules_answers_on_published_ports_and_opens_nothing_from_them() {
    enter_host_network();
    let other = listener(7001);
    let publish = json!([
        {"host_address": HOST, "host_port": 6000, "guest_port": 80},
    ]);
    let mut gate = Gate::start(&json!({"mode": "passt", "egress": [], "publish": publish}));
    let mut client = TcpStream::connect((HOST, 6000)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (peer, port, flags, [number, _]) = gate.receive_tcp();
    assert_eq!((port, flags), (80, SYN));
    let next = number.wrapping_add(1);
    gate.send_tcp(80, peer, (SYN | ACK, [100, next]), b"");
    gate.ask_for_gateway();
    gate.send_tcp(80, peer, (PSH | ACK, [101, next]), b"answer");
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    // The published port is no way out, and neither is a segment of no connection.
    let stranger = SocketAddrV4::new(HOST, 7001);
    gate.send_tcp(80, stranger, (ACK, [7, 7]), b"data");
    gate.send_tcp(80, stranger, (SYN | ACK, [7, 7]), b"");
    gate.send_tcp(80, stranger, (SYN, [7, 0]), b"");
    // passt acknowledges the data above, and newer versions answer the first two with resets.
    let is_of_gate = |(from, port, flags, numbers)| {
        (from, port, flags, numbers) == (stranger, 80, RST | ACK, [0, 8])
    };
    while !is_of_gate(gate.receive_tcp()) {}
    assert_eq!(gate.notice(), "tcp 192.0.2.10 7001 1");
    gate.ask_for_gateway();
    assert!(other.accept().is_err(), "passt has not connected");
}

#[test]
fn guest_with_rules_answers_only_datagrams_that_it_got() {
    enter_host_network();
    let publish = json!([
        {"host_address": HOST, "host_port": 6001, "guest_port": 53, "protocol": "udp"},
    ]);
    let mut gate = Gate::start(&json!({"mode": "passt", "egress": [], "publish": publish}));
    let (asks, silent) = (host_socket(7002), host_socket(7003));
    asks.send_to(b"question", (HOST, 6001)).unwrap();
    let (from, port, _) = gate.receive_udp();
    assert_eq!(port, 53);
    gate.send_udp(53, SocketAddrV4::new(HOST, 7003), b"unsolicited");
    gate.send_udp(53, from, b"answer");
    assert_eq!(received(&asks).0, b"answer");
    assert!(silent.set_nonblocking(true).is_ok() && silent.recv(&mut [0; 10]).is_err());
    assert_eq!(gate.notice(), "udp 192.0.2.10 7003 1");
}

#[test]
fn guest_that_must_not_reach_the_host_is_refused_its_addresses_and_the_gateway() {
    enter_host_network();
    let service = listener(7000);
    for egress in [json!("allow"), json!([{"to": "0.0.0.0/0"}])] {
        let network = json!({"mode": "passt", "egress": egress, "not_host": true});
        let mut gate = Gate::start(&network);
        for address in [HOST, GATEWAY, Ipv4Addr::LOCALHOST, Ipv4Addr::new(169, 254, 169, 254)] {
            gate.assert_is_reset(40_000, SocketAddrV4::new(address, 7000));
            assert_eq!(gate.notice(), format!("tcp {address} 7000 1"));
        }
        assert!(service.accept().is_err(), "passt has not connected");
    }
    // Without `not_host` the same service is reachable.
    let mut gate = Gate::start(&json!({"mode": "passt", "egress": "allow"}));
    gate.send_tcp(40_000, SocketAddrV4::new(HOST, 7000), (SYN, [7, 0]), b"");
    assert_eq!(gate.receive_tcp().2, SYN | ACK);
    service.accept().unwrap();
}
