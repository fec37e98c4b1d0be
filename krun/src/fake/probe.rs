//! Attempts to break out of a confined VMM, for the tests of the confinement.
//!
//! A guest that takes over the VMM runs its code in a process that has confined itself. This module
//! runs in the same state. Each process makes one attempt, writes a line to fd 1 (the log), and
//! exits:
//!
//! | line | meaning |
//! |---|---|
//! | `probe reached` | the attempt succeeded, although the confinement should prevent it |
//! | `probe errno:<n>` | the attempt failed with this errno |
//! | `probe known:<names>` | there is no attempt of this name; the names of all attempts |
//! | no line | the attempt ended the process, which seccomp does |
//!
//! Some calls are attempts only in a box that shows its guest no directory of the host
//! ([`CHANGES`]).

mod calls;
mod kernel;
mod places;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use self::calls::{Attempt, at_call, open, open_at, parent, path_call, raw, result};
use self::places::{existing_file, in_share, listener, own_directory, own_file};

/// A file that every host has and that the tests share with no box.
const HOST_FILE: &str = "/etc/passwd";

/// The attempts with the names by which the tests select them. [`kernel`] has further ones.
const ATTEMPTS: [(&str, Attempt); 82] = [
    ("open-read", || open(HOST_FILE, libc::O_RDONLY)),
    ("open-write", || open("/etc/a3s-box-probe", libc::O_WRONLY | libc::O_CREAT)),
    ("open-path", read_through_path_fd),
    ("open-dotdot", || open("/proc/self/../../etc/passwd", libc::O_RDONLY)),
    ("open-cwd", || open("../../../../../../../etc/passwd", libc::O_RDONLY)),
    ("open-proc-root", || open("/proc/self/root/etc/passwd", libc::O_RDONLY)),
    ("open-proc-1-root", || open("/proc/1/root/etc/passwd", libc::O_RDONLY)),
    ("open-proc-1-environ", || open("/proc/1/environ", libc::O_RDONLY)),
    ("open-proc-cwd", || open("/proc/self/cwd/../../../../../../etc/passwd", libc::O_RDONLY)),
    ("open-exe", || open("/proc/self/exe", libc::O_RDONLY)),
    ("open-mem-of-1", || open("/proc/1/mem", libc::O_RDWR)),
    ("open-dev-zero", || open("/dev/zero", libc::O_RDONLY)),
    ("open-dev-null", || open("/dev/null", libc::O_RDWR)),
    ("open-drop-caches", || open("/proc/sys/vm/drop_caches", libc::O_WRONLY)),
    ("open-core-pattern", || open("/proc/sys/kernel/core_pattern", libc::O_WRONLY)),
    ("open-sys", || open("/sys/kernel/uevent_seqnum", libc::O_RDONLY)),
    ("open-fds", read_through_open_directories),
    ("write-root", || open("/a3s-box-probe", libc::O_WRONLY | libc::O_CREAT)),
    ("share-dotdot", || open(&in_share(true, "../../../../../../etc/passwd")?, libc::O_RDONLY)),
    ("share-symlink", || open(&in_share(false, "to-passwd")?, libc::O_RDONLY)),
    ("share-write", || open(&in_share(true, "probe")?, libc::O_WRONLY | libc::O_CREAT)),
    ("share-change", || open(&in_share(true, "file")?, libc::O_WRONLY)),
    ("share-device", || open(&in_share(false, "zero")?, libc::O_RDONLY)),
    ("symlink-follow", follow_symlink),
    ("link-host-file", link_host_file),
    ("rename-out", rename_out),
    ("truncate", || path_call(libc::SYS_truncate, HOST_FILE, 0)),
    ("chmod", || path_call(libc::SYS_chmod, "/etc", 0o777)),
    ("chmod-stdin", || chmod_open("null", 0o666)),
    ("chmod-console", || chmod_open("console", 0o600)),
    ("chmod-events", || chmod_open("events", 0o600)),
    ("chroot", || path_call(libc::SYS_chroot, "/", 0)),
    ("mount", || raw(libc::SYS_mount, [0, 0, 0, 0, 0])),
    ("umount", || path_call(libc::SYS_umount2, "/", 2)),
    ("pivot-root", || raw(libc::SYS_pivot_root, [0; 5])),
    ("open-tree", || raw(libc::SYS_open_tree, [libc::AT_FDCWD.into(), 0, 0, 0, 0])),
    ("fsopen", || raw(libc::SYS_fsopen, [0; 5])),
    ("unshare", || raw(libc::SYS_unshare, [libc::CLONE_NEWNS.into(), 0, 0, 0, 0])),
    ("setns", || raw(libc::SYS_setns, [0, 0, 0, 0, 0])),
    ("execve", || path_call(libc::SYS_execve, "/bin/true", 0)),
    ("fork", || raw(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0, 0])),
    ("vfork", || raw(libc::SYS_vfork, [0; 5])),
    ("ptrace", || raw(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), 1, 0, 0, 0])),
    ("process-vm-readv", || raw(libc::SYS_process_vm_readv, [1, 0, 0, 0, 0])),
    ("pidfd-open", || raw(libc::SYS_pidfd_open, [1, 0, 0, 0, 0])),
    ("kill-1", || raw(libc::SYS_kill, [1, 0, 0, 0, 0])),
    ("kill-parent", || raw(libc::SYS_kill, [parent(), 0, 0, 0, 0])),
    ("tgkill-parent", || raw(libc::SYS_tgkill, [parent(), parent(), 0, 0, 0])),
    ("keyctl", || raw(libc::SYS_keyctl, [0; 5])),
    ("bpf", || raw(libc::SYS_bpf, [0; 5])),
    ("io-uring", || raw(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0])),
    ("userfaultfd", || raw(libc::SYS_userfaultfd, [0; 5])),
    ("perf-event", || raw(libc::SYS_perf_event_open, [0; 5])),
    ("open-by-handle", open_by_handle),
    ("mknod-device", mknod_device),
    ("memory-executable", executable_memory),
    ("tcp-loopback", || TcpStream::connect(listener("TCP")).map(drop)),
    ("tcp-metadata", || TcpStream::connect("169.254.169.254:80").map(drop)),
    ("netlink", || raw(libc::SYS_socket, [16, 3, 0, 0, 0])),
    ("abstract-socket", connect_abstract),
    ("reboot", || raw(libc::SYS_reboot, [0; 5])),
    ("limit-parent", || raw(libc::SYS_prlimit64, [parent(), libc::RLIMIT_CPU.into(), 0, 0, 0])),
    ("affinity-parent", || affinity(parent())),
    ("clock-of-parent", || clock_of(parent())),
    ("fcntl-owner", || raw(libc::SYS_fcntl, [1, libc::F_SETOWN.into(), parent(), 0, 0])),
    ("fcntl-lease", || {
        let file = File::open(existing_file()?)?;
        let (lease, read) = (libc::F_SETLEASE.into(), libc::F_RDLCK.into());
        raw(libc::SYS_fcntl, [file.as_raw_fd().into(), lease, read, 0, 0])
    }),
    ("lock-exclusive", || {
        let file = File::open(existing_file()?)?;
        raw(libc::SYS_flock, [file.as_raw_fd().into(), libc::LOCK_EX.into(), 0, 0, 0])
    }),
    ("ioctl-owner", ioctl_owner),
    ("kvm-debug", || raw(libc::SYS_ioctl, [1, KVM_SET_GUEST_DEBUG, 0, 0, 0])),
    ("socket-datagram", || raw(libc::SYS_socket, [1, 2, 0, 0, 0])),
    ("socket-mptcp", || raw(libc::SYS_socket, [2, 1, libc::IPPROTO_MPTCP.into(), 0, 0])),
    ("socket-option", socket_option),
    ("socket-peer", socket_peer),
    ("send-message", || raw(libc::SYS_sendmsg, [1, 0, 0, 0, 0])),
    ("memory-file", || path_call(libc::SYS_memfd_create, "probe", 0)),
    ("lock-write", || on_locks(write_byte)),
    ("lock-truncate", || {
        // SAFETY: the arguments are numbers.
        on_locks(|fd| result(i64::from(unsafe { libc::ftruncate(fd, 0) })))
    }),
    ("lock-convert", || on_locks(|fd| set_lock(fd, libc::F_WRLCK))),
    ("lock-release", || on_locks(|fd| set_lock(fd, libc::F_UNLCK))),
    ("lock-reopen", || each_of(shared_locks()?, reopen)),
    ("record-reopen", || each_of(open_files(is_record), reopen)),
    ("dumpable", || raw(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0, 0, 0])),
];

/// Changes of the box's own files and of the process, which libkrun's virtio-fs server makes for a
/// guest. They are attempts in a box without such a server, and succeed in others.
const CHANGES: [(&str, Attempt); 8] = [
    ("change-mode", || at_call(libc::SYS_fchmodat, &existing_file()?, [0o600, 0])),
    ("change-owner", || at_call(libc::SYS_fchownat, &existing_file()?, [-1, -1])),
    ("change-times", || at_call(libc::SYS_utimensat, &existing_file()?, [0, 0])),
    ("change-user", || raw(libc::SYS_setresuid, [-1, -1, -1, 0, 0])),
    ("make-directory", || at_call(libc::SYS_mkdirat, &own_file()?, [0o700, 0])),
    ("make-fifo", || at_call(libc::SYS_mknodat, &own_file()?, [(libc::S_IFIFO | 0o600).into(), 0])),
    ("make-link", || std::fs::hard_link(existing_file()?, own_file()? + "-link")),
    ("make-symlink", || symlink(HOST_FILE, &own_file()?)),
];

/// `KVM_SET_GUEST_DEBUG` of `linux/kvm.h`, which libkrun does not request.
const KVM_SET_GUEST_DEBUG: i64 = 0x4048_ae9b;

/// Attempts that need a host of their own. The tests do not list them with the others.
const ON_SPECIAL_HOSTS: [(&str, Attempt); 3] = [
    ("notify-main-pid", || notify(&format!("READY=1\nMAINPID={}", listener("PID")))),
    // systemd then kills the main process, as if the watchdog had not heard from it.
    ("notify-kill-pid", || {
        notify(&format!("READY=1\nMAINPID={}\nWATCHDOG=trigger", listener("PID")))
    }),
    ("journal-other-unit", journal_other_unit),
];

/// Makes the attempt with this name, writes its outcome to fd 1, and ends the process.
pub(super) fn run(name: &str) -> ! {
    let all = || ATTEMPTS.iter().chain(&kernel::ATTEMPTS);
    let found = all().chain(&CHANGES).chain(&ON_SPECIAL_HOSTS).find(|(known, _)| *known == name);
    let outcome = match found.map(|(_, attempt)| attempt()) {
        None => {
            let names: Vec<&str> = all().map(|(name, _)| *name).collect();
            format!("known:{}", names.join(","))
        }
        Some(Ok(())) => "reached".to_owned(),
        Some(Err(error)) => format!("errno:{}", error.raw_os_error().unwrap_or(-1)),
    };
    let line = format!("probe {outcome}\n");
    // SAFETY: `write(2)` reads `line.len()` bytes at the pointer, which is what the string has.
    unsafe { libc::write(libc::STDOUT_FILENO, line.as_ptr().cast(), line.len()) };
    a3s_box_sys::exit::now(0)
}

/// Opens a file with `O_PATH` and then reopens it through `/proc/self/fd`. `O_PATH` requires no
/// permission on the file itself, so a layer that checks only reads and writes would miss it.
fn read_through_path_fd() -> io::Result<()> {
    let fd = open_at(libc::AT_FDCWD, HOST_FILE, libc::O_PATH)?;
    open(&format!("/proc/self/fd/{fd}"), libc::O_RDONLY)
}

/// Opens a file of the host through each fd that the shim left open. `..` from the fd of a
/// directory leads out of any root directory that does not contain it.
fn read_through_open_directories() -> io::Result<()> {
    let mut last = io::Error::from_raw_os_error(libc::ENOENT);
    for fd in 0..256 {
        for up in ["etc/passwd", "../../../../../../../../etc/passwd"] {
            match open_at(fd, up, libc::O_RDONLY) {
                Ok(_) => return Ok(()),
                // EACCES shows that the path was reachable and that a layer refused it. Other
                // errors mean that the fd is none or leads to no such file.
                Err(error) if error.raw_os_error() == Some(libc::EACCES) => last = error,
                Err(_) => {}
            }
        }
    }
    Err(last)
}

/// Opens the root directory of the file system by its handle. A handle needs no path, so no mount
/// namespace and no root directory restricts it. On ext4 the root has inode 2.
fn open_by_handle() -> io::Result<()> {
    // `struct file_handle`: size of the handle, type (`FILEID_INO32_GEN`), inode number,
    // generation.
    let mut handle = [8_u32, 1, 2, 0];
    let flags = libc::O_RDONLY;
    // SAFETY: the host kernel reads a header of 8 bytes and then as many bytes as the header
    // states. The array has 16 bytes, and its header states 8.
    let opened = unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, libc::AT_FDCWD, handle.as_mut_ptr(), flags)
    };
    result(opened)
}

/// Sets the mode of an open file with this name. A mode that makes a set-user-id program of it would
/// need nothing else than this call.
fn chmod_open(name: &str, mode: u32) -> io::Result<()> {
    let mut fds = open_files(|path| path.file_name().is_some_and(|found| found == name));
    fds.truncate(1);
    // SAFETY: the arguments are numbers. The fd stays open, because this thread does not return to its
    // owner.
    each_of(fds, |fd| result(i64::from(unsafe { libc::fchmod(fd, mode) })))
}

/// Returns the open files whose path has a property. The path of a file outside of the root is the one
/// that it has on its file system.
fn open_files(has_property: impl Fn(&Path) -> bool) -> Vec<i32> {
    let link = |fd: &i32| std::fs::read_link(format!("/proc/self/fd/{fd}"));
    (0..256).filter(|fd| link(fd).is_ok_and(|path| has_property(&path))).collect()
}

/// Returns whether a file is the record that names the process of the box, and the lock of the box.
fn is_record(path: &Path) -> bool {
    path.file_stem().is_some_and(|name| name == "run")
}

/// Returns the locks that the VMM shares with other boxes: those of its layers in the cache, and that
/// of its ids, if it has some.
fn shared_locks() -> io::Result<Vec<i32>> {
    let are_in = |name: &str| {
        open_files(|path| path.parent().is_some_and(|directory| directory.ends_with(name)))
    };
    let leases = are_in("locks");
    // Each box of the tests has layers. Without their locks, the attempts would test nothing.
    if leases.is_empty() {
        Err(io::ErrorKind::NotFound.into())
    } else {
        Ok([leases, are_in(".ids")].concat())
    }
}

/// Makes an attempt on each lock that the VMM holds.
fn on_locks(attempt: fn(i32) -> io::Result<()>) -> io::Result<()> {
    each_of([shared_locks()?, open_files(is_record)].concat(), attempt)
}

/// Makes an attempt on each of these fds, until one succeeds.
fn each_of(fds: Vec<i32>, attempt: impl Fn(i32) -> io::Result<()>) -> io::Result<()> {
    let none = Err(io::ErrorKind::NotFound.into());
    fds.into_iter().fold(none, |before, fd| if before.is_ok() { before } else { attempt(fd) })
}

fn write_byte(fd: i32) -> io::Result<()> {
    // SAFETY: `write(2)` reads one byte at the pointer, which refers to a static one.
    result(unsafe { libc::syscall(libc::SYS_write, fd, b"x".as_ptr(), 1_usize) })
}

/// Opens a file again by its fd, for writing.
fn reopen(fd: i32) -> io::Result<()> {
    open(&format!("/proc/self/fd/{fd}"), libc::O_RDWR)
}

/// Changes a lock of an open file description.
#[expect(clippy::cast_possible_truncation, reason = "the kinds of locks are 0, 1 and 2")]
fn set_lock(fd: i32, kind: i32) -> io::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the host kernel reads a `flock` at the pointer, which refers to a local one.
    result(i64::from(unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &raw const lock) }))
}

/// Sends a message to the service manager, by every socket. A message that another process is the
/// main process of the shim's service would have it signal that process instead of the shim.
fn notify(text: &str) -> io::Result<()> {
    let mut sent = Err(io::Error::from_raw_os_error(libc::ENOTSOCK));
    for fd in 0..256 {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: send(2) reads `text.len()` bytes at the pointer, which is what the string has.
        let count = unsafe { libc::send(fd, text.as_ptr().cast(), text.len(), flags) };
        sent = sent.or_else(|error| if count > 0 { Ok(()) } else { Err(error) });
    }
    sent
}

/// Writes records to the journal which say in different ways that they are about another service:
/// by a process of it, by its unit, and as `systemd-coredump` does.
fn journal_other_unit() -> io::Result<()> {
    to_journal(&format!("MESSAGE=forged by pid\nOBJECT_PID={}\n", listener("PID")))?;
    let unit = listener("UNIT");
    to_journal(&format!("MESSAGE=forged by name\nOBJECT_SYSTEMD_UNIT={unit}\n"))?;
    let message_id = "fc2e22bc6ee647b6b90729ab34a250b1";
    to_journal(&format!("MESSAGE=forged by core\nMESSAGE_ID={message_id}\nCOREDUMP_UNIT={unit}\n"))
}

/// Sends a record to the journal, by the first socket that can. The layer seccomp leaves the VMM
/// the sockets of the log, and allows no others for datagrams.
fn to_journal(record: &str) -> io::Result<()> {
    let mut sent = Err(io::Error::from_raw_os_error(libc::ENOTSOCK));
    for fd in 0..256 {
        // SAFETY: the fd must stay open and keep its owner. It is not closed here, because
        // `ManuallyDrop` runs no destructor, and this thread does not return to its owner.
        let socket = ManuallyDrop::new(unsafe { UnixDatagram::from_raw_fd(fd) });
        sent = socket.send_to(record.as_bytes(), "/run/systemd/journal/socket").map(drop);
        if sent.is_ok() {
            break;
        }
    }
    sent
}

fn follow_symlink() -> io::Result<()> {
    let link = own_file()?;
    symlink(HOST_FILE, &link)?;
    open(&link, libc::O_RDONLY)
}

fn symlink(target: &str, name: &str) -> io::Result<()> {
    let (target, name) = (CString::new(target)?, CString::new(name)?);
    // SAFETY: both paths must end in NUL and outlive the call, which local `CString`s do.
    result(i64::from(unsafe { libc::symlinkat(target.as_ptr(), libc::AT_FDCWD, name.as_ptr()) }))
}

fn link_host_file() -> io::Result<()> {
    let name = own_file()?;
    std::fs::hard_link(HOST_FILE, &name)?;
    open(&name, libc::O_RDONLY)
}

fn rename_out() -> io::Result<()> {
    let name = own_file()?;
    std::fs::write(&name, "")?;
    std::fs::rename(&name, format!("{}/../../probe", own_directory()?))
}

fn mknod_device() -> io::Result<()> {
    let name = CString::new(own_file()?)?;
    // The device number is the one of `/dev/mem`.
    // SAFETY: the path must end in NUL and outlive the call, which a local `CString` does.
    result(i64::from(unsafe {
        libc::mknodat(libc::AT_FDCWD, name.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 1))
    }))
}

fn executable_memory() -> io::Result<()> {
    let (protection, flags) =
        (libc::PROT_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a mapping must not replace memory in use. The address is null and `MAP_FIXED` is
    // absent, so the host kernel chooses a free range.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks for the CPUs of a process, which shows whether it exists.
fn affinity(process: i64) -> io::Result<()> {
    // The size is that of the largest number of CPUs that a kernel can be built for.
    let mut cpus = [0_u64; 128];
    let bytes = size_of_val(&cpus);
    // SAFETY: the host kernel writes at most `bytes` bytes to the pointer, which is what the array
    // has.
    result(unsafe { libc::syscall(libc::SYS_sched_getaffinity, process, bytes, cpus.as_mut_ptr()) })
}

/// Reads the CPU time of a process. The number of its clock is its id, inverted and shifted, with
/// the kind of the clock in the lower bits (`linux/posix-timers.h`, `CPUCLOCK_SCHED`).
fn clock_of(process: i64) -> io::Result<()> {
    let clock = (!process << 3) | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the host kernel writes a `timespec` to the pointer, which refers to a local one.
    result(unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut time) })
}

/// Has the kernel signal the parent at each event of a socket.
fn ioctl_owner() -> io::Result<()> {
    // `FIOSETOWN` of `asm-generic/sockios.h`.
    const REQUEST: i64 = 0x8901;
    let (socket, _peer) = UnixStream::pair()?;
    let process = parent();
    // SAFETY: the host kernel reads an `int` at the pointer, which refers to a larger local one
    // with the same value in its first bytes.
    let owned = unsafe {
        libc::syscall(libc::SYS_ioctl, i64::from(socket.as_raw_fd()), REQUEST, &raw const process)
    };
    result(owned)
}

fn socket_option() -> io::Result<()> {
    let (socket, _peer) = UnixStream::pair()?;
    let (fd, on) = (i64::from(socket.as_raw_fd()), 1_i32);
    let (level, option) = (i64::from(libc::SOL_SOCKET), i64::from(libc::SO_PASSCRED));
    // SAFETY: the host kernel reads four bytes at the pointer, which refers to an `i32`.
    result(unsafe {
        libc::syscall(libc::SYS_setsockopt, fd, level, option, &raw const on, size_of_val(&on))
    })
}

/// Asks who is at the other end of a socket. A newer option returns an fd of that process.
fn socket_peer() -> io::Result<()> {
    let (socket, _peer) = UnixStream::pair()?;
    let fd = i64::from(socket.as_raw_fd());
    let (level, option) = (i64::from(libc::SOL_SOCKET), i64::from(libc::SO_PEERCRED));
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = size_of_val(&found);
    // SAFETY: the host kernel writes at most `bytes` bytes to the first pointer, which is what the
    // structure has, and four bytes to the second one, which refers to a larger number.
    result(unsafe {
        libc::syscall(libc::SYS_getsockopt, fd, level, option, &raw mut found, &raw mut bytes)
    })
}

fn connect_abstract() -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(listener("ABSTRACT"))?;
    UnixStream::connect_addr(&address).map(drop)
}
