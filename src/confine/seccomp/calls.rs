//! The calls of the VMM whose arguments are free, each with the reason why they can be: what the
//! call cannot reach, or what else limits it. `super::filter` has the calls with conditions.
//!
//! The reasons rely on the other layers: the root, Landlock and the capabilities decide which files
//! a path or a new owner can name. An fd is harmless by itself, because the process has closed all
//! files that are not the box's.

use libc::{
    SYS_accept, SYS_accept4, SYS_bind, SYS_brk, SYS_capget, SYS_capset, SYS_clone3, SYS_close,
    SYS_connect, SYS_copy_file_range, SYS_dup, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait,
    SYS_eventfd2, SYS_exit, SYS_exit_group, SYS_fallocate, SYS_fchmod, SYS_fchmodat, SYS_fchownat,
    SYS_fdatasync, SYS_fgetxattr, SYS_flistxattr, SYS_fremovexattr, SYS_fsetxattr, SYS_fstat,
    SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_getcwd, SYS_getdents64, SYS_getegid,
    SYS_geteuid, SYS_getgid, SYS_getpeername, SYS_getpid, SYS_getppid, SYS_getrandom, SYS_gettid,
    SYS_getuid, SYS_lgetxattr, SYS_linkat, SYS_listen, SYS_llistxattr, SYS_lremovexattr, SYS_lseek,
    SYS_lsetxattr, SYS_madvise, SYS_mkdirat, SYS_mknodat, SYS_newfstatat, SYS_openat, SYS_ppoll,
    SYS_pread64, SYS_preadv, SYS_pwrite64, SYS_pwritev, SYS_read, SYS_readlinkat, SYS_readv,
    SYS_recvfrom, SYS_renameat, SYS_renameat2, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction,
    SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield, SYS_sendto,
    SYS_set_robust_list, SYS_setresgid, SYS_setresuid, SYS_shutdown, SYS_sigaltstack, SYS_statx,
    SYS_symlinkat, SYS_umask, SYS_unlinkat, SYS_utimensat, SYS_wait4, SYS_write, SYS_writev,
};

/// The number of a call, and the reason why its arguments are free.
pub(super) type Call = (i64, &'static str);

/// The lists of the calls that every box makes.
pub(super) const OF_EVERY_BOX: [&[Call]; 9] =
    [&MEMORY, &THREADS, &EVENTS, &DATA, &FILES, &SOCKETS, &SELF, &FAKE, &OLD];

/// Calls that manage memory: glibc's allocator, stacks of threads, and the guest's memory. None of
/// them can make memory executable or replace the pinned addresses of sockets. The calls that can
/// have conditions: mmap(2), mprotect(2), mremap(2) and munmap(2).
const MEMORY: [Call; 2] = [
    (SYS_brk, "the heap of this process"),
    (SYS_madvise, "memory of this process, whose content and place it keeps if it is shared"),
];

/// Calls that start, synchronise and end threads: libkrun's (one for each virtual CPU and device)
/// and tokio's. Two of them fail in the first filter. They are in this list because the kernel
/// applies the strictest result of all filters, and that would otherwise kill the process.
const THREADS: [Call; 14] = [
    (SYS_clone3, "the first filter makes it fail"),
    (SYS_exit, "ends this thread"),
    (SYS_exit_group, "ends this process"),
    (SYS_futex, "wakes only processes that share memory with this one"),
    (SYS_gettid, "no arguments"),
    (SYS_restart_syscall, "no arguments: and resumes a call that was allowed"),
    (SYS_rseq, "memory of this thread"),
    (SYS_rt_sigaction, "handlers of this process"),
    (SYS_rt_sigprocmask, "the mask of this thread"),
    (SYS_rt_sigreturn, "no arguments: and restores registers of this thread"),
    (SYS_sched_getaffinity, "the first filter makes it fail for all threads but the caller"),
    (SYS_sched_yield, "no arguments"),
    (SYS_set_robust_list, "memory of this thread"),
    (SYS_sigaltstack, "memory of this thread"),
];

/// Calls that wait for events and wake other threads: the event loops of libkrun and tokio.
const EVENTS: [Call; 5] = [
    (SYS_epoll_create1, "a new fd"),
    (SYS_epoll_ctl, "open fds, for which it only waits"),
    (SYS_epoll_pwait, "open fds, for which it only waits"),
    (SYS_eventfd2, "a new fd"),
    (SYS_ppoll, "open fds, for which it only waits"),
];

/// Calls that read and write open files: console, events, sockets, disks and the guest's files
/// (libkrun's `file_traits.rs`, and imago). `openat` has decided whether an fd can read or write.
const DATA: [Call; 11] = [
    (SYS_close, "fds of this process"),
    (SYS_dup, "fds of this process"),
    (SYS_lseek, "a position in an open file"),
    (SYS_pread64, "bytes of an open file"),
    (SYS_preadv, "bytes of an open file"),
    (SYS_pwrite64, "bytes of a file that is open for writing"),
    (SYS_pwritev, "bytes of a file that is open for writing"),
    (SYS_read, "bytes of an open file"),
    (SYS_readv, "bytes of an open file"),
    (SYS_write, "bytes of a file that is open for writing"),
    (SYS_writev, "bytes of a file that is open for writing"),
];

/// Calls on files by name or fd, for the disks of the guest, `exit.json`, the console file, the
/// event file and the process's own `/proc`.
const FILES: [Call; 13] = [
    (SYS_fallocate, "a file that is open for writing"),
    (SYS_fdatasync, "an open file, which it does not change"),
    (SYS_fstat, "the attributes of an open file"),
    (SYS_fstatfs, "the file system of an open file"),
    (SYS_fsync, "an open file, which it does not change"),
    (SYS_ftruncate, "a file that is open for writing"),
    (SYS_getdents64, "the names in an open directory"),
    (SYS_newfstatat, "attributes of files in the root"),
    (SYS_openat, "the root has only the box's files, which Landlock repeats"),
    (SYS_readlinkat, "symbolic links in the root, which are read and not followed"),
    (SYS_renameat, "Landlock keeps both names within the box's directory"),
    (SYS_statx, "attributes of files in the root"),
    (SYS_unlinkat, "Landlock allows it within the box's directory and writable shares"),
];

/// Further calls on files, which libkrun's virtio-fs server makes for the guest (`passthrough.rs`).
/// The guest names a file by its inode, or by a single component in a directory, and never by a
/// path. A box that shows its guest no directory of the host has no such server.
pub(super) const DIRECTORIES: [Call; 23] = [
    (SYS_capget, "a pid in memory, of which only the capabilities are told"),
    (SYS_capset, "capabilities of this thread, which it cannot gain"),
    (SYS_copy_file_range, "bytes of a file that is open for writing"),
    (SYS_fchmod, "the guest's files and those of the box"),
    (SYS_fchmodat, "the guest's files and those of the box"),
    (SYS_fchownat, "the guest's files and those of the box"),
    (SYS_fgetxattr, "an attribute of an open file"),
    (SYS_flistxattr, "the attributes of an open file"),
    (SYS_fremovexattr, "the guest's files and those of the box"),
    (SYS_fsetxattr, "the guest's files and those of the box"),
    (SYS_lgetxattr, "an attribute of a file in the root"),
    (SYS_linkat, "Landlock keeps both names within the box's directory or a share"),
    (SYS_llistxattr, "the attributes of a file in the root"),
    (SYS_lremovexattr, "the guest's files and those of the box"),
    (SYS_lsetxattr, "the guest's files and those of the box"),
    (SYS_mkdirat, "Landlock allows it within the box's directory and writable shares"),
    (SYS_mknodat, "a device requires CAP_MKNOD, and its mount is nodev"),
    (SYS_renameat2, "Landlock keeps both names within the box's directory or a share"),
    // The server acts as the user that made a request, so that new files get the right owner.
    (SYS_setresgid, "groups of this thread; another than its own requires CAP_SETGID"),
    (SYS_setresuid, "the user of this thread; another than its own requires CAP_SETUID"),
    (SYS_symlinkat, "its target is text, and the mounts with files of the guest are nosymfollow"),
    (SYS_umask, "the mode of new files of this process"),
    (SYS_utimensat, "times of the guest's files and those of the box"),
];

/// Calls on sockets: those of the control connection, of the agent and of the guest's ports
/// (libkrun's `vsock/unix.rs`), and datagrams to the journal and the service manager. The rules of
/// socket(2) decide which sockets there are.
const SOCKETS: [Call; 6] = [
    (SYS_accept, "a connection to an open socket"),
    (SYS_accept4, "a connection to an open socket"),
    (SYS_bind, "a name in the root, as `openat`"),
    (SYS_listen, "an open socket"),
    (SYS_recvfrom, "bytes of an open socket"),
    (SYS_shutdown, "an open socket"),
];

/// Calls for the network `tsi`, with which the shim makes the guest's own TCP and UDP sockets.
/// libkrun sends the address of the peer to the guest (`vsock/tsi_stream.rs`).
pub(super) const TSI: [Call; 2] = [
    (SYS_connect, "the guest chooses addresses; Landlock excludes abstract sockets"),
    (SYS_getpeername, "the address of an open socket"),
];

/// The call for datagrams with an address: those of the guest with `tsi`, and records for the journal.
pub(super) const SENDTO: [Call; 1] =
    [(SYS_sendto, "bytes to an open socket, or to a name in the root or in a share")];

/// Calls for the network `passt`: the control thread reads the exit status of the gate.
pub(super) const PASST: [Call; 1] = [(SYS_wait4, "children of this process: the gate")];

/// Calls by which the process reads its own state: user and process ids, random numbers for hash
/// tables, and the working directory for a panic's backtrace.
const SELF: [Call; 8] = [
    (SYS_getcwd, "the working directory of this process"),
    (SYS_getegid, "no arguments"),
    (SYS_geteuid, "no arguments"),
    (SYS_getgid, "no arguments"),
    (SYS_getpid, "no arguments"),
    (SYS_getppid, "no arguments"),
    (SYS_getrandom, "random bytes"),
    (SYS_getuid, "no arguments"),
];

/// Calls of the fake VM, which waits for the process that plays the guest.
#[cfg(feature = "fake-vm")]
const FAKE: [Call; 2] = [
    (SYS_wait4, "children of this process: the fake guest"),
    (libc::SYS_waitid, "children of this process: the fake guest"),
];
#[cfg(not(feature = "fake-vm"))]
const FAKE: [Call; 0] = [];

/// Old calls that glibc still makes on x86-64, in place of newer ones in the lists above. aarch64
/// does not have them.
#[cfg(target_arch = "x86_64")]
const OLD: [Call; 4] = [
    (libc::SYS_epoll_wait, "as `epoll_pwait`"),
    (libc::SYS_poll, "as `ppoll`"),
    (libc::SYS_readlink, "as `readlinkat`"),
    (libc::SYS_unlink, "as `unlinkat`"),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: [Call; 0] = [];
