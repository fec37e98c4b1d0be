//! What the gate takes away from passt before it starts it.
//!
//! passt parses the frames of a hostile guest. It gives up its capabilities, its files and most
//! system calls before it reads the first one (passt(1)), but keeps calls whose arguments are free:
//! socket(2) makes sockets of every family, bind(2) takes any port, and fcntl(2) names a process
//! that gets a signal (`F_SETOWN`). The gate cannot change the filter of passt, but what it gives up
//! itself before the start is lost to passt as well:
//!
//! | given up | by | without it, passt could |
//! |---|---|---|
//! | processes of the host | a pid namespace, of which passt is the first process | name and signal those of its user |
//! | other families of sockets | a filter of socket(2) | reach abstract and other Unix sockets, and other VMs (vsock) |
//! | abstract Unix sockets, signals | Landlock (ABI 6) | the same, on a host whose filter only logs |
//! | TCP ports that are not published | Landlock (ABI 6) | take the place of a service of the host |

use std::io;

use a3s_box_core::config::SeccompMode;
use a3s_box_sys::HostError;
use landlock::{
    ABI, Access, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};
use nix::sched::{CloneFlags, unshare};

use crate::host::seccomp;
use crate::network::passt;
use crate::spec::PasstSpec;

/// Families of the sockets that passt needs: those of the guest's connections, and the one by which
/// it looks for the interface that it is told to use. passt also opens a Unix socket for the system
/// log, and goes on without it.
const FAMILIES: [i32; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// A rule for this port lets passt take one that the kernel chooses. listen(2) without bind(2) does
/// the same and is not restricted, and newer versions of passt test the kernel with such a port.
const ANY_FREE_PORT: u16 = 0;

/// Gives up the rights that neither the gate nor passt needs. The next process that the gate starts
/// is the first one of a pid namespace, and the gate can start no thread any more.
pub(super) fn apply(spec: &PasstSpec, seccomp: SeccompMode) -> Result<(), HostError> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(HostError::of("make a pid namespace for passt"))?;
    seccomp::refuse_other_families(&FAMILIES, seccomp)
        .map_err(io::Error::other)
        .map_err(HostError::of("limit the sockets of passt"))?;
    restrict(spec).map_err(io::Error::other).map_err(HostError::of("limit the ports of passt"))
}

/// Applies Landlock to signals, abstract Unix sockets and TCP ports.
///
/// A kernel that does not know all of this (before Linux 6.12) gets no ruleset. passt changes its
/// mounts at its start, which a ruleset about files forbids, so the ruleset must not have one.
fn restrict(spec: &PasstSpec) -> Result<(), RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::SoftRequirement)
        .scope(Scope::from_all(ABI::V6))?
        .handle_access(AccessNet::BindTcp)?
        .create()?;
    for port in passt::tcp_ports(spec).chain([ANY_FREE_PORT]) {
        ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
    }
    ruleset.restrict_self().map(drop)
}
