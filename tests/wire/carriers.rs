//! Attempts of the gate, the connector and passt to reach the host or other boxes, after a guest has
//! taken one of them over.
//!
//! The test stops the process and has it make the system calls ([`Tracee`]), so the attempts have
//! exactly the rights that are left to it. Each attempt has the layer that stops it. The gate and
//! the connector make them again with filters that only log (`confinement.seccomp` `log`), which
//! shows the layer behind the filter, or that the attempt succeeds and is thus a real one.
//! [`attempts_succeed_in_a_process_with_the_rights_of_the_host`] does the same for passt.

pub(crate) mod attempts;
mod targets;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::signal::Signal;

use self::attempts::{ANYWHERE, Attempt, CONNECTOR, GATE, PASST, connect_tcp};
pub(crate) use self::targets::{Carriers, Kind, ShimUser, tcp_address};
use self::targets::{Seccomp, Targets};
use crate::tracee::{Stopped, Tracee};

/// What stops an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    /// The filter of the process itself.
    Seccomp,
    /// The filter of passt's sockets, which the gate installs.
    Sockets,
    /// The process is in the root of the shim, which has the files of the box only.
    Root,
    Landlock,
    PidNamespace,
    NetNamespace,
    /// The process has another user than its target.
    User,
    Capabilities,
    /// The target does not let itself be traced or read (`PR_SET_DUMPABLE`).
    Target,
    /// Nothing stops it without the filter, which shows that the attempt works.
    Nothing,
}

use Layer::{
    Capabilities, Landlock, NetNamespace, Nothing, PidNamespace, Root, Seccomp as Filter, Sockets,
    Target, User,
};

impl Layer {
    /// Returns whether an outcome is the one of this layer.
    fn explains(self, outcome: Result<i64, Stopped>) -> bool {
        let refused = |errors: &[Errno]| matches!(outcome, Err(Stopped::Refused(error)) if errors.contains(&error));
        match self {
            Filter => outcome == Err(Stopped::Killed(Signal::SIGSYS)),
            Sockets => refused(&[Errno::EAFNOSUPPORT]),
            Root => refused(&[Errno::ENOENT, Errno::EROFS]),
            PidNamespace => refused(&[Errno::ESRCH]),
            NetNamespace => refused(&[Errno::ENETUNREACH, Errno::ECONNREFUSED]),
            Landlock | User | Target | Capabilities => refused(&[Errno::EPERM, Errno::EACCES]),
            Nothing => outcome.is_ok(),
        }
    }
}

/// Makes each attempt in a process of this kind, and returns those whose outcome has another cause
/// than expected.
#[expect(clippy::print_stdout, reason = "the output shows which layer stopped which attempt")]
fn wrong_outcomes(
    kind: Kind,
    user: ShimUser,
    seccomp: Seccomp,
    attempts: &[&'static [Attempt]],
) -> Vec<String> {
    let other = Carriers::start(user, Kind::Gate, Seccomp::Enforce);
    let mut own: Option<Carriers> = None;
    let (mut wrong, mut layers) = (Vec::new(), BTreeMap::<Layer, Vec<&str>>::new());
    for attempt in attempts.iter().copied().flatten() {
        let expected = match seccomp {
            Seccomp::Enforce => attempt.stopped_by,
            Seccomp::Log => match attempt.behind_the_filter {
                Some(layer) => layer,
                None => continue,
            },
        };
        // The filter ends the process. Other attempts use the same one again.
        let carriers = own.take().unwrap_or_else(|| Carriers::start(user, kind, seccomp));
        let targets = Targets::new(&carriers, &other);
        let mut tracee = Tracee::stop(carriers.process(kind));
        let outcome = (attempt.act)(&mut tracee, &targets);
        drop(tracee);
        if !matches!(outcome, Err(Stopped::Killed(_))) && outcome.is_err() {
            own = Some(carriers);
        }
        if expected.explains(outcome) {
            layers.entry(expected).or_default().push(attempt.name);
        } else {
            wrong.push(format!("{}: {outcome:?}, expected {expected:?}", attempt.name));
        }
    }
    println!(
        "{kind:?}, {user:?}, {seccomp:?}: attempts by the layer that stopped them: {layers:#?}"
    );
    wrong
}

/// Number of attempts in the place of each process, as docs/confinement.md states it.
const COUNTS: [(Kind, usize, &[&[Attempt]]); 3] = [
    (Kind::Gate, 50, &[&ANYWHERE, &GATE]),
    (Kind::Connector, 40, &[&ANYWHERE, &CONNECTOR]),
    (Kind::Passt, 50, &[&ANYWHERE, &PASST]),
];

fn assert_stopped(kind: Kind, users: &[ShimUser], seccomp: Seccomp) {
    let (_, count, attempts) = COUNTS.into_iter().find(|(found, ..)| *found == kind).unwrap();
    assert_eq!(attempts.concat().len(), count, "the number that the documents name");
    for user in users {
        let wrong = wrong_outcomes(kind, *user, seccomp, attempts);
        assert!(wrong.is_empty(), "{kind:?}, {user:?}, {seccomp:?}: {wrong:#?}");
    }
}

#[test]
fn no_attempt_of_a_gate_succeeds() {
    assert_stopped(Kind::Gate, &[ShimUser::Root, ShimUser::Ordinary], Seccomp::Enforce);
}

#[test]
fn no_attempt_of_a_connector_succeeds() {
    assert_stopped(Kind::Connector, &[ShimUser::Root, ShimUser::Ordinary], Seccomp::Enforce);
}

#[test]
fn no_attempt_of_passt_succeeds() {
    assert_stopped(Kind::Passt, &[ShimUser::Root, ShimUser::Ordinary], Seccomp::Enforce);
}

#[test]
fn further_layers_stop_a_gate_whose_filter_only_logs() {
    assert_stopped(Kind::Gate, &[ShimUser::Root], Seccomp::Log);
}

#[test]
fn passt_reaches_no_address_of_the_host_with_egress_deny() {
    let other = Carriers::start(ShimUser::Root, Kind::Gate, Seccomp::Enforce);
    let own = Carriers::start(ShimUser::Root, Kind::Gate, Seccomp::Enforce);
    let targets = Targets::new(&own, &other);
    let mut tracee = Tracee::stop(own.process(Kind::Passt));
    for address in [targets.tcp_of_host(), targets.address_of_another_host()] {
        let outcome = connect_tcp(&mut tracee, &address);
        assert!(NetNamespace.explains(outcome), "{outcome:?}");
    }
}

/// A program that waits for its input, in the place of the confined processes.
fn unconfined() -> std::process::Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn attempts_succeed_in_a_process_with_the_rights_of_the_host() {
    let other = Carriers::start(ShimUser::Root, Kind::Gate, Seccomp::Enforce);
    let own = Carriers::start(ShimUser::Root, Kind::Gate, Seccomp::Enforce);
    let targets = Targets::new(&own, &other);
    let mut failed = Vec::new();
    for attempt in ANYWHERE.iter().chain(&PASST).filter(|attempt| attempt.is_harmless) {
        let mut process = unconfined();
        let mut tracee = Tracee::stop(process.id().cast_signed());
        let outcome = (attempt.act)(&mut tracee, &targets);
        drop(tracee);
        if outcome.is_err() {
            failed.push(format!("{}: {outcome:?}", attempt.name));
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }
    assert!(failed.is_empty(), "these attempts fail without confinement: {failed:#?}");
}
