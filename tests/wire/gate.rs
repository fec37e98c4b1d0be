//! The gate with a real passt and with the test in the place of the VM: the datagrams and
//! connections that pass in each direction.
//!
//! Each test runs in a network namespace of its own, which takes the place of the host's network.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::harness::shim;

/// An address of the host in its network (from TEST-NET-1, RFC 5737).
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GUEST_MAC: [u8; 6] = [0x02, 0xa3, 0x53, 0, 0, 0x0f];

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// Time after which a test gives up. It only matters for a test that fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Moves this thread, and the processes that it starts, into a new network namespace with the
/// addresses of a host.
fn enter_host_network() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for arguments in ["link set lo up".to_owned(), format!("address add {HOST}/32 dev lo")] {
        let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }
}

/// A gate, and the guest's end of its wire.
struct Gate {
    process: Child,
    wire: UnixStream,
}

impl Gate {
    /// Starts a gate with this `network` of a config, and waits until passt answers.
    fn start(network: &Value) -> Self {
        let (wire, gates_end) = UnixStream::pair().unwrap();
        wire.set_read_timeout(Some(PATIENCE)).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let passt = std::env::split_paths(&path).map(|directory| directory.join("passt"));
        let config = json!({"network": network, "seccomp": "enforce"}).to_string();
        let process = Command::new(shim().get_program())
            .arg("--network-gate")
            .arg(passt.into_iter().find(|path| path.exists()).unwrap())
            .arg(config)
            .env_clear()
            .stdin(OwnedFd::from(gates_end))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut gate = Self { process, wire };
        // An ARP request of the guest for its gateway (RFC 826).
        let gateway = [10, 0, 2, 2];
        let head = [&[0xff; 6][..], &GUEST_MAC, &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]];
        let body = [&GUEST_MAC[..], &GUEST.octets(), &[0; 6], &gateway];
        gate.send(&[head.concat(), body.concat()].concat());
        assert_eq!(gate.receive()[12..14], [0x08, 0x06]);
        gate
    }

    fn send(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.wire.write_all(&[&length, frame].concat()).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.wire.read_exact(&mut length).unwrap();
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        self.wire.read_exact(&mut frame).unwrap();
        frame
    }

    /// Sends a datagram of the guest.
    fn send_udp(&mut self, from: u16, to: SocketAddrV4, data: &[u8]) {
        let udp_bytes = u16::try_from(8 + data.len()).unwrap();
        let udp = [from.to_be_bytes(), to.port().to_be_bytes(), udp_bytes.to_be_bytes(), [0; 2]];
        let [high, low] = (20 + udp_bytes).to_be_bytes();
        let ipv4 = [0x45, 0, high, low, 0, 0, 0, 0, 64, PROTOCOL_UDP, 0, 0];
        // passt accepts any destination of the Ethernet frame.
        let ethernet = [&[0xff; 6][..], &GUEST_MAC, &[0x08, 0x00]].concat();
        let addresses = [GUEST.octets(), to.ip().octets()].concat();
        self.send(&[&ethernet, &ipv4[..], &addresses, &udp.concat(), data].concat());
    }

    /// Waits for the next IPv4 packet of this protocol, and returns its source, the port of the
    /// guest, and what follows the ports.
    fn receive_packet(&mut self, protocol: u8) -> (SocketAddrV4, u16, Vec<u8>) {
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
    fn receive_udp(&mut self) -> (SocketAddrV4, u16, Vec<u8>) {
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

fn host_socket(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((HOST, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Receives a datagram, and returns its data and the port that it comes from.
fn received(socket: &UdpSocket) -> (Vec<u8>, u16) {
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
