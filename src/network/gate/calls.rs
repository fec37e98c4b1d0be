//! The system calls that are left to the gate once everything that it needs is open. Any other call
//! kills the gate.
//!
//! `tests/wire/network.rs` compares these lists with the calls that a gate makes, and gives a
//! reason for each call that it does not see.

use a3s_box_core::config::SeccompMode;
use libc::{
    SYS_accept4, SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_close, SYS_connect,
    SYS_epoll_ctl, SYS_epoll_pwait, SYS_exit_group, SYS_fcntl, SYS_futex, SYS_getsockopt,
    SYS_ioctl, SYS_kill, SYS_mmap, SYS_mremap, SYS_munmap, SYS_recvfrom, SYS_restart_syscall,
    SYS_sendto, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_socket, SYS_wait4, SYS_write,
};

use crate::host::seccomp::{Filter, equal, not_executable};

/// Calls by which glibc's allocator takes memory and gives it back.
const MEMORY: [i64; 3] = [SYS_brk, SYS_mremap, SYS_munmap];

/// Calls of tokio's event loop.
const EVENTS: [i64; 5] =
    [SYS_clock_gettime, SYS_epoll_ctl, SYS_epoll_pwait, SYS_futex, SYS_restart_syscall];

/// Calls that carry frames, on sockets that are already open.
const FRAMES: [i64; 4] = [SYS_close, SYS_recvfrom, SYS_sendto, SYS_shutdown];

/// Calls of an exit: the wait for passt, the report on standard error, and Rust's runtime, which
/// removes its signal stack.
const EXIT: [i64; 4] = [SYS_clock_nanosleep, SYS_exit_group, SYS_sigaltstack, SYS_write];

/// Calls that end passt. They are allowed with the process id of passt only.
const PASST_EXIT: [i64; 2] = [SYS_kill, SYS_wait4];

/// Calls that accept connections to published ports and connect to the empty network.
const CONNECTIONS: [i64; 4] = [SYS_accept4, SYS_connect, SYS_getsockopt, SYS_setsockopt];

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
    // Other processes of the host may run as `nobody` too, and the gate must not signal them.
    for call in PASST_EXIT {
        filter.allow_if(call, vec![equal(0, passt.into())?]);
    }
    if has_ports {
        CONNECTIONS.into_iter().for_each(|call| filter.allow(call));
        filter.allow_if(SYS_socket, vec![equal(0, u64::from(libc::AF_INET.unsigned_abs()))?]);
    }
    filter.allow_if(SYS_ioctl, vec![equal(1, libc::FIONBIO)?]);
    // tokio asks whether a socket is non-blocking (F_GETFL). Rust's debug builds ask whether an fd
    // is open before they close it (F_GETFD).
    let commands =
        [libc::F_GETFL, libc::F_GETFD].map(|command| equal(1, command.unsigned_abs().into()));
    filter.allow_if(SYS_fcntl, commands.into_iter().collect::<Result<_, _>>()?);
    filter.install(mode)
}
