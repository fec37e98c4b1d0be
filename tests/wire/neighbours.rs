//! Boxes that run at once: no process of a box can signal, limit, read or see the processes of
//! another one, or reach its files and its network.
//!
//! Two boxes of the same user run at once. Each process of one box makes the attempts on those of the
//! other ([`Tracee`]), as code does that has taken it over.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use libc::{O_RDONLY, O_RDWR, O_WRONLY};

use crate::carriers::attempts::{clock_of, connect_tcp, kill, memory_of, open, own_wire, trace};
use crate::carriers::{Carriers, Kind, ShimUser, tcp_address};
use crate::network::status;
use crate::tracee::{Stopped, Tracee};

type Outcome = Result<i64, Stopped>;

/// Returns the id of a process of a box.
type Process = fn(&Carriers) -> i32;

/// An attempt on another process.
struct Attempt {
    name: &'static str,
    /// Whether it succeeds in a process with all rights, and does no damage there.
    is_harmless: bool,
    act: fn(&mut Tracee, i32) -> Outcome,
}

const fn harmless(name: &'static str, act: fn(&mut Tracee, i32) -> Outcome) -> Attempt {
    Attempt { name, is_harmless: true, act }
}

/// The attempts: to signal, to limit, to read and to see a process.
const ON_PROCESSES: [Attempt; 18] = [
    harmless("signal", kill),
    harmless("signal-thread", |t, pid| t.call(libc::SYS_tgkill, [pid.into(), pid.into(), 0])),
    harmless("signal-by-owner", own_wire),
    harmless("signal-by-handle", |t, pid| {
        let handle = t.call(libc::SYS_pidfd_open, [pid.into(), 0])?;
        t.call(libc::SYS_pidfd_send_signal, [handle, 0, 0, 0])
    }),
    Attempt {
        // Without `CAP_SYS_RESOURCE`, which a container may lack, root cannot do this either.
        is_harmless: false,
        ..harmless("limit", |t, pid| {
            t.call(libc::SYS_prlimit64, [pid.into(), libc::RLIMIT_CPU.into(), 0, 0])
        })
    },
    harmless("limit-priority", |t, pid| t.call(libc::SYS_setpriority, [0, pid.into(), 0])),
    harmless("limit-priority-of-io", |t, pid| t.call(libc::SYS_ioprio_set, [1, pid.into(), 0])),
    harmless("limit-cpus", |t, pid| {
        let all = t.put(&[0xff; 128]);
        t.call(libc::SYS_sched_setaffinity, [pid.into(), 128, all])
    }),
    harmless("limit-by-kernel", |t, pid| open(t, &format!("/proc/{pid}/oom_score_adj"), O_WRONLY)),
    harmless("read-memory", |t, pid| memory_of(t, pid, libc::SYS_process_vm_readv)),
    harmless("read-memory-file", |t, pid| open(t, &format!("/proc/{pid}/mem"), O_RDWR)),
    harmless("read-environment", |t, pid| open(t, &format!("/proc/{pid}/environ"), O_RDONLY)),
    harmless("read-fd", |t, pid| {
        let handle = t.call(libc::SYS_pidfd_open, [pid.into(), 0])?;
        t.call(libc::SYS_pidfd_getfd, [handle, 0, 0])
    }),
    harmless("trace", trace),
    harmless("see-status", |t, pid| open(t, &format!("/proc/{pid}/status"), O_RDONLY)),
    harmless("see-cpus", |t, pid| {
        let cpus = t.put(&[0; 128]);
        t.call(libc::SYS_sched_getaffinity, [pid.into(), 128, cpus])
    }),
    harmless("see-clock", clock_of),
    harmless("see-group", |t, pid| t.call(libc::SYS_getpgid, [pid.into()])),
];

/// Starts a box. passt is in the empty network of the gate.
fn start(user: ShimUser) -> Carriers {
    Carriers::start_box(user, "deny", "enforce")
}

/// The attacking processes of a box, and for each those of another box that it attacks: the VMM, into
/// which a guest breaks out first, attacks all of them.
fn pairs(other: &Carriers) -> Vec<(Process, &'static str, i32)> {
    let vmm: Process = Carriers::vmm;
    let connector: Process = |own| own.process(Kind::Connector);
    vec![
        (vmm, "VMM on VMM", other.vmm()),
        (vmm, "VMM on gate", other.gate),
        (vmm, "VMM on passt", other.passt),
        (|own| own.gate, "gate on gate", other.gate),
        (|own| own.passt, "passt on passt", other.passt),
        (connector, "connector on connector", other.process(Kind::Connector)),
    ]
}

/// Makes attempts in a process of a box, and returns those that succeed.
fn successes<'a>(
    user: ShimUser,
    process: impl Fn(&Carriers) -> i32,
    attempts: impl IntoIterator<Item = (&'a str, Box<dyn Fn(&mut Tracee) -> Outcome + 'a>)>,
) -> Vec<&'a str> {
    let mut own = None;
    let mut reached = Vec::new();
    for (name, attempt) in attempts {
        // A filter may have ended the process of the last attempt.
        let carriers = own.take().unwrap_or_else(|| start(user));
        let mut tracee = Tracee::stop(process(&carriers));
        let outcome = attempt(&mut tracee);
        drop(tracee);
        if outcome.is_ok() {
            reached.push(name);
        }
        if !matches!(outcome, Err(Stopped::Killed(_))) {
            own = Some(carriers);
        }
    }
    reached
}

fn assert_no_process_reaches_one_of_another_box(user: ShimUser) {
    let other = start(user);
    for (process, pair, pid) in pairs(&other) {
        let attempts = ON_PROCESSES.iter().map(|attempt| {
            let act: Box<dyn Fn(&mut Tracee) -> Outcome> = Box::new(|t| (attempt.act)(t, pid));
            (attempt.name, act)
        });
        assert_eq!(successes(user, process, attempts), [""; 0], "{pair}, {user:?}");
        assert!(status(pid, "Name:").is_some(), "{pair}, {user:?}: the other process has ended");
    }
}

#[test]
fn no_process_of_a_box_of_root_reaches_one_of_another_box() {
    assert_no_process_reaches_one_of_another_box(ShimUser::Root);
}

#[test]
fn no_process_of_a_box_of_a_user_reaches_one_of_another_box() {
    assert_no_process_reaches_one_of_another_box(ShimUser::Ordinary);
}

#[test]
fn attempts_on_a_box_succeed_in_a_process_with_the_rights_of_the_host() {
    let other = start(ShimUser::Root);
    let mut failed = Vec::new();
    for attempt in ON_PROCESSES.iter().filter(|attempt| attempt.is_harmless) {
        let mut process =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut tracee = Tracee::stop(process.id().cast_signed());
        let outcome = (attempt.act)(&mut tracee, other.vmm());
        drop(tracee);
        if outcome.is_err() {
            failed.push((attempt.name, outcome));
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }
    assert!(failed.is_empty(), "these attempts fail without confinement: {failed:?}");
}

#[test]
fn no_process_of_a_box_reaches_files_sockets_or_ports_of_another_box() {
    for user in [ShimUser::Root, ShimUser::Ordinary] {
        let other = start(user);
        let names = ["console.log", "run.json", "control.sock"];
        for (process, pair, _) in pairs(&other) {
            let of_files = names.map(|name| {
                let path = other.box_directory().join(name);
                assert!(path.exists(), "{} does not exist", path.display());
                let act: Box<dyn Fn(&mut Tracee) -> Outcome> =
                    Box::new(move |t| open(t, path.to_str().unwrap(), libc::O_PATH));
                (name, act)
            });
            let port = tcp_address(Ipv4Addr::LOCALHOST, other.port);
            let connect: Box<dyn Fn(&mut Tracee) -> Outcome> =
                Box::new(move |t| connect_tcp(t, &port));
            let attempts = of_files.into_iter().chain([("published port", connect)]);
            assert_eq!(successes(user, process, attempts), [""; 0], "{pair}, {user:?}");
        }
    }
}

#[test]
fn boxes_at_once_share_no_namespace_and_no_user() {
    let boxes = [start(ShimUser::Root), start(ShimUser::Root)];
    let inode =
        |pid: i32, kind: &str| fs::metadata(format!("/proc/{pid}/ns/{kind}")).unwrap().ino();
    let vmms = boxes.each_ref().map(Carriers::vmm);
    for kind in ["user", "mnt", "ipc", "uts", "net"] {
        let [first, second] = vmms.map(|pid| inode(pid, kind));
        assert_ne!(first, second, "the VMMs share a namespace: {kind}");
    }
    let passts = boxes.each_ref().map(|it| it.passt);
    for kind in ["user", "mnt", "ipc", "uts", "net", "pid"] {
        let [first, second] = passts.map(|pid| inode(pid, kind));
        assert_ne!(first, second, "the passts share a namespace: {kind}");
    }
    let users = |it: &Carriers| {
        let pids = [it.vmm(), it.gate, it.passt, it.process(Kind::Connector)];
        pids.map(|pid| status(pid, "Uid:").unwrap())
    };
    let [first, second] = boxes.each_ref().map(users);
    assert!(first.iter().all(|user| !second.contains(user)), "{first:?}, {second:?}");
}
