//! What hostile code in the gate could try with the sockets that the gate holds.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketType};

use super::*;

/// Variable by which this test runs itself as the gate.
const ATTEMPT: &str = "A3S_BOX_TEST_ATTEMPT";

const SIGSYS: i32 = libc::SIGSYS;

/// Attempts, each with the signal that the filter must end it with. The first one does what the
/// gate does.
const ATTEMPTS: [(&str, Option<i32>); 10] = [
    ("serve", None),
    ("ask a name server", None),
    ("connect a listener", Some(SIGSYS)),
    ("connect an accepted socket", Some(SIGSYS)),
    ("end a listener", Some(SIGSYS)),
    ("connect by sendto", Some(SIGSYS)),
    ("send to another address", Some(SIGSYS)),
    ("connect to another name server", Some(SIGSYS)),
    ("make a socket", Some(SIGSYS)),
    ("set an option", Some(SIGSYS)),
];

#[test]
fn gate_cannot_connect_a_socket_of_the_host() {
    if let Ok(name) = std::env::var(ATTEMPT) {
        attempt(&name);
    }
    let ends = ATTEMPTS.map(|(name, _)| {
        let mut this = Command::new(std::env::current_exe().unwrap());
        let test = "network::gate::calls::tests::gate_cannot_connect_a_socket_of_the_host";
        let output = this.args(["--exact", test]).env(ATTEMPT, name).output().unwrap();
        let signal = output.status.signal();
        assert!(output.status.success() || signal.is_some(), "{name}: {output:?}");
        (name, signal)
    });
    assert_eq!(ends, ATTEMPTS);
}

/// Makes the attempt with a listener, with a connection that it has accepted, and with a socket
/// that is connected to a name server, under the filter.
fn attempt(name: &str) -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let name_server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
    upstream.connect(name_server.local_addr().unwrap()).unwrap();
    restrict(SeccompMode::Enforce, 0, true).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let socket = SocketType::STREAM;
    let fast_open = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
    // The results do not matter: a forbidden call does not return.
    let _succeeded = match name {
        "serve" => serve(&mut accepted, &mut client).is_ok(),
        "connect a listener" => rustix::net::connect(&listener, &address).is_ok(),
        "connect an accepted socket" => rustix::net::connect(&accepted, &address).is_ok(),
        "end a listener" => rustix::net::shutdown(&listener, Shutdown::Both).is_ok(),
        "connect by sendto" => rustix::net::sendto(&listener, b"x", fast_open, &address).is_ok(),
        "ask a name server" => upstream.send(b"x").is_ok() && name_server.recv(&mut [0]).is_ok(),
        "send to another address" => upstream.send_to(b"x", address).is_ok(),
        "connect to another name server" => upstream.connect(address).is_ok(),
        "make a socket" => rustix::net::socket(AddressFamily::INET, socket, None).is_ok(),
        "set an option" => rustix::net::sockopt::set_tcp_nodelay(&accepted, true).is_ok(),
        _ => unreachable!("{name}"),
    };
    a3s_box_sys::exit::now(0)
}

/// Does with a connection what the gate does.
fn serve(accepted: &mut TcpStream, client: &mut TcpStream) -> std::io::Result<()> {
    accepted.write_all(b"x")?;
    accepted.shutdown(std::net::Shutdown::Write)?;
    client.read_exact(&mut [0])
}
