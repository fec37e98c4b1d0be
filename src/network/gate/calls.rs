//! The system calls that are left to the gate once everything that it needs is open. Any other call
//! kills the gate.
//!
//! The gate of a box with published ports holds sockets of the host's network. The filter keeps it
//! from giving such a socket another peer: no connect(2), no other call that connects (sendto(2)
//! with `MSG_FASTOPEN`), and no call that sends an fd to another process. The connector
//! (`connector.rs`) connects in its place. The gate of a box with names in its rules holds sockets
//! that are connected to name servers. The filter has no call that sends to another address
//! (sendto(2) with an address, sendmsg(2)).
//!
//! `tests/wire/network.rs` compares these lists with the calls that a gate makes, and gives a
//! reason for each call that it does not see.

use a3s_box_core::config::SeccompMode;
use libc::{
    SYS_accept4, SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_close, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_exit_group, SYS_fcntl, SYS_futex, SYS_ioctl, SYS_kill, SYS_mmap,
    SYS_mremap, SYS_munmap, SYS_recvfrom, SYS_recvmsg, SYS_restart_syscall, SYS_sendto,
    SYS_shutdown, SYS_sigaltstack, SYS_wait4, SYS_write,
};

use crate::host::seccomp::{Filter, equal, not_executable, own_clock, send_to_peer};

/// Calls by which glibc's allocator takes memory and gives it back.
const MEMORY: [i64; 3] = [SYS_brk, SYS_mremap, SYS_munmap];

/// Calls of tokio's event loop.
const EVENTS: [i64; 4] = [SYS_epoll_ctl, SYS_epoll_pwait, SYS_futex, SYS_restart_syscall];

/// Calls that carry frames and the bytes of connections, on sockets that are already open. Two more
/// have conditions: sendto(2) and shutdown(2).
const FRAMES: [i64; 2] = [SYS_close, SYS_recvfrom];

/// Calls of an exit: the report on standard error, and Rust's runtime, which removes its signal
/// stack.
const EXIT: [i64; 3] = [SYS_exit_group, SYS_sigaltstack, SYS_write];

/// Calls that read a clock, and wait for the exit of passt. They are allowed with clocks of the
/// system only, because the clock of another process tells that the process exists.
const CLOCKS: [i64; 2] = [SYS_clock_gettime, SYS_clock_nanosleep];

/// Calls that end passt. They are allowed with the process id of passt only.
const PASST_EXIT: [i64; 2] = [SYS_kill, SYS_wait4];

/// Calls that accept connections to published ports and receive sockets from the connector.
const CONNECTIONS: [i64; 2] = [SYS_accept4, SYS_recvmsg];

/// Old calls that glibc still makes on x86-64, in place of newer ones in the lists above. aarch64
/// does not have them.
#[cfg(target_arch = "x86_64")]
const OLD: [i64; 1] = [libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const OLD: [i64; 0] = [];

/// Installs the filter, which cannot be removed again.
///
/// `passt` is the process id of passt. `has_ports` adds the calls that serve published ports.
pub(super) fn restrict(
    mode: SeccompMode,
    passt: u32,
    has_ports: bool,
) -> Result<(), seccompiler::Error> {
    let mut filter = Filter::allowing(&[&MEMORY[..], &EVENTS, &FRAMES, &EXIT, &OLD].concat());
    filter.allow_if(SYS_mmap, vec![not_executable()?]);
    for call in CLOCKS {
        filter.allow_if(call, vec![own_clock()?]);
    }
    // Other processes of the host may run as `nobody` too, and the gate must not signal them.
    for call in PASST_EXIT {
        filter.allow_if(call, vec![equal(0, passt.into())?]);
    }
    if has_ports {
        CONNECTIONS.into_iter().for_each(|call| filter.allow(call));
    }
    // The flags exclude MSG_FASTOPEN, with which sendto(2) connects a TCP socket.
    filter.allow_if(SYS_sendto, vec![send_to_peer(libc::MSG_NOSIGNAL)?]);
    // SHUT_WR has no effect on a listener. SHUT_RD and SHUT_RDWR end one, and its socket could then
    // be connected.
    filter.allow_if(SYS_shutdown, vec![equal(1, libc::SHUT_WR.unsigned_abs().into())?]);
    filter.allow_if(SYS_ioctl, vec![equal(1, libc::FIONBIO)?]);
    // tokio asks whether a socket is non-blocking (F_GETFL). Rust's debug builds ask whether an fd
    // is open before they close it (F_GETFD).
    let commands =
        [libc::F_GETFL, libc::F_GETFD].map(|command| equal(1, command.unsigned_abs().into()));
    filter.allow_if(SYS_fcntl, commands.into_iter().collect::<Result<_, _>>()?);
    filter.install(mode)
}

#[cfg(test)]
mod tests;
