//! Acts of an unpacker that a layer has taken over, for the tests of its confinement.
//!
//! Each writes a line to standard error: `act <name>: reached`, or `act <name>: errno:<n>`. An act that
//! seccomp stops ends the process without a line.

use std::ffi::CString;
use std::io;

/// An act with its argument, which is the path of a file or two of them, unless the act needs none. `Ok` means that
/// it succeeded, although the confinement should prevent it.
type Act = fn(&str) -> io::Result<()>;

/// The process that acts on other processes are made for.
const TARGET: i32 = 1;

/// The acts with the names by which the tests select them.
const ACTS: [(&str, Act); 58] = [
    ("read", |path| open(path, libc::O_RDONLY)),
    ("write", |path| open(path, libc::O_WRONLY)),
    ("create", |path| open(path, libc::O_WRONLY | libc::O_CREAT)),
    ("truncate", |path| open(path, libc::O_WRONLY | libc::O_TRUNC)),
    ("list", |path| open(path, libc::O_RDONLY | libc::O_DIRECTORY)),
    ("path-fd", |path| open(path, libc::O_PATH)),
    ("remove", |path| at(libc::SYS_unlinkat, path, [0, 0])),
    ("remove-directory", |path| at(libc::SYS_unlinkat, path, [libc::AT_REMOVEDIR.into(), 0])),
    ("make-directory", |path| at(libc::SYS_mkdirat, path, [0o700, 0])),
    ("chmod", |path| at(libc::SYS_fchmodat, path, [0o4755, 0])),
    ("chown", |path| at(libc::SYS_fchownat, path, [1, 1])),
    ("times", |path| at(libc::SYS_utimensat, path, [0, 0])),
    ("attribute", set_attribute),
    ("rename", |paths| two_paths(libc::SYS_renameat, paths)),
    ("link", |paths| two_paths(libc::SYS_linkat, paths)),
    ("follow-link", follow_link),
    ("dotdot", |path| open(&format!("../../../../../../../../..{path}"), libc::O_RDONLY)),
    ("fds-dotdot", |path| through_fds(&format!("../../../../../../../../..{path}"))),
    ("proc-root", |path| open(&format!("/proc/1/root{path}"), libc::O_RDONLY)),
    ("proc-memory", |_| open("/proc/1/mem", libc::O_RDWR)),
    ("own-root", |path| open(&format!("/proc/self/root{path}"), libc::O_RDONLY)),
    ("block-device", |path| device(path, libc::S_IFBLK)),
    ("character-device", |path| device(path, libc::S_IFCHR)),
    ("socket-file", |path| at(libc::SYS_mknodat, path, [i64::from(libc::S_IFSOCK | 0o600), 0])),
    ("udp-socket", |_| raw(libc::SYS_socket, [libc::AF_INET, libc::SOCK_DGRAM, 0, 0])),
    ("unix-socket", |_| raw(libc::SYS_socket, [libc::AF_UNIX, libc::SOCK_STREAM, 0, 0])),
    ("netlink-socket", |_| raw(libc::SYS_socket, [libc::AF_NETLINK, libc::SOCK_RAW, 0, 0])),
    ("signal", |_| raw(libc::SYS_kill, [TARGET, 0, 0, 0])),
    ("signal-thread", |_| raw(libc::SYS_tgkill, [TARGET, TARGET, 0, 0])),
    ("signal-queue", |_| raw(libc::SYS_tkill, [TARGET, 0, 0, 0])),
    ("ptrace", |_| raw(libc::SYS_ptrace, [libc::PTRACE_SEIZE.cast_signed(), TARGET, 0, 0])),
    ("memory", |_| raw(libc::SYS_process_vm_readv, [TARGET, 0, 0, 0])),
    ("limits", |_| raw(libc::SYS_prlimit64, [TARGET, 0, 0, 0])),
    ("priority", |_| raw(libc::SYS_getpriority, [0, TARGET, 0, 0])),
    ("pidfd", |_| raw(libc::SYS_pidfd_open, [TARGET, 0, 0, 0])),
    ("execve", |_| path_call(libc::SYS_execve, "/proc/self/exe")),
    ("fork", |_| raw(libc::SYS_clone, [libc::SIGCHLD, 0, 0, 0])),
    ("new-namespace", |_| raw(libc::SYS_unshare, [libc::CLONE_NEWNS, 0, 0, 0])),
    ("mount", |_| raw(libc::SYS_mount, [0, 0, 0, 0])),
    ("umount", |_| path_call(libc::SYS_umount2, "/")),
    ("fsopen", |_| raw(libc::SYS_fsopen, [0, 0, 0, 0])),
    ("open-tree", |_| raw(libc::SYS_open_tree, [libc::AT_FDCWD, 0, 0, 0])),
    ("chroot", |_| path_call(libc::SYS_chroot, "/")),
    ("setns", |_| raw(libc::SYS_setns, [0, 0, 0, 0])),
    ("handle", |_| raw(libc::SYS_open_by_handle_at, [libc::AT_FDCWD, 0, 0, 0])),
    ("setuid", |_| raw(libc::SYS_setuid, [0, 0, 0, 0])),
    ("io-uring", |_| raw(libc::SYS_io_uring_setup, [1, 0, 0, 0])),
    ("bpf", |_| raw(libc::SYS_bpf, [0, 0, 0, 0])),
    ("userfaultfd", |_| raw(libc::SYS_userfaultfd, [0, 0, 0, 0])),
    ("keyctl", |_| raw(libc::SYS_keyctl, [0, 0, 0, 0])),
    ("perf", |_| raw(libc::SYS_perf_event_open, [0, 0, 0, 0])),
    // The request TIOCSTI, which types into a terminal.
    ("ioctl", |_| raw(libc::SYS_ioctl, [0, 0x5412, 0, 0])),
    ("owner-of-fd", |_| raw(libc::SYS_fcntl, [0, libc::F_SETOWN, 1, 0])),
    ("unlock", |_| raw(libc::SYS_flock, [0, libc::LOCK_UN, 0, 0])),
    ("executable-memory", |_| executable_memory()),
    ("module", |_| raw(libc::SYS_finit_module, [0, 0, 0, 0])),
    ("clock", |_| raw(libc::SYS_clock_settime, [0, 0, 0, 0])),
    ("abort", |_| std::process::abort()),
];

/// Acts, and writes the outcome to standard error.
pub fn act(name: &str, argument: &str) {
    let Some((_, act)) = ACTS.iter().find(|(known, _)| *known == name) else {
        return write(&format!("act {name}: unknown\n"));
    };
    let outcome = match act(argument) {
        Ok(()) => "reached".to_owned(),
        Err(error) => format!("errno:{}", error.raw_os_error().unwrap_or_default()),
    };
    write(&format!("act {name}: {outcome}\n"));
}

/// Writes by one call, so that it takes only a call that is allowed.
fn write(line: &str) {
    // SAFETY: the pointer and the length are those of the text, which outlives the call.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

fn result(value: i64) -> io::Result<()> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn raw(call: i64, arguments: [i32; 4]) -> io::Result<()> {
    let [a, b, c, d] = arguments.map(i64::from);
    // SAFETY: the arguments are numbers and null pointers. The host kernel checks pointers and
    // returns EFAULT for bad ones, so no call accesses memory of this process.
    result(unsafe { libc::syscall(call, a, b, c, d, 0_i64, 0_i64) })
}

fn path_call(call: i64, path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: the path must end in NUL and outlive the call, which a local `CString` does. The
    // other arguments are numbers or null pointers.
    result(unsafe { libc::syscall(call, path.as_ptr(), 0_i64, 0_i64) })
}

/// Makes a call whose first two arguments are a directory and a path.
fn at(call: i64, path: &str, [a, b]: [i64; 2]) -> io::Result<()> {
    let path = CString::new(path)?;
    let directory = i64::from(libc::AT_FDCWD);
    // SAFETY: the path must end in NUL and outlive the call, which a local `CString` does. The
    // other arguments are numbers or null pointers.
    result(unsafe { libc::syscall(call, directory, path.as_ptr(), a, b, 0_i64) })
}

/// Makes a call with two paths, which a colon separates.
fn two_paths(call: i64, paths: &str) -> io::Result<()> {
    let (from, to) = paths.split_once(':').unwrap_or_default();
    let (from, to) = (CString::new(from)?, CString::new(to)?);
    let directory = i64::from(libc::AT_FDCWD);
    // SAFETY: the paths must end in NUL and outlive the call, which local `CString`s do. The other
    // arguments are numbers.
    result(unsafe { libc::syscall(call, directory, from.as_ptr(), directory, to.as_ptr(), 0_i64) })
}

fn open(path: &str, flags: i32) -> io::Result<()> {
    at(libc::SYS_openat, path, [i64::from(flags | libc::O_CLOEXEC), 0o600])
}

fn set_attribute(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: both texts end in NUL and outlive the call, and the value has the stated length of 1.
    result(unsafe {
        libc::syscall(
            libc::SYS_lsetxattr,
            path.as_ptr(),
            c"trusted.a3s-box.act".as_ptr(),
            c"1".as_ptr(),
            1_usize,
            0_i32,
        )
    })
}

/// Makes a symbolic link and opens the file through it. The argument is the link and its target.
fn follow_link(paths: &str) -> io::Result<()> {
    let (link, target) = paths.split_once(':').unwrap_or_default();
    let (path, target) = (CString::new(link)?, CString::new(target)?);
    // SAFETY: both paths must end in NUL and outlive the call, which local `CString`s do.
    result(unsafe {
        libc::syscall(libc::SYS_symlinkat, target.as_ptr(), libc::AT_FDCWD, path.as_ptr())
    })?;
    open(link, libc::O_RDONLY)
}

/// Opens the file from each open directory.
fn through_fds(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    let mut last = io::Error::from_raw_os_error(libc::ENOENT);
    for fd in 0..64 {
        // SAFETY: the path must end in NUL and outlive the call, which a local `CString` does. A
        // number that is no fd of a directory makes the call fail.
        match result(unsafe {
            libc::syscall(libc::SYS_openat, fd, path.as_ptr(), libc::O_RDONLY, 0)
        }) {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => last = error,
            Err(_) => {}
        }
    }
    Err(last)
}

/// Makes a device node of the numbers 1 and 0, which no driver has or only the memory of the host.
fn device(path: &str, kind: libc::mode_t) -> io::Result<()> {
    at(libc::SYS_mknodat, path, [i64::from(kind | 0o600), 1 << 8])
}

fn executable_memory() -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: without MAP_FIXED, a new anonymous mapping replaces no other one.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, flags, -1, 0) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}
