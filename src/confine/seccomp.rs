//! The seccomp layer: the system calls that are left to the VMM. Any other call kills the process.
//!
//! `tests/vm/calls.rs` compares these lists with the calls that real boxes make, and gives a reason
//! for each call that it does not see.
//!
//! The filter is installed while there is only one thread, so that all threads inherit it. It must
//! allow what libkrun does long after the guest has started: libkrun starts threads and opens files
//! when the guest activates a device (libkrun 1.19.7).

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

use super::extent::Extent;
use crate::host::seccomp::{Filter, bits, equal, hide_clone3, not_executable};
use crate::spec::NetworkSpec;

/// Calls that manage memory: glibc's allocator, stacks of threads, and the guest's memory. None of
/// them can make memory executable; mmap(2) and mprotect(2), which can, are allowed below with a
/// condition.
const MEMORY: [i64; 4] = [SYS_brk, SYS_madvise, SYS_mremap, SYS_munmap];

/// Calls that start, synchronise and end threads: libkrun's (one for each virtual CPU and device)
/// and tokio's. glibc tries clone3(2) first, which `hide_clone3` makes fail. It is in this list
/// because the kernel applies the strictest result of all filters, and that would otherwise kill
/// the process.
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

/// Calls that wait for events and wake other threads: the event loops of libkrun and tokio, and
/// timers. `clock_gettime` is a system call only where the vDSO cannot read the clock.
const EVENTS: [i64; 7] = [
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_ppoll,
];

/// Calls that read and write open files: console, events, sockets, and the guest's files (libkrun's
/// `file_traits.rs`).
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

/// Calls on files by name or fd.
///
/// libkrun's virtio-fs server makes most of them for the guest (`passthrough.rs`). The guest names
/// a file by its inode, or by a single component in a directory, and never by a path. The shim
/// makes some of the calls in the box's own directory: for `exit.json`, the console file and the
/// event file.
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
    // The server acts as the user that made a request, so that new files get the right owner.
    SYS_capget,
    SYS_capset,
    SYS_setresgid,
    SYS_setresuid,
];

/// Calls on sockets: those of the control connection and of the agent (libkrun's `vsock/unix.rs`),
/// and the journal's.
const SOCKETS: [i64; 11] = [
    SYS_accept,
    SYS_accept4,
    SYS_bind,
    SYS_connect,
    SYS_getsockopt,
    SYS_listen,
    // A log record that is too long for a datagram is sent as a file in memory (`tracing-journald`
    // 0.3.2).
    SYS_memfd_create,
    SYS_recvfrom,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
];

/// Calls by which the process reads its own state: user and process ids, limits, random numbers for
/// hash tables, and the working directory for a panic's backtrace.
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

/// Calls of the fake VM, which waits for the process that plays the guest.
#[cfg(feature = "fake-vm")]
const FAKE: [i64; 2] = [libc::SYS_wait4, libc::SYS_waitid];
#[cfg(not(feature = "fake-vm"))]
const FAKE: [i64; 0] = [];

/// Old calls that glibc still makes on x86-64, in place of newer ones in the lists above. aarch64
/// does not have them.
#[cfg(target_arch = "x86_64")]
const OLD: [i64; 4] = [libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_readlink, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD: [i64; 0] = [];

/// Installs the filter, which cannot be removed again.
pub(super) fn install(
    mode: SeccompMode,
    network: &NetworkSpec,
) -> Result<Extent, seccompiler::Error> {
    let filter = filter(network)?;
    // The order is fixed: the second filter does not allow the call that installs another one.
    hide_clone3()?;
    filter.install(mode)?;
    Ok(match mode {
        SeccompMode::Enforce => Extent::Full,
        SeccompMode::Log => Extent::Partial("calls are logged, not refused"),
    })
}

fn filter(network: &NetworkSpec) -> Result<Filter, seccompiler::BackendError> {
    let lists: [&[i64]; 9] =
        [&MEMORY, &THREADS, &EVENTS, &DATA, &FILES, &SOCKETS, &SELF, &FAKE, &OLD];
    let mut filter = Filter::allowing(&lists.concat());
    filter.allow_if(SYS_mmap, vec![not_executable()?]);
    filter.allow_if(SYS_mprotect, vec![not_executable()?]);
    // CLONE_THREAD allows threads and excludes processes. It also excludes most namespaces, because
    // the kernel refuses to make them for a thread.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    filter.allow_if(SYS_clone, vec![bits(0, thread, thread)?]);
    // Only Unix sockets are allowed. That excludes netlink, which configures networks. With TSI,
    // the shim also makes the guest's own TCP and UDP sockets.
    let unix = u64::from(libc::AF_UNIX.unsigned_abs());
    let mut sockets = vec![equal(0, unix)?];
    if *network == NetworkSpec::Tsi {
        for family in [libc::AF_INET, libc::AF_INET6] {
            sockets.push(equal(0, u64::from(family.unsigned_abs()))?);
        }
        // libkrun sends the address of the peer to the guest (`vsock/tsi_stream.rs`).
        filter.allow(libc::SYS_getpeername);
    }
    filter.allow_if(SYS_socket, sockets);
    if matches!(network, NetworkSpec::Passt(_)) {
        // The gate is a child process, whose exit status the control thread reads.
        filter.allow(libc::SYS_wait4);
    }
    // tokio's runtime makes a socket pair if a crate of the same build enables its feature
    // `signal`.
    filter.allow_if(SYS_socketpair, vec![equal(0, unix)?]);
    filter.allow(SYS_shutdown);
    // All requests of KVM have the type 0xAE (`KVMIO`). TCGETS asks whether an fd is a terminal,
    // and FIONBIO makes a socket non-blocking.
    filter.allow_if(
        SYS_ioctl,
        vec![bits(1, 0xff00, 0xae00)?, equal(1, libc::TCGETS)?, equal(1, libc::FIONBIO)?],
    );
    // libkrun interrupts a virtual CPU by a signal to its thread. Signals to other processes are
    // excluded.
    let own = u64::from(std::process::id());
    filter.allow_if(SYS_tgkill, vec![equal(0, own)?]);
    // The options read and set names of threads and of memory, and test for a capability.
    let options = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_CAPBSET_READ, libc::PR_SET_VMA];
    let options = options.into_iter().map(|option| equal(0, u64::from(option.unsigned_abs())));
    filter.allow_if(SYS_prctl, options.collect::<Result<_, _>>()?);
    Ok(filter)
}
