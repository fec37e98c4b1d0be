//! The attempts. Each is a function that makes system calls in a stopped process, and returns the
//! result of the last one, or the first failure.

use libc::{
    AF_INET, AF_NETLINK, AF_PACKET, AF_UNIX, AF_VSOCK, AT_FDCWD, F_SETOWN, IPPROTO_IP, IPPROTO_TCP,
    O_CREAT, O_RDONLY, O_RDWR, O_WRONLY, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_RAW, SOCK_STREAM,
    SOL_SOCKET,
};
use nix::errno::Errno;

use super::Layer::{
    self, Capabilities, Landlock, NetNamespace, Nothing, PidNamespace, Root, Seccomp as Filter,
    Sockets, Target, User,
};
use super::targets::{Targets, tcp_address};
use crate::tracee::{Stopped, Tracee};

type Outcome = Result<i64, Stopped>;

/// An attempt to reach something outside of the box.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    pub(super) name: &'static str,
    pub(super) stopped_by: Layer,
    /// What stops it in a gate or connector whose filter only logs. `None`: it is not made there,
    /// because it would change the process or the host, or because it depends on the host's kernel.
    pub(super) behind_the_filter: Option<Layer>,
    /// Whether it succeeds in a process with all rights, and does no damage to the host of the test.
    pub(super) is_harmless: bool,
    pub(super) act: fn(&mut Tracee, &Targets) -> Outcome,
}

/// An attempt that the filter of the process stops.
const fn filtered(
    name: &'static str,
    behind_the_filter: Option<Layer>,
    is_harmless: bool,
    act: fn(&mut Tracee, &Targets) -> Outcome,
) -> Attempt {
    Attempt { name, stopped_by: Filter, behind_the_filter, is_harmless, act }
}

/// An attempt by calls that the filter of passt allows.
const fn of_passt(
    name: &'static str,
    stopped_by: Layer,
    is_harmless: bool,
    act: fn(&mut Tracee, &Targets) -> Outcome,
) -> Attempt {
    Attempt { name, stopped_by, behind_the_filter: None, is_harmless, act }
}

/// Attempts by calls that none of the three processes has.
pub(super) const ANYWHERE: [Attempt; 32] = [
    filtered("read-file", Some(Root), true, |t, _| open(t, "/etc/passwd", O_RDONLY)),
    filtered("write-file", Some(Root), false, |t, _| open(t, "/a3s-box", O_WRONLY | O_CREAT)),
    filtered("list-root", Some(Landlock), true, |t, _| open(t, "/", O_RDONLY)),
    filtered("environment-of-supervisor", Some(Root), true, |t, targets| {
        open(t, &format!("/proc/{}/environ", targets.supervisor), O_RDONLY)
    }),
    filtered("memory-file-of-vmm", Some(Root), true, |t, targets| {
        open(t, &format!("/proc/{}/mem", targets.vmm), O_RDWR)
    }),
    filtered("file-by-handle", Some(Capabilities), false, |t, _| {
        let handle = t.put(&[8_u32, 1, 2, 0].map(u32::to_ne_bytes).concat());
        t.call(libc::SYS_open_by_handle_at, [AT_FDCWD.into(), handle, O_RDONLY.into()])
    }),
    filtered("watch-files", Some(Nothing), true, |t, _| t.call(libc::SYS_inotify_init1, [0])),
    filtered("execute", Some(Root), false, |t, _| {
        let path = t.put_text("/bin/true");
        t.call(libc::SYS_execve, [path, 0, 0])
    }),
    filtered("fork", None, false, |t, _| t.call(libc::SYS_clone, [libc::SIGCHLD.into()])),
    filtered("signal-supervisor", Some(User), true, |t, targets| kill(t, targets.supervisor)),
    filtered("signal-vmm", Some(User), true, |t, targets| kill(t, targets.vmm)),
    filtered("signal-vmm-of-another-box", Some(User), true, |t, it| kill(t, it.other[0])),
    filtered("signal-gate-of-another-box", Some(User), true, |t, it| kill(t, it.other[1])),
    filtered("signal-passt-of-another-box", Some(User), true, |t, it| kill(t, it.other[2])),
    filtered("signal-thread-of-vmm", Some(User), true, |t, targets| {
        t.call(libc::SYS_tgkill, [targets.vmm.into(), targets.vmm.into(), 0])
    }),
    filtered("handle-of-supervisor", Some(Nothing), true, |t, targets| {
        t.call(libc::SYS_pidfd_open, [targets.supervisor.into(), 0])
    }),
    filtered("trace-vmm", Some(User), true, |t, targets| trace(t, targets.vmm)),
    filtered("trace-passt", Some(Target), true, |t, targets| trace(t, targets.passt)),
    filtered("read-memory-of-vmm", Some(User), true, |t, targets| {
        memory_of(t, targets.vmm, libc::SYS_process_vm_readv)
    }),
    filtered("write-memory-of-gate-of-another-box", Some(User), true, |t, targets| {
        memory_of(t, targets.other[1], libc::SYS_process_vm_writev)
    }),
    filtered("limit-supervisor", Some(User), true, |t, targets| {
        t.call(libc::SYS_prlimit64, [targets.supervisor.into(), libc::RLIMIT_CPU.into(), 0, 0])
    }),
    filtered("limit-passt-of-another-box", Some(User), false, |t, targets| {
        t.call(libc::SYS_prlimit64, [targets.other[2].into(), libc::RLIMIT_CPU.into(), 0, 0])
    }),
    filtered("priority-of-vmm", Some(User), true, |t, targets| {
        t.call(libc::SYS_setpriority, [0, targets.vmm.into(), 0])
    }),
    filtered("io-uring", None, false, |t, _| {
        let parameters = t.put(&[0; 120]);
        t.call(libc::SYS_io_uring_setup, [1, parameters])
    }),
    filtered("bpf", None, false, |t, _| t.call(libc::SYS_bpf, [0, 0, 0])),
    filtered("keyring", None, false, |t, _| t.call(libc::SYS_keyctl, [0, -3, 0])),
    filtered("perf-event", None, false, |t, _| t.call(libc::SYS_perf_event_open, [0; 5])),
    filtered("mount", Some(Capabilities), false, |t, _| {
        let (kind, target) = (t.put_text("tmpfs"), t.put_text("/tmp"));
        t.call(libc::SYS_mount, [kind, target, kind, 0, 0])
    }),
    filtered("user-namespace", None, false, |t, _| {
        t.call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into()])
    }),
    filtered("executable-memory", Some(Nothing), true, |t, _| {
        let protection = libc::PROT_EXEC | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        t.call(libc::SYS_mmap, [0, 4096, protection.into(), flags.into(), -1, 0])
    }),
    filtered("become-root", Some(Capabilities), true, |t, _| t.call(libc::SYS_setresuid, [0; 3])),
    filtered("dumpable", Some(Nothing), true, |t, _| {
        t.call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1])
    }),
];

/// Attempts of the gate, which holds sockets of the host's network: the listener of the published
/// port, and the connections that it accepts.
pub(super) const GATE: [Attempt; 18] = [
    filtered("connect-listener", Some(Nothing), false, |t, targets| {
        let listener = targets.listener;
        reconnect(t, listener, &targets.tcp_of_host())
    }),
    filtered("connect-accepted", Some(Nothing), false, |t, targets| {
        let connection = targets.connection;
        reconnect(t, connection, &targets.tcp_of_host())
    }),
    filtered("connect-by-send", None, false, |t, targets| {
        let (address, data) = (t.put(&targets.tcp_of_host()), t.put(b"x"));
        let flags = libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL;
        t.call(libc::SYS_sendto, [targets.listener, data, 1, flags.into(), address, 16])
    }),
    filtered("end-listener", Some(Nothing), false, |t, targets| {
        t.call(libc::SYS_shutdown, [targets.listener, libc::SHUT_RDWR.into()])
    }),
    filtered("device-of-listener", Some(Nothing), false, |t, targets| {
        let device = t.put_text("lo");
        let (level, option) = (SOL_SOCKET.into(), libc::SO_BINDTODEVICE.into());
        t.call(libc::SYS_setsockopt, [targets.listener, level, option, device, 3])
    }),
    filtered("give-listener-to-passt", Some(Nothing), false, |t, targets| {
        send_fd(t, targets.listener)
    }),
    filtered("take-another-port", Some(NetNamespace), false, |t, targets| {
        // A socket of the empty network reaches no port of the host.
        connect_tcp(t, &tcp_address(std::net::Ipv4Addr::LOCALHOST, targets.other_port))
    }),
    filtered("connect-host", Some(NetNamespace), false, |t, it| connect_tcp(t, &it.tcp_of_host())),
    filtered("connect-outside", Some(NetNamespace), false, |t, targets| {
        connect_tcp(t, &targets.address_of_another_host())
    }),
    filtered("abstract-socket", Some(NetNamespace), false, connect_abstract),
    filtered("raw-socket", Some(Capabilities), false, |t, _| socket(t, AF_INET, SOCK_RAW, 1)),
    filtered("packet-socket", Some(Capabilities), false, |t, _| socket(t, AF_PACKET, SOCK_RAW, 3)),
    filtered("netlink", Some(Capabilities), false, |t, _| take_loopback_down(t)),
    filtered("vsock", None, false, |t, _| socket(t, AF_VSOCK, SOCK_STREAM, 0)),
    filtered("owner-of-wire", Some(Nothing), false, |t, it| own_wire(t, it.supervisor)),
    filtered("signal-group-of-passt", None, false, |t, targets| kill(t, -targets.passt)),
    filtered("wait-for-any", None, false, |t, _| {
        t.call(libc::SYS_wait4, [-1, 0, libc::WNOHANG.into(), 0])
    }),
    filtered("clock-of-supervisor", Some(Nothing), true, |t, it| clock_of(t, it.supervisor)),
];

/// Attempts of the connector, which makes sockets in the empty network.
pub(super) const CONNECTOR: [Attempt; 8] = [
    Attempt {
        stopped_by: NetNamespace,
        ..filtered("connect-host", Some(NetNamespace), false, |t, targets| {
            connect_tcp(t, &targets.tcp_of_host())
        })
    },
    Attempt {
        stopped_by: NetNamespace,
        ..filtered("connect-outside", Some(NetNamespace), false, |t, targets| {
            connect_tcp(t, &targets.address_of_another_host())
        })
    },
    Attempt {
        stopped_by: Capabilities,
        ..filtered("raw-socket", Some(Capabilities), false, |t, _| socket(t, AF_INET, SOCK_RAW, 1))
    },
    filtered("abstract-socket", Some(NetNamespace), false, connect_abstract),
    filtered("netlink", Some(Capabilities), false, |t, _| take_loopback_down(t)),
    filtered("owner-of-wire", Some(Nothing), false, |t, it| own_wire(t, it.supervisor)),
    filtered("take-port", Some(Nothing), false, |t, _| bind(t, SOCK_STREAM, 8080)),
    filtered("clock-of-supervisor", Some(Nothing), true, |t, it| clock_of(t, it.supervisor)),
];

/// Attempts of passt in the network of the host, by calls that its own filter allows.
pub(super) const PASST: [Attempt; 18] = [
    of_passt("owner-supervisor", PidNamespace, true, |t, it| own_wire(t, it.supervisor)),
    of_passt("owner-vmm", PidNamespace, true, |t, targets| own_wire(t, targets.vmm)),
    of_passt("owner-gate", PidNamespace, true, |t, targets| own_wire(t, targets.gate)),
    of_passt("owner-group-of-gate", PidNamespace, true, |t, targets| own_wire(t, -targets.vmm)),
    of_passt("owner-gate-of-another-box", PidNamespace, true, |t, it| own_wire(t, it.other[1])),
    of_passt("abstract-socket", Sockets, true, connect_abstract),
    of_passt("unix-datagram", Sockets, true, |t, _| socket(t, AF_UNIX, SOCK_DGRAM, 0)),
    of_passt("vsock", Sockets, false, |t, _| socket(t, AF_VSOCK, SOCK_STREAM, 0)),
    of_passt("kernel-crypto", Sockets, false, |t, _| socket(t, libc::AF_ALG, 5, 0)),
    of_passt("packet-socket", Sockets, true, |t, _| socket(t, AF_PACKET, SOCK_RAW, 3)),
    of_passt("netlink-of-devices", Sockets, true, |t, _| {
        socket(t, AF_NETLINK, SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT)
    }),
    of_passt("netlink-change", Capabilities, false, |t, _| take_loopback_down(t)),
    of_passt("raw-socket", Capabilities, true, |t, _| socket(t, AF_INET, SOCK_RAW, 1)),
    of_passt("take-port", Landlock, true, |t, _| {
        // No test uses this port, and the system gives it to no client.
        bind(t, SOCK_STREAM, 29_433)
    }),
    of_passt("take-privileged-port", Capabilities, true, |t, _| bind(t, SOCK_DGRAM, 953)),
    of_passt("mark-packets", Capabilities, true, |t, _| option(t, SOL_SOCKET, libc::SO_MARK)),
    of_passt("foreign-address", Capabilities, true, |t, _| {
        option(t, IPPROTO_IP, libc::IP_TRANSPARENT)
    }),
    of_passt("repair-connection", Capabilities, true, |t, _| {
        option(t, IPPROTO_TCP, libc::TCP_REPAIR)
    }),
];

pub(crate) fn open(t: &mut Tracee, path: &str, flags: i32) -> Outcome {
    let path = t.put_text(path);
    t.call(libc::SYS_openat, [AT_FDCWD.into(), path, flags.into(), 0o600])
}

/// Asks whether this process may signal another one, by the signal 0.
pub(crate) fn kill(t: &mut Tracee, pid: i32) -> Outcome {
    t.call(libc::SYS_kill, [pid.into(), 0])
}

/// Begins to trace another process.
pub(crate) fn trace(t: &mut Tracee, pid: i32) -> Outcome {
    t.call(libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), pid.into(), 0, 0])
}

/// Reads or writes a byte of another process, at the unused end of its stack.
pub(crate) fn memory_of(t: &mut Tracee, pid: i32, call: i64) -> Outcome {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let stack = i64::from_str_radix(stack.split('-').next().unwrap(), 16).unwrap();
    let byte = t.put(&[0]);
    let [own, other] =
        [byte, stack].map(|address| t.put(&[address, 1].map(i64::to_ne_bytes).concat()));
    t.call(call, [pid.into(), own, 1, other, 1, 0])
}

/// Has the kernel signal a process, or with a negative id a group, at each event of the wire.
pub(crate) fn own_wire(t: &mut Tracee, pid: i32) -> Outcome {
    t.call(libc::SYS_fcntl, [0, F_SETOWN.into(), pid.into()])
}

/// Reads the CPU time of a process (`CPUCLOCK_SCHED` of `linux/posix-timers.h`).
pub(crate) fn clock_of(t: &mut Tracee, pid: i32) -> Outcome {
    let time = t.put(&[0; 16]);
    t.call(libc::SYS_clock_gettime, [(!i64::from(pid) << 3) | 2, time])
}

fn socket(t: &mut Tracee, family: i32, kind: i32, protocol: i32) -> Outcome {
    t.call(libc::SYS_socket, [family.into(), kind.into(), protocol.into()])
}

pub(crate) fn connect_tcp(t: &mut Tracee, address: &[u8; 16]) -> Outcome {
    let socket = socket(t, AF_INET, SOCK_STREAM, 0)?;
    let address = t.put(address);
    t.call(libc::SYS_connect, [socket, address, 16])
}

/// Takes the peer from a socket, or ends a listener, and connects it to another address.
fn reconnect(t: &mut Tracee, socket: i64, address: &[u8; 16]) -> Outcome {
    let (none, address) = (t.put(&[0; 16]), t.put(address));
    t.call(libc::SYS_connect, [socket, none, 16])?;
    // Its new connection may be under way, because the socket does not block.
    match t.call(libc::SYS_connect, [socket, address, 16]) {
        Err(Stopped::Refused(Errno::EINPROGRESS)) => Ok(0),
        outcome => outcome,
    }
}

fn connect_abstract(t: &mut Tracee, targets: &Targets) -> Outcome {
    let socket = socket(t, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0)?;
    let family = u16::try_from(AF_UNIX).unwrap().to_ne_bytes();
    let address = [&family[..], b"\0", targets.abstract_name.as_bytes()].concat();
    let length = i64::try_from(address.len()).unwrap();
    let address = t.put(&address);
    t.call(libc::SYS_connect, [socket, address, length])
}

fn bind(t: &mut Tracee, kind: i32, port: u16) -> Outcome {
    let socket = socket(t, AF_INET, kind, 0)?;
    let address = t.put(&tcp_address(std::net::Ipv4Addr::LOCALHOST, port));
    t.call(libc::SYS_bind, [socket, address, 16])
}

/// Sets an option of a new TCP socket to 1.
fn option(t: &mut Tracee, level: i32, option: i32) -> Outcome {
    let socket = socket(t, AF_INET, SOCK_STREAM, 0)?;
    let on = t.put(&1_i32.to_ne_bytes());
    t.call(libc::SYS_setsockopt, [socket, level.into(), option.into(), on, 4])
}

/// Sends an fd to the other end of the wire.
fn send_fd(t: &mut Tracee, fd: i64) -> Outcome {
    // `struct cmsghdr` and the fd, padded to a multiple of 8 bytes (cmsg(3)).
    let control = [
        &20_u64.to_ne_bytes()[..],
        &SOL_SOCKET.to_ne_bytes(),
        &libc::SCM_RIGHTS.to_ne_bytes(),
        &i32::try_from(fd).unwrap().to_ne_bytes(),
        &[0; 4],
    ];
    let control = t.put(&control.concat());
    let data = t.put(b"x");
    let vector = t.put(&[data, 1].map(i64::to_ne_bytes).concat());
    // `struct msghdr`: name and its length, vectors and their number, control data and its length,
    // flags.
    let message = t.put(&[0, 0, vector, 1, control, 24, 0].map(i64::to_ne_bytes).concat());
    t.call(libc::SYS_sendmsg, [0, message, 0])
}

/// Asks the kernel to take the loopback interface down (rtnetlink(7)), and returns its answer.
fn take_loopback_down(t: &mut Tracee) -> Outcome {
    const NEW_LINK: u16 = 16;
    const REQUEST_WITH_ANSWER: u16 = 0x5;
    let netlink = socket(t, AF_NETLINK, SOCK_RAW, libc::NETLINK_ROUTE)?;
    // `struct nlmsghdr`, and `struct ifinfomsg` with the index of the interface, no flag, and the
    // flag `IFF_UP` as the one to change.
    let header = [
        &32_u32.to_ne_bytes()[..],
        &NEW_LINK.to_ne_bytes(),
        &REQUEST_WITH_ANSWER.to_ne_bytes(),
        &[0; 8],
    ];
    let body = [0_u32, 1, 0, 1].map(u32::to_ne_bytes);
    let request = t.put(&[header.concat(), body.concat()].concat());
    t.call(libc::SYS_sendto, [netlink, request, 32, 0, 0, 0])?;
    let answer = t.put(&[0; 128]);
    t.call(libc::SYS_recvfrom, [netlink, answer, 128, libc::MSG_DONTWAIT.into(), 0, 0])?;
    // The error of `struct nlmsgerr` is behind the header.
    match i32::from_ne_bytes(t.get(answer + 16)) {
        0 => Ok(0),
        error => Err(Stopped::Refused(Errno::from_raw(-error))),
    }
}
