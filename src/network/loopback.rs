//! The loopback interface of an empty network namespace, which is down when the namespace is made.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Size of a request: `struct nlmsghdr` and `struct ifinfomsg` (netlink(7), rtnetlink(7)).
const REQUEST_BYTES: u32 = 32;

/// Offset of the error number in an answer (`struct nlmsgerr`), which is behind `struct nlmsghdr`.
const ERROR_OFFSET: usize = 16;

/// Index of the loopback interface in every network namespace (`LOOPBACK_IFINDEX`, Linux).
const LOOPBACK_INDEX: i32 = 1;

/// Brings the loopback interface up.
pub(super) fn bring_up() -> io::Result<()> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    send(netlink.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut answer = [0; 128];
    let count = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let error = answer.get(..count).and_then(|answer| answer.get(ERROR_OFFSET..));
    // NLM_F_ACK asks for an answer in any case. It has error 0 on success, else a negative errno.
    match error.and_then(<[u8]>::first_chunk).map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(errno) => Err(Errno::from_raw(errno.saturating_neg()).into()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn request() -> Vec<u8> {
    let up = libc::IFF_UP.cast_unsigned();
    // The flags are 1 and 4 (linux/netlink.h), so the conversion cannot fail.
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
    let parts: [&[u8]; 8] = [
        &REQUEST_BYTES.to_ne_bytes(),
        &libc::RTM_NEWLINK.to_ne_bytes(),
        &flags.to_ne_bytes(),
        // Sequence number and port id are not needed to match the answer to a single request.
        &[0; 8],
        // Address family, padding and device type.
        &[0; 4],
        &LOOPBACK_INDEX.to_ne_bytes(),
        // `ifi_flags`, the new flags.
        &up.to_ne_bytes(),
        // `ifi_change`, the mask of the flags to change.
        &up.to_ne_bytes(),
    ];
    parts.concat()
}
