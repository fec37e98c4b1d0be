//! Which system calls are left to the gate, once all that it needs is open. Any other one ends it.
//!
//! `tests/wire/network.rs` compares the lists with what a gate makes, and has a reason for each of the rest.

use a3s_box_core::config::SeccompMode;
use libc::{
    SYS_accept4, SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_close, SYS_connect,
    SYS_epoll_ctl, SYS_epoll_pwait, SYS_exit_group, SYS_fcntl, SYS_futex, SYS_getsockopt,
    SYS_ioctl, SYS_kill, SYS_mmap, SYS_mremap, SYS_munmap, SYS_recvfrom, SYS_restart_syscall,
    SYS_sendto, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_socket, SYS_wait4, SYS_write,
};

use crate::host::seccomp::{Filter, equal, not_executable};

/// Memory, as the allocator takes it and gives it back.
const MEMORY: [i64; 3] = [SYS_brk, SYS_mremap, SYS_munmap];

/// tokio's event loop.
const EVENTS: [i64; 5] =
    [SYS_clock_gettime, SYS_epoll_ctl, SYS_epoll_pwait, SYS_futex, SYS_restart_syscall];

/// Frames, on sockets that are open.
const FRAMES: [i64; 4] = [SYS_close, SYS_recvfrom, SYS_sendto, SYS_shutdown];

/// The end, with words about it.
const END: [i64; 4] = [SYS_clock_nanosleep, SYS_exit_group, SYS_sigaltstack, SYS_write];

/// The end of passt.
const PASSTS_END: [i64; 2] = [SYS_kill, SYS_wait4];

/// Published ports, which are open: their connections, and those into the empty network.
const CONNECTIONS: [i64; 4] = [SYS_accept4, SYS_connect, SYS_getsockopt, SYS_setsockopt];

/// What only x86-64 has, for newer calls in the lists above.
#[cfg(target_arch = "x86_64")]
const OLD: [i64; 1] = [libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const OLD: [i64; 0] = [];

/// Takes the filter on, with no way back.
pub(super) fn restrict(
    mode: SeccompMode,
    passt: u32,
    has_ports: bool,
) -> Result<(), seccompiler::Error> {
    let mut filter = Filter::allowing(&[&MEMORY[..], &EVENTS, &FRAMES, &END, &OLD].concat());
    filter.allow_if(SYS_mmap, vec![not_executable()?]);
    // Of all that are nobody's processes, this one only.
    for call in PASSTS_END {
        filter.allow_if(call, vec![equal(0, passt.into())?]);
    }
    if has_ports {
        CONNECTIONS.into_iter().for_each(|call| filter.allow(call));
        filter.allow_if(SYS_socket, vec![equal(0, u64::from(libc::AF_INET.unsigned_abs()))?]);
    }
    filter.allow_if(SYS_ioctl, vec![equal(1, libc::FIONBIO)?]);
    // tokio looks whether a socket blocks; Rust, in debug builds, whether one that is closed is open.
    let questions = [libc::F_GETFL, libc::F_GETFD].map(|word| equal(1, word.unsigned_abs().into()));
    filter.allow_if(SYS_fcntl, questions.into_iter().collect::<Result<_, _>>()?);
    filter.install(mode)
}
