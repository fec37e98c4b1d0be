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

/// Up to what a flag says it is made, and must not be there.
const CREATE: u16 = 0x400 | 0x200;

/// The network cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} of `{name}`")]
pub(crate) struct NetworkError {
    action: &'static str,
    name: String,
    source: io::Error,
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
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .map_err(io::Error::from)
    .map_err(failed("ask for the settings"))?;
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
