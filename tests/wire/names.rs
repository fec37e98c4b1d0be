//! Rules with names, with a real gate and passt: the test is in the place of the VM, and has a name
//! server in the network of the host and a service in a network behind it.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::gettid;
use serde_json::json;

use crate::gate::{
    ACK, GATEWAY_MAC, GUEST, Gate, HOST, PATIENCE, PROTOCOL_ICMP, RST, SYN, enter_host_network,
    host_socket,
};

/// The address of the service, and of the host in the network of the service (from TEST-NET-2,
/// RFC 5737).
const SERVICE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const HOST_THERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The name server of the gate, as the guest sees it.
pub(crate) const GATES: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 3), 53);

/// Codes of answers (RFC 1035).
const NO_ERROR: u8 = 0;
const NO_NAME: u8 = 3;

const TYPE_A: u8 = 1;
pub(crate) const TYPE_AAAA: u8 = 28;

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Puts a service that listens on port 8000 of [`SERVICE`] behind the network of this thread. The
/// receiver gets a message for each connection.
fn serve_behind_the_host() -> Receiver<()> {
    let (thread_id, its_id) = mpsc::channel();
    let (connected, has_device) = mpsc::channel();
    let (listens, is_ready) = mpsc::channel();
    let (accepted, connections) = mpsc::channel();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        thread_id.send(gettid()).unwrap();
        has_device.recv().unwrap();
        for arguments in [&format!("address add {SERVICE}/24 dev inner"), "link set inner up"] {
            ip(arguments);
        }
        let listener = TcpListener::bind((SERVICE, 8000)).unwrap();
        listens.send(()).unwrap();
        for stream in listener.incoming() {
            // The test may have ended.
            let _ended = stream.map(|stream| accepted.send(()).map(|()| stream));
        }
    });
    let id = its_id.recv().unwrap();
    for arguments in [
        &format!("link add outer type veth peer name inner netns {id}"),
        &format!("address add {HOST_THERE}/24 dev outer"),
        "link set outer up",
    ] {
        ip(arguments);
    }
    connected.send(()).unwrap();
    is_ready.recv().unwrap();
    connections
}

/// Returns a message that asks for a name. `id` is its number.
pub(crate) fn question(id: u8, name: &str, kind: u8) -> Vec<u8> {
    let mut message = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, kind, 0, 1]);
    message
}

/// Serves names on port 53 of [`HOST`], and returns the names that it is asked for.
fn serve_names(addresses: impl Fn(&str) -> Vec<Ipv4Addr> + Send + 'static) -> Receiver<String> {
    let socket = UdpSocket::bind((HOST, 53)).unwrap();
    let (asked, names) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let (mut at, mut labels) = (12, Vec::new());
            while buffer[at] != 0 {
                let end = at + 1 + usize::from(buffer[at]);
                labels.push(String::from_utf8(buffer[at + 1..end].to_vec()).unwrap());
                at = end;
            }
            let name = labels.join(".");
            let records = addresses(&name);
            // The question without the record of EDNS behind it.
            let mut answer = buffer[..count.min(at + 5)].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..12].copy_from_slice(&[0, u8::try_from(records.len()).unwrap(), 0, 0, 0, 0]);
            for record in records {
                // The name of the question, type A, class IN, a time to live of 60 s, 4 bytes.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(record.octets());
            }
            let _ended = asked.send(name);
            socket.send_to(&answer, from).unwrap();
        }
    });
    names
}

/// Asks the gate for a name, and returns the code of its answer and the addresses.
fn resolve(gate: &mut Gate, id: u8, name: &str, kind: u8) -> (u8, Vec<Ipv4Addr>) {
    let asked = question(id, name, kind);
    gate.send_udp(40_000 + u16::from(id), GATES, &asked);
    let (from, port, answer) = gate.receive_udp();
    assert_eq!((from, port), (GATES, 40_000 + u16::from(id)));
    // The number, and the flags of an answer with recursion.
    assert_eq!((&answer[..2], answer[2..4].to_vec()), (&[0, id][..], vec![0x81, 0x80 | answer[3]]));
    assert_eq!(answer[12..asked.len()], asked[12..]);
    // Each record has 16 bytes, the last four of which are the address.
    let records = answer[asked.len()..].chunks(16);
    let addresses = records.map(|record| <[u8; 4]>::try_from(&record[12..]).unwrap().into());
    let addresses: Vec<Ipv4Addr> = addresses.collect();
    assert_eq!(usize::from(answer[7]), addresses.len());
    (answer[3] & 0x0f, addresses)
}

#[test]
fn guest_reaches_what_an_allowed_name_resolves_to_and_only_after_the_answer() {
    enter_host_network();
    let connections = serve_behind_the_host();
    let asked = serve_names(|_| vec![SERVICE]);
    let rules = json!([
        {"to": "api.example.org", "ports": [8000], "protocol": "tcp"},
        {"to": "*.pypi.org", "ports": [443]},
    ]);
    let mut gate = Gate::start(&json!({"mode": "passt", "egress": rules}));
    assert_eq!(gate.hardware_address_of(*GATES.ip()), GATEWAY_MAC, "passt answers for the address");
    let service = SocketAddrV4::new(SERVICE, 8000);
    gate.assert_is_reset(40_000, service);
    assert_eq!(gate.notice(), "tcp 198.51.100.7 8000 1");
    assert_eq!(resolve(&mut gate, 1, "API.Example.ORG", TYPE_A), (NO_ERROR, vec![SERVICE]));
    assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), "api.example.org");
    gate.send_tcp(40_001, service, (SYN, [7, 0]), b"");
    let (from, port, flags, [_, acknowledged]) = gate.receive_tcp();
    assert_eq!((from, port, flags, acknowledged), (service, 40_001, SYN | ACK, 8));
    connections.recv_timeout(PATIENCE).unwrap();
    // Another port of the address, and the port of the other rule.
    for other in [8001, 443] {
        gate.assert_is_reset(40_002, SocketAddrV4::new(SERVICE, other));
        assert_eq!(gate.notice(), format!("tcp 198.51.100.7 {other} 1 api.example.org"));
    }
    // The next answer comes from memory, and IPv6 addresses are not asked for.
    assert_eq!(resolve(&mut gate, 2, "api.example.org", TYPE_A), (NO_ERROR, vec![SERVICE]));
    assert_eq!(resolve(&mut gate, 3, "api.example.org", TYPE_AAAA), (NO_ERROR, vec![]));
    assert_eq!(resolve(&mut gate, 4, "files.pypi.org", TYPE_A), (NO_ERROR, vec![SERVICE]));
    assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), "files.pypi.org");
    gate.send_tcp(40_003, SocketAddrV4::new(SERVICE, 443), (SYN, [7, 0]), b"");
    // The service does not listen on this port, and passt says so.
    assert_eq!(gate.receive_tcp().2 & RST, RST);
    assert!(asked.try_recv().is_err(), "nothing else was asked for");
}

#[test]
fn other_names_other_servers_and_tcp_are_refused() {
    enter_host_network();
    let asked = serve_names(|_| vec![SERVICE]);
    let rules = json!([{"to": "*.example.org"}]);
    let network = json!({"mode": "passt", "egress": rules, "dns": [HOST]});
    let mut gate = Gate::start(&network);
    for (id, name) in [(1, "example.org"), (2, "evil.test"), (3, "a.example.org.evil.test")] {
        assert_eq!(resolve(&mut gate, id, name, TYPE_A), (NO_NAME, vec![]), "{name}");
        assert_eq!(gate.notice(), format!("dns 10.0.2.3 53 1 {name}"));
    }
    // A name server of the config is one of the gate, and not of the guest.
    gate.send_udp(40_000, SocketAddrV4::new(HOST, 53), &question(4, "a.example.org", TYPE_A));
    gate.receive_packet(PROTOCOL_ICMP);
    assert_eq!(gate.notice(), "udp 192.0.2.10 53 1");
    gate.assert_is_reset(40_000, GATES);
    assert_eq!(gate.notice(), "tcp 10.0.2.3 53 1");
    // A fragment of a question, and one that is too short, have no answer.
    let datagram = [&[0x9c, 0x40, 0, 53, 0, 8, 0, 0][..], &[]].concat();
    gate.send_packet(17, *GATES.ip(), &datagram);
    gate.send_packet(17, *GATES.ip(), &datagram[..5]);
    assert!(asked.try_recv().is_err(), "no name server was asked");
    assert_eq!(resolve(&mut gate, 5, "a.example.org", TYPE_A), (NO_ERROR, vec![SERVICE]));
}

#[test]
fn two_hundred_questions_at_once_are_all_answered() {
    enter_host_network();
    serve_names(|_| vec![SERVICE]);
    let mut gate = Gate::start(&json!({"mode": "passt", "egress": [{"to": "a.test"}]}));
    // The gate answers them by itself, because they are not for IPv4 addresses. All of them wait for it.
    gate.signal(Signal::SIGSTOP);
    for id in 0..200 {
        gate.send_udp(40_000 + u16::from(id), GATES, &question(id, "a.test", TYPE_AAAA));
    }
    gate.signal(Signal::SIGCONT);
    for id in 0..200 {
        assert_eq!(gate.receive_udp().1, 40_000 + id);
    }
}

#[test]
fn name_that_leads_to_the_host_or_to_metadata_opens_nothing() {
    enter_host_network();
    let service = TcpListener::bind((HOST, 7000)).unwrap();
    service.set_nonblocking(true).unwrap();
    let forbidden = [
        Ipv4Addr::LOCALHOST,
        HOST,
        Ipv4Addr::new(169, 254, 169, 254),
        Ipv4Addr::new(100, 100, 100, 200),
        Ipv4Addr::new(10, 0, 2, 2),
        GUEST,
        *GATES.ip(),
    ];
    serve_names(move |name| {
        let (first, _) = name.split_once('.').unwrap();
        vec![forbidden[first.trim_start_matches('n').parse::<usize>().unwrap()]]
    });
    // Also without `not_host`, which is for rules with addresses.
    let rules = json!([{"to": "*.evil.test"}]);
    let mut gate = Gate::start(&json!({"mode": "passt", "egress": rules}));
    for (i, address) in forbidden.into_iter().enumerate() {
        let name = format!("n{i}.evil.test");
        let id = u8::try_from(i).unwrap();
        assert_eq!(resolve(&mut gate, id, &name, TYPE_A), (NO_ERROR, vec![]), "{address}");
        assert_eq!(gate.notice(), format!("dns {address} - 1 {name}"));
    }
    for address in forbidden {
        gate.assert_is_reset(41_000, SocketAddrV4::new(address, 7000));
    }
    assert!(service.accept().is_err(), "passt has not connected");
}

#[test]
fn next_name_server_is_asked_if_one_refuses_or_is_silent() {
    enter_host_network();
    // The first server does not exist, and the second one does not answer.
    let silent = UdpSocket::bind("127.0.0.8:53").unwrap();
    let asked = serve_names(|_| vec![SERVICE]);
    let network = json!({"mode": "passt", "egress": [{"to": "a.test"}]});
    let servers = json!(["127.0.0.9", "127.0.0.8", HOST]);
    let mut gate = Gate::start_asking(&network, &servers, None);
    assert_eq!(resolve(&mut gate, 1, "a.test", TYPE_A), (NO_ERROR, vec![SERVICE]));
    assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), "a.test");
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 512];
    let count = silent.recv(&mut buffer).unwrap();
    // The question of the guest, with a number of the gate and a record of EDNS.
    assert_eq!(buffer[2..12], [1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    assert_eq!(&buffer[12..24], &question(0, "a.test", TYPE_A)[12..24]);
    assert_eq!(count, 24 + 11);
}

#[test]
fn datagrams_and_connections_go_by_the_protocol_of_the_rule() {
    enter_host_network();
    let connections = serve_behind_the_host();
    serve_names(|_| vec![SERVICE]);
    let rules = json!([{"to": "a.test", "protocol": "udp"}]);
    let mut gate = Gate::start(&json!({"mode": "passt", "egress": rules}));
    assert_eq!(resolve(&mut gate, 1, "a.test", TYPE_A), (NO_ERROR, vec![SERVICE]));
    gate.assert_is_reset(40_000, SocketAddrV4::new(SERVICE, 8000));
    assert_eq!(gate.notice(), "tcp 198.51.100.7 8000 1 a.test");
    gate.send_packet(PROTOCOL_ICMP, SERVICE, &[8, 0, 0, 0, 0, 1, 0, 1]);
    assert_eq!(gate.notice(), "icmp 198.51.100.7 - 1 a.test");
    assert!(connections.try_recv().is_err());
    // A segment that opens nothing passes, and passt has no connection for it.
    gate.send_tcp(40_000, SocketAddrV4::new(SERVICE, 8000), (ACK, [7, 7]), b"data");
    let host = host_socket(9000);
    gate.send_udp(40_000, SocketAddrV4::new(HOST, 9000), b"refused");
    assert_eq!(gate.notice(), "udp 192.0.2.10 9000 1");
    assert!(host.set_nonblocking(true).is_ok() && host.recv(&mut [0; 10]).is_err());
    assert!(connections.try_recv().is_err());
}
