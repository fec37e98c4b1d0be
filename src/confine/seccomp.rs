//! Which system calls are left. Any other one ends the process.
//!
//! `tests/vm/calls.rs` compares the lists with what real boxes make, and has a reason for each of the rest.
//!
//! The filter is taken on before any thread exists, so it is every thread's: libkrun starts threads and
//! opens files long after the guest runs (libkrun 1.19.7: devices are activated by the guest).

use a3s_box_core::config::SeccompMode;
use libc::{
    SYS_accept, SYS_accept4, SYS_bind, SYS_brk, SYS_capget, SYS_capset, SYS_clock_gettime,
    SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close, SYS_connect, SYS_copy_file_range,
    SYS_dup, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_eventfd2, SYS_exit,
    SYS_exit_group, SYS_fallocate, SYS_fchmod, SYS_fchmodat, SYS_fchownat, SYS_fcntl,
    SYS_fdatasync, SYS_fgetxattr, SYS_flistxattr, SYS_flock, SYS_fremovexattr, SYS_fsetxattr,
    SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_getcwd, SYS_getdents64,
    SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getpid, SYS_getppid, SYS_getrandom, SYS_getsockopt,
    SYS_gettid, SYS_getuid, SYS_ioctl, SYS_lgetxattr, SYS_linkat, SYS_listen, SYS_llistxattr,
    SYS_lremovexattr, SYS_lseek, SYS_lsetxattr, SYS_madvise, SYS_memfd_create, SYS_mkdirat,
    SYS_mknodat, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_newfstatat, SYS_openat,
    SYS_ppoll, SYS_prctl, SYS_pread64, SYS_preadv, SYS_prlimit64, SYS_pwrite64, SYS_pwritev,
    SYS_read, SYS_readlinkat, SYS_readv, SYS_recvfrom, SYS_renameat, SYS_renameat2,
    SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_sched_getaffinity, SYS_sched_yield, SYS_sendmsg, SYS_sendto, SYS_set_robust_list,
    SYS_setresgid, SYS_setresuid, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_socket,
    SYS_socketpair, SYS_statx, SYS_symlinkat, SYS_tgkill, SYS_umask, SYS_unlinkat, SYS_utimensat,
    SYS_write, SYS_writev,
};

use super::held::Held;
use crate::host::seccomp::{Filter, bits, equal, hide_clone3, not_executable};
use crate::spec::NetworkSpec;

/// Memory: the allocator, stacks of threads, the guest's memory. None of it is ever executable.
const MEMORY: [i64; 4] = [SYS_brk, SYS_madvise, SYS_mremap, SYS_munmap];

/// Threads: libkrun's (one for each CPU and device), tokio's, and what glibc does when they begin and end.
/// glibc asks for clone3 first, which the filter before this one refuses.
const THREADS: [i64; 14] = [
    SYS_clone3,
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_gettid,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
];

/// Waiting, and telling others: event loops of libkrun and tokio, timers, the clock where the vDSO
/// has none.
const EVENTS: [i64; 7] = [
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_ppoll,
];

/// Reading and writing what is open: console, events, sockets, the guest's files (libkrun's `file_traits.rs`).
const DATA: [i64; 13] = [
    SYS_close,
    SYS_copy_file_range,
    SYS_dup,
    SYS_fcntl,
    SYS_lseek,
    SYS_pread64,
    SYS_preadv,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_read,
    SYS_readv,
    SYS_write,
    SYS_writev,
];

/// The guest's files, through libkrun's virtio-fs server (`passthrough.rs`, which changes none by a path of the
/// guest's); and the box's own directory: `exit.json`, the console, the event file.
const FILES: [i64; 36] = [
    SYS_fallocate,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchownat,
    SYS_fdatasync,
    SYS_fgetxattr,
    SYS_flistxattr,
    SYS_flock,
    SYS_fremovexattr,
    SYS_fsetxattr,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    SYS_getdents64,
    SYS_lgetxattr,
    SYS_linkat,
    SYS_llistxattr,
    SYS_lremovexattr,
    SYS_lsetxattr,
    SYS_mkdirat,
    SYS_mknodat,
    SYS_newfstatat,
    SYS_openat,
    SYS_readlinkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_statx,
    SYS_symlinkat,
    SYS_umask,
    SYS_unlinkat,
    SYS_utimensat,
    // The server acts as the owner of each request.
    SYS_capget,
    SYS_capset,
    SYS_setresgid,
    SYS_setresuid,
];

/// Sockets that are open, or are made for the control stream, the agent (libkrun's `vsock/unix.rs`) and the
/// journal.
const SOCKETS: [i64; 11] = [
    SYS_accept,
    SYS_accept4,
    SYS_bind,
    SYS_connect,
    SYS_getsockopt,
    SYS_listen,
    // A record that is too long for a datagram goes to the journal as a file (`tracing-journald` 0.3.2).
    SYS_memfd_create,
    SYS_recvfrom,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
];

/// What the process asks about itself: identity, limits, randomness for hash tables, and where it is for
/// a panic's backtrace.
const SELF: [i64; 9] = [
    SYS_getcwd,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getpid,
    SYS_getppid,
    SYS_getrandom,
    SYS_getuid,
    SYS_prlimit64,
];

/// The fake VM waits for the process that plays its guest.
#[cfg(feature = "fake-vm")]
const FAKE: [i64; 2] = [libc::SYS_wait4, libc::SYS_waitid];
#[cfg(not(feature = "fake-vm"))]
const FAKE: [i64; 0] = [];

/// What only x86-64 has, for newer calls in the lists above, and glibc still uses.
#[cfg(target_arch = "x86_64")]
const OLD: [i64; 4] = [libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_readlink, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD: [i64; 0] = [];

/// Takes the filter on, with no way back.
pub(super) fn install(
    mode: SeccompMode,
    network: &NetworkSpec,
) -> Result<Held, seccompiler::Error> {
    let filter = filter(network)?;
    // The last one allows no further filter.
    hide_clone3()?;
    filter.install(mode)?;
    Ok(match mode {
        SeccompMode::Enforce => Held::Whole,
        SeccompMode::Log => Held::Part("calls are logged, not refused"),
    })
}

fn filter(network: &NetworkSpec) -> Result<Filter, seccompiler::BackendError> {
    let lists: [&[i64]; 9] =
        [&MEMORY, &THREADS, &EVENTS, &DATA, &FILES, &SOCKETS, &SELF, &FAKE, &OLD];
    let mut filter = Filter::allowing(&lists.concat());
    filter.allow_if(SYS_mmap, vec![not_executable()?]);
    filter.allow_if(SYS_mprotect, vec![not_executable()?]);
    // A thread, and no process; no namespace either.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    filter.allow_if(SYS_clone, vec![bits(0, thread, thread)?]);
    // Unix sockets: not even netlink, which configures a network. With TSI the guest's sockets, too.
    let unix = u64::from(libc::AF_UNIX.unsigned_abs());
    let mut sockets = vec![equal(0, unix)?];
    if *network == NetworkSpec::Tsi {
        for family in [libc::AF_INET, libc::AF_INET6] {
            sockets.push(equal(0, u64::from(family.unsigned_abs()))?);
        }
        // libkrun tells the guest who is at the other end (`vsock/tsi_stream.rs`).
        filter.allow(libc::SYS_getpeername);
    }
    filter.allow_if(SYS_socket, sockets);
    if matches!(network, NetworkSpec::Passt(_)) {
        // The gate is a child, whose end is looked for.
        filter.allow(libc::SYS_wait4);
    }
    // tokio's runtime makes a pair where another crate of the same build asks for its feature `signal`.
    filter.allow_if(SYS_socketpair, vec![equal(0, unix)?]);
    filter.allow(SYS_shutdown);
    // KVM's requests are those of type 0xAE; the other is a file's question whether it is a terminal.
    filter.allow_if(
        SYS_ioctl,
        vec![bits(1, 0xff00, 0xae00)?, equal(1, libc::TCGETS)?, equal(1, libc::FIONBIO)?],
    );
    // Signals to threads of this process: libkrun interrupts its CPUs.
    let own = u64::from(std::process::id());
    filter.allow_if(SYS_tgkill, vec![equal(0, own)?]);
    let pr_set_vma = 0x5356_4d41;
    let options = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_CAPBSET_READ, pr_set_vma];
    let options = options.into_iter().map(|option| equal(0, u64::from(option.unsigned_abs())));
    filter.allow_if(SYS_prctl, options.collect::<Result<_, _>>()?);
    Ok(filter)
}
