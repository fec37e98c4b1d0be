//! The loopback interface of an empty network, which is down at first.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// A header (`struct nlmsghdr`) with a `struct ifinfomsg` (netlink(7), rtnetlink(7)).
const MESSAGE_BYTES: u32 = 32;

/// Where an answer has its errno: behind its header.
const ERROR_AT: usize = 16;

/// Every network's first interface (`LOOPBACK_IFINDEX`, Linux).
const LOOPBACK_INDEX: i32 = 1;

/// Brings it up.
pub(super) fn set_up() -> io::Result<()> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    send(kernel.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut answer = [0; 128];
    let count = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let errno = answer.get(..count).and_then(|answer| answer.get(ERROR_AT..));
    match errno.and_then(<[u8]>::first_chunk).map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(errno) => Err(Errno::from_raw(errno.saturating_neg()).into()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn request() -> Vec<u8> {
    let up = libc::IFF_UP.cast_unsigned();
    // Two small numbers (netlink.h): 1 and 4.
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
    let parts: [&[u8]; 8] = [
        &MESSAGE_BYTES.to_ne_bytes(),
        &libc::RTM_NEWLINK.to_ne_bytes(),
        &flags.to_ne_bytes(),
        // Sequence and port: there is one request.
        &[0; 8],
        // Family, padding, type.
        &[0; 4],
        &LOOPBACK_INDEX.to_ne_bytes(),
        &up.to_ne_bytes(),
        // Which flags change.
        &up.to_ne_bytes(),
    ];
    parts.concat()
}
