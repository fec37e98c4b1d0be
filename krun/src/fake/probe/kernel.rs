//! Attempts by parts of the host kernel that no box needs: other processes by newer calls, devices,
//! settings of the host, and the memory of this process as a program.

use std::io;
use std::os::unix::net::UnixStream;

use a3s_box_sys::pinned_addresses;

use super::calls::{Attempt, at_call, open, parent, path_call, raw, result};
use super::places::{control_socket, existing_file, in_share};

/// The attempts with their names.
pub(super) const ATTEMPTS: [(&str, Attempt); 56] = [
    ("memory-of-self", || open("/proc/self/mem", libc::O_RDWR)),
    ("oom-score", || open("/proc/self/oom_score_adj", libc::O_WRONLY)),
    ("identity-map", || open("/proc/self/uid_map", libc::O_WRONLY)),
    ("security-label", || open("/proc/self/attr/current", libc::O_WRONLY)),
    ("open-tun", || open("/dev/net/tun", libc::O_RDWR)),
    ("open-vhost", || open("/dev/vhost-net", libc::O_RDWR)),
    ("sysrq", || open("/proc/sysrq-trigger", libc::O_WRONLY)),
    ("kernel-memory", || open("/proc/kcore", libc::O_RDONLY)),
    ("execute-own-file", || at_call(libc::SYS_execveat, &existing_file()?, [0, 0])),
    // No byte is mapped, so the calls succeed without an effect.
    ("protect-executable", || raw(libc::SYS_mprotect, [0, 0, libc::PROT_EXEC.into(), 0, 0])),
    ("protect-by-key", || raw(libc::SYS_pkey_mprotect, [0, 0, libc::PROT_EXEC.into(), -1, 0])),
    // The value asks for the current personality. Another one makes all memory executable.
    ("personality", || raw(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0])),
    ("shared-segment", || raw(libc::SYS_shmget, [0, 4096, 0o600, 0, 0])),
    ("message-queue", || path_call(libc::SYS_mq_open, "a3s-box-probe", 0)),
    ("copy-fd-of-parent", || raw(libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0])),
    ("signal-by-handle", || raw(libc::SYS_pidfd_send_signal, [0, 0, 0, 0, 0])),
    ("advise-parent", || raw(libc::SYS_process_madvise, [0; 5])),
    ("write-memory-of-parent", || raw(libc::SYS_process_vm_writev, [parent(), 0, 0, 0, 0])),
    ("compare-with-parent", || raw(libc::SYS_kcmp, [parent(), parent(), 1, 0, 0])),
    ("move-memory-of-parent", || raw(libc::SYS_move_pages, [parent(), 0, 0, 0, 0])),
    ("robust-list-of-parent", || raw(libc::SYS_get_robust_list, [parent(), 0, 0, 0, 0])),
    ("queue-signal", || raw(libc::SYS_rt_sigqueueinfo, [parent(), 0, 0, 0, 0])),
    ("timer-signal", || raw(libc::SYS_timer_create, [0; 5])),
    ("scheduler-of-parent", || raw(libc::SYS_sched_getscheduler, [parent(), 0, 0, 0, 0])),
    ("priority-of-parent", || raw(libc::SYS_setpriority, [0, parent(), 0, 0, 0])),
    ("io-priority-of-parent", || raw(libc::SYS_ioprio_get, [1, parent(), 0, 0, 0])),
    ("name-to-handle", || at_call(libc::SYS_name_to_handle_at, "/", [0, 0])),
    ("watch-mount", || raw(libc::SYS_fanotify_init, [0; 5])),
    ("watch-share", || raw(libc::SYS_inotify_init1, [0; 5])),
    ("quota", || raw(libc::SYS_quotactl, [0; 5])),
    ("swap", || path_call(libc::SYS_swapon, "/a3s-box-probe", 0)),
    ("accounting", || path_call(libc::SYS_acct, "/a3s-box-probe", 0)),
    ("kexec", || raw(libc::SYS_kexec_load, [0, 1, 0, 0, 0])),
    ("kernel-module", || raw(libc::SYS_finit_module, [-1, 0, 0, 0, 0])),
    // Asks for the size of the log of the host kernel.
    ("kernel-log", || raw(libc::SYS_syslog, [10, 0, 0, 0, 0])),
    ("set-clock", || raw(libc::SYS_clock_settime, [0; 5])),
    ("host-name", || raw(libc::SYS_sethostname, [0, -1, 0, 0, 0])),
    ("terminal-input", || raw(libc::SYS_ioctl, [0, TIOCSTI, 0, 0, 0])),
    // The size is that of a new pipe. A smaller one could hold up whoever writes to it.
    ("pipe-size", || raw(libc::SYS_fcntl, [1, libc::F_SETPIPE_SZ.into(), 65_536, 0, 0])),
    ("seccomp-listener", || raw(libc::SYS_seccomp, [1, NEW_LISTENER, 0, 0, 0])),
    ("mount-attributes", || raw(libc::SYS_mount_setattr, [-1, 0, 0, 0, 0])),
    ("move-mount", || raw(libc::SYS_move_mount, [-1, 0, -1, 0, 0])),
    ("splice", || raw(libc::SYS_splice, [-1, 0, -1, 0, 1])),
    ("vsock-host", || raw(libc::SYS_socket, [libc::AF_VSOCK.into(), 1, 0, 0, 0])),
    ("crypto-socket", || raw(libc::SYS_socket, [libc::AF_ALG.into(), 5, 0, 0, 0])),
    ("packet-socket", || raw(libc::SYS_socket, [libc::AF_PACKET.into(), 3, 0, 0, 0])),
    ("rename-into-share", || std::fs::rename(existing_file()?, in_share(true, "probe")?)),
    ("limit-raise", raise_limit),
    ("share-socket", || UnixStream::connect(in_share(true, "socket")?).map(drop)),
    ("share-socket-in-place", connect_in_place),
    ("pinned-writable", || raw(libc::SYS_mprotect, [PINNED, PAGE_BYTES, 3, 0, 0])),
    ("pinned-unmap", || raw(libc::SYS_munmap, [PINNED, PAGE_BYTES, 0, 0, 0])),
    ("pinned-unmap-below", || {
        raw(libc::SYS_munmap, [PINNED - PAGE_BYTES, 2 * PAGE_BYTES, 0, 0, 0])
    }),
    ("pinned-move", || raw(libc::SYS_mremap, [1 << 30, PAGE_BYTES, PAGE_BYTES, 3, PINNED])),
    ("send-to-name", || raw(libc::SYS_sendto, [1, 0, 0, 0, PINNED])),
    ("capabilities-of-parent", capabilities_of_parent),
];

/// `TIOCSTI` of `asm-generic/ioctls.h`, which puts a character into the input of a terminal.
const TIOCSTI: i64 = 0x5412;

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` of `linux/seccomp.h`.
const NEW_LISTENER: i64 = 8;

/// Place and size of the memory with the addresses to which a confined VMM may connect.
const PINNED: i64 = 0x10_0000;
const PAGE_BYTES: i64 = 4096;
const _: () = assert!(pinned_addresses::PAGE == 0x10_0000);

/// Puts the address of a socket in a share into the place from which the VMM may connect. More
/// slashes give it the length of the address there.
fn connect_in_place() -> io::Result<()> {
    let path = in_share(true, "socket")?;
    let path = format!("{path:/>width$}", width = control_socket()?.len());
    let bytes = [&1_u16.to_ne_bytes(), path.as_bytes(), b"\0"].concat();
    let place = std::ptr::without_provenance_mut::<u8>(pinned_addresses::PAGE);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: only the addresses of sockets are in this place, and nothing refers to them.
    let mapped = unsafe { libc::mmap(place.cast(), 4096, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is new, writable, and larger than any path of a socket.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), mapped.cast(), bytes.len()) };
    // SAFETY: the arguments are numbers.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
    let (socket, length) = (i64::from(socket), bytes.len());
    // SAFETY: the host kernel reads `length` bytes at the pointer, which are in the mapping.
    result(unsafe { libc::syscall(libc::SYS_connect, socket, mapped, length) })
}

/// Removes the bound on the memory of this process.
fn raise_limit() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the host kernel reads a `rlimit` at the pointer, which refers to a local one.
    result(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0_i64,
            i64::from(libc::RLIMIT_DATA),
            &raw const limit,
            0_i64,
        )
    })
}

/// Reads the capabilities of another process. libkrun's virtio-fs server needs the call, whose
/// process is in memory, where a filter cannot see it.
fn capabilities_of_parent() -> io::Result<()> {
    // `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`.
    const VERSION: i32 = 0x2008_0522;
    let pid = i32::try_from(parent()).map_err(io::Error::other)?;
    let mut header = [VERSION, pid];
    let mut sets = [0_u32; 6];
    // SAFETY: the host kernel reads and writes 8 bytes at the first pointer, and writes 24 bytes to
    // the second one (`cap_user_header_t`, `cap_user_data_t`), which are the sizes of the arrays.
    result(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) })
}
