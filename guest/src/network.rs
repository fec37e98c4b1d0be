//! The way to a network, as rtnetlink(7) takes it: address, size of packets, route.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use a3s_box_proto::control::Interface;
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Length of `struct nlmsghdr`; behind it an answer has its errno.
const HEADER_BYTES: usize = 16;

const FAMILY_IPV4: u8 = 2;

/// What is asked for is made, and must not be there (`NLM_F_CREATE`, `NLM_F_EXCL`).
const CREATE: u16 = 0x400 | 0x200;

/// The network cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} of `{name}`")]
pub(crate) struct NetworkError {
    action: &'static str,
    name: String,
    source: io::Error,
}

/// Every network's first interface (`LOOPBACK_IFINDEX`, Linux).
const LOOPBACK_INDEX: u32 = 1;

/// Brings the loopback interface up, which gives it its addresses.
pub(crate) fn set_loopback_up() -> io::Result<()> {
    ask(&open()?, libc::RTM_NEWLINK, 0, &link(LOOPBACK_INDEX, 0))
}

/// Brings an interface up, with its address and route.
pub(crate) fn set_up(interface: &Interface) -> Result<(), NetworkError> {
    let failed = |action| {
        let name = interface.name.clone();
        move |source: io::Error| NetworkError { action, name, source }
    };
    let index = if_nametoindex(interface.name.as_str())
        .map_err(io::Error::from)
        .map_err(failed("find the number"))?;
    let kernel = open().map_err(failed("ask for the settings"))?;
    ask(&kernel, libc::RTM_NEWADDR, CREATE, &address(index, interface))
        .map_err(failed("set the address"))?;
    ask(&kernel, libc::RTM_NEWLINK, 0, &link(index, interface.mtu))
        .map_err(failed("change the state"))?;
    if interface.gateway == 0 {
        return Ok(());
    }
    ask(&kernel, libc::RTM_NEWROUTE, CREATE, &default_route(index, interface.gateway))
        .map_err(failed("set the route"))
}

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let route = SockProtocol::NetlinkRoute;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, route)?)
}

/// Sends one request, and waits for its answer.
fn ask(kernel: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(HEADER_BYTES + body.len()).unwrap_or_default();
    // Two small numbers (netlink.h): a request, with an answer.
    let flags = flags | u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
    let parts: [&[u8]; 5] =
        [&length.to_ne_bytes(), &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], body];
    send(kernel.as_raw_fd(), &parts.concat(), MsgFlags::empty())?;
    let mut answer = [0; 256];
    let count = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let errno = answer.get(..count).and_then(|answer| answer.get(HEADER_BYTES..));
    match errno.and_then(<[u8]>::first_chunk).map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(errno) => Err(Errno::from_raw(errno.saturating_neg()).into()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// `struct ifaddrmsg`, and the address as this end's.
fn address(index: u32, interface: &Interface) -> Vec<u8> {
    let prefix_length = u8::try_from(interface.prefix_length).unwrap_or(32);
    let own = Ipv4Addr::from(interface.address).octets();
    let head = [FAMILY_IPV4, prefix_length, 0, 0];
    let parts: [&[u8]; 4] = [
        &head,
        &index.to_ne_bytes(),
        &attribute(libc::IFA_LOCAL, own),
        &attribute(libc::IFA_ADDRESS, own),
    ];
    parts.concat()
}

/// `struct ifinfomsg`: up, with this size of packets unless that is zero.
fn link(index: u32, mtu: u32) -> Vec<u8> {
    let up = libc::IFF_UP.cast_unsigned().to_ne_bytes();
    let size = if mtu == 0 { Vec::new() } else { attribute(libc::IFLA_MTU, mtu.to_ne_bytes()) };
    let parts: [&[u8]; 5] = [&[0; 4], &index.to_ne_bytes(), &up, &up, &size];
    parts.concat()
}

/// `struct rtmsg`: to everywhere, by this gateway.
fn default_route(index: u32, gateway: u32) -> Vec<u8> {
    let head = [
        FAMILY_IPV4,
        0,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_BOOT,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
    ];
    let parts: [&[u8]; 4] = [
        &head,
        &[0; 4],
        &attribute(libc::RTA_GATEWAY, Ipv4Addr::from(gateway).octets()),
        &attribute(libc::RTA_OIF, index.to_ne_bytes()),
    ];
    parts.concat()
}

/// `struct rtattr` with four bytes.
fn attribute(kind: u16, value: [u8; 4]) -> Vec<u8> {
    let parts: [&[u8]; 3] = [&8_u16.to_ne_bytes(), &kind.to_ne_bytes(), &value];
    parts.concat()
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs in a network of its own, whose loopback interface plays the part of each device.
    fn in_an_empty_network(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            test();
        });
        thread.join().unwrap();
    }

    fn interface(name: &str, gateway: [u8; 4]) -> Interface {
        Interface {
            name: name.into(),
            address: u32::from_be_bytes([10, 0, 2, 15]),
            prefix_length: 24,
            gateway: u32::from_be_bytes(gateway),
            mtu: 1400,
        }
    }

    fn of_thread(file: &str) -> String {
        std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap()
    }

    #[test]
    fn address_route_and_size_are_set() {
        in_an_empty_network(|| {
            set_up(&interface("lo", [10, 0, 2, 2])).unwrap();
            assert!(of_thread("fib_trie").contains("10.0.2.15"), "{}", of_thread("fib_trie"));
            let routes = of_thread("route");
            // Destination and gateway, as the machine has them in memory.
            assert!(routes.contains("\t00000000\t0202000A\t"), "{routes}");
            let again = set_up(&interface("lo", [0; 4])).unwrap_err();
            assert_eq!(again.to_string(), "cannot set the address of `lo`");
        });
    }

    #[test]
    fn the_loopback_interface_is_up() {
        in_an_empty_network(|| {
            assert!(!of_thread("fib_trie").contains("127.0.0.1"));
            set_loopback_up().unwrap();
            assert!(of_thread("fib_trie").contains("127.0.0.1"), "{}", of_thread("fib_trie"));
        });
    }

    #[test]
    fn a_device_that_is_not_there_is_told() {
        let error = set_up(&interface("eth99", [0; 4])).unwrap_err();
        assert_eq!(error.to_string(), "cannot find the number of `eth99`");
    }
}
