//! Configures network interfaces by `rtnetlink(7)`: state, address, MTU and default route.
//!
//! The guest program sends the requests itself, so that a box needs no program of its image for
//! this. Each request is one message in the format of `netlink(7)`.

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

/// Length of `struct nlmsghdr`, after which an answer has its errno.
const HEADER_BYTES: usize = 16;

/// `AF_INET` as the byte that `rtnetlink(7)` has in its structs.
const FAMILY_IPV4: u8 = 2;

/// Flags of a request that creates an object, and fails if the object exists (`NLM_F_CREATE`,
/// `NLM_F_EXCL`).
pub(crate) const CREATE: u16 = 0x400 | 0x200;

/// A request for a network interface failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} of `{name}`")]
pub(crate) struct NetworkError {
    action: &'static str,
    name: String,
    source: io::Error,
}

/// Index of the loopback interface in each network namespace (`LOOPBACK_IFINDEX`, Linux).
const LOOPBACK_INDEX: u32 = 1;

/// Brings the loopback interface up. The kernel then adds its addresses.
pub(crate) fn set_loopback_up() -> io::Result<()> {
    request(&open()?, libc::RTM_NEWLINK, 0, &link(LOOPBACK_INDEX, 0))
}

/// Sets the address and MTU of an interface, brings it up, and adds the default route. Stops at the
/// first error.
pub(crate) fn set_up(interface: &Interface) -> Result<(), NetworkError> {
    let failed = |action| {
        let name = interface.name.clone();
        move |source: io::Error| NetworkError { action, name, source }
    };
    let index = if_nametoindex(interface.name.as_str())
        .map_err(io::Error::from)
        .map_err(failed("find the number"))?;
    let kernel = open().map_err(failed("ask for the settings"))?;
    request(&kernel, libc::RTM_NEWADDR, CREATE, &address(index, interface))
        .map_err(failed("set the address"))?;
    request(&kernel, libc::RTM_NEWLINK, 0, &link(index, interface.mtu))
        .map_err(failed("change the state"))?;
    if interface.gateway == 0 {
        return Ok(());
    }
    // The route comes last. The kernel refuses a gateway that it cannot reach, and it reaches the
    // gateway by the address of an interface that is up.
    request(&kernel, libc::RTM_NEWROUTE, CREATE, &default_route(index, interface.gateway))
        .map_err(failed("set the route"))
}

/// Opens a netlink socket to the kernel's routing tables.
pub(crate) fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let route = SockProtocol::NetlinkRoute;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, route)?)
}

/// Sends one request and waits for its acknowledgement. `kind` and `flags` are fields of
/// `struct nlmsghdr`, and `body` is the rest of the message.
///
/// Returns the errno in the acknowledgement as an error, and `UnexpectedEof` if it is too short.
pub(crate) fn request(kernel: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    // The body has less than 100 bytes, so the conversion cannot fail.
    let length = u32::try_from(HEADER_BYTES + body.len()).unwrap_or_default();
    // Both flags are small numbers. NLM_F_ACK requests an acknowledgement of a success, too.
    let flags = flags | u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
    // The zeros are the sequence number and the sender's port. One request is open at a time, so
    // neither is needed to identify its answer.
    let parts: [&[u8]; 5] =
        [&length.to_ne_bytes(), &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], body];
    send(kernel.as_raw_fd(), &parts.concat(), MsgFlags::empty())?;
    let mut answer = [0; 256];
    let count = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let errno = answer.get(..count).and_then(|answer| answer.get(HEADER_BYTES..));
    match errno.and_then(<[u8]>::first_chunk).map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        // The kernel sends the errno as a negative number (netlink(7)).
        Some(errno) => Err(Errno::from_raw(errno.saturating_neg()).into()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Returns `struct ifaddrmsg` and its attributes for the address of an interface.
fn address(index: u32, interface: &Interface) -> Vec<u8> {
    let prefix_length = u8::try_from(interface.prefix_length).unwrap_or(32);
    let own = Ipv4Addr::from(interface.address).octets();
    let head = [FAMILY_IPV4, prefix_length, 0, 0];
    // IFA_ADDRESS is the peer's address on a point-to-point link, and the same as IFA_LOCAL
    // otherwise (rtnetlink(7)).
    let parts: [&[u8]; 4] = [
        &head,
        &index.to_ne_bytes(),
        &attribute(libc::IFA_LOCAL, &own),
        &attribute(libc::IFA_ADDRESS, &own),
    ];
    parts.concat()
}

/// Returns `struct ifinfomsg` that brings an interface up, with an attribute for the MTU unless
/// that is zero.
fn link(index: u32, mtu: u32) -> Vec<u8> {
    let up = libc::IFF_UP.cast_unsigned().to_ne_bytes();
    let size = if mtu == 0 { Vec::new() } else { attribute(libc::IFLA_MTU, &mtu.to_ne_bytes()) };
    // `up` is passed twice: as the flags and as the mask of the flags that change.
    let parts: [&[u8]; 5] = [&[0; 4], &index.to_ne_bytes(), &up, &up, &size];
    parts.concat()
}

/// Returns `struct rtmsg` and its attributes for a default route by `gateway`.
fn default_route(index: u32, gateway: u32) -> Vec<u8> {
    let head = [
        FAMILY_IPV4,
        // A destination prefix of length zero covers all addresses. Source prefix and type of
        // service are unused.
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
        &attribute(libc::RTA_GATEWAY, &Ipv4Addr::from(gateway).octets()),
        &attribute(libc::RTA_OIF, &index.to_ne_bytes()),
    ];
    parts.concat()
}

/// Returns `struct rtattr` with a value, which has a multiple of four bytes. Its length includes the
/// header of 4 bytes.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // A value is at most an address of 16 bytes, so the conversion cannot fail.
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    let parts: [&[u8]; 3] = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value];
    parts.concat()
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs `test` on a thread in a new network namespace. It has only a loopback interface, which
    /// the tests configure as if it were a network device.
    fn in_network_namespace(test: impl FnOnce() + Send + 'static) {
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
            ipv6: None,
        }
    }

    /// Reads a file about the network namespace of this thread. `/proc/net` is the main thread's.
    fn read_proc_net(file: &str) -> String {
        std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap()
    }

    #[test]
    fn sets_the_address_and_route_and_names_the_step_that_failed() {
        in_network_namespace(|| {
            set_up(&interface("lo", [10, 0, 2, 2])).unwrap();
            assert!(
                read_proc_net("fib_trie").contains("10.0.2.15"),
                "{}",
                read_proc_net("fib_trie")
            );
            let routes = read_proc_net("route");
            // Destination and gateway as numbers in the byte order of the machine.
            assert!(routes.contains("\t00000000\t0202000A\t"), "{routes}");
            let again = set_up(&interface("lo", [0; 4])).unwrap_err();
            assert_eq!(again.to_string(), "cannot set the address of `lo`");
        });
    }

    #[test]
    fn brings_the_loopback_interface_up() {
        in_network_namespace(|| {
            assert!(!read_proc_net("fib_trie").contains("127.0.0.1"));
            set_loopback_up().unwrap();
            assert!(
                read_proc_net("fib_trie").contains("127.0.0.1"),
                "{}",
                read_proc_net("fib_trie")
            );
        });
    }

    #[test]
    fn reports_a_missing_interface_by_name() {
        let error = set_up(&interface("eth99", [0; 4])).unwrap_err();
        assert_eq!(error.to_string(), "cannot find the number of `eth99`");
    }
}
