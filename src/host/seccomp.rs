//! Filters of system calls (`seccomp(2)`).
//!
//! A call that is not allowed kills the whole process. Killing only the thread would leave a
//! process that hangs, because other threads wait for it.

use std::collections::BTreeMap;

use a3s_box_core::config::SeccompMode;
use a3s_box_sys::pinned_addresses::{PAGE_END, PinnedAddress};
use libc::{SYS_clone3, SYS_sched_getaffinity, SYS_socket};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// Number of the clocks that are no clocks of a process, thread or device (`MAX_CLOCKS` of
/// `linux/time.h`).
const MAX_CLOCKS: u64 = 16;

/// Bits of the second argument of socket(2) that are the type (`SOCK_TYPE_MASK` of `linux/net.h`).
const SOCKET_TYPES: u64 = 0xf;

/// Rules by the number of the call. A call without rules always matches; otherwise one rule must
/// hold.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The calls that a process may make.
#[derive(Debug, Default)]
pub(crate) struct Filter(Rules);

impl Filter {
    /// Makes a filter that allows these calls with any arguments.
    pub(crate) fn allowing(calls: &[i64]) -> Self {
        Self(calls.iter().map(|call| (*call, Vec::new())).collect())
    }

    /// Allows one more call with any arguments.
    pub(crate) fn allow(&mut self, call: i64) {
        self.allow_if(call, Vec::new());
    }

    /// Allows one more call if one of the conditions holds.
    pub(crate) fn allow_if(&mut self, call: i64, conditions: Vec<SeccompRule>) {
        self.0.insert(call, conditions);
    }

    /// Whether a call is allowed, with any arguments or with some.
    #[cfg(test)]
    pub(crate) fn has(&self, call: i64) -> bool {
        self.0.contains_key(&call)
    }

    /// Returns the calls that are allowed with any arguments.
    #[cfg(test)]
    pub(crate) fn free_calls(&self) -> std::collections::BTreeSet<i64> {
        self.0.iter().filter(|(_, rules)| rules.is_empty()).map(|(call, _)| *call).collect()
    }

    /// Installs the filter for this thread and for all threads that it starts later. A filter
    /// cannot be removed again.
    pub(crate) fn install(self, mode: SeccompMode) -> Result<(), seccompiler::Error> {
        let mismatch = match mode {
            SeccompMode::Enforce => SeccompAction::KillProcess,
            SeccompMode::Log => SeccompAction::Log,
        };
        apply(self.0, mismatch, SeccompAction::Allow)
    }
}

/// Installs a filter that makes two calls of glibc fail with ENOSYS, in place of a later filter that
/// would kill the process.
///
/// - glibc then starts threads with clone(2). clone3(2) takes its flags in memory, which a filter
///   cannot read. clone(2) takes them in a register, so that a later filter can allow threads and
///   refuse processes and namespaces.
/// - `pthread_getattr_np(3)` goes without the CPUs of the thread. Rust asks it for the stack of each
///   new thread, and it passes the id of this thread to `sched_getaffinity(2)`. A filter is the same
///   for all threads, so it cannot tell this id from the id of another process.
pub(crate) fn pretend_missing() -> Result<(), seccompiler::Error> {
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let of_an_id = all([(0, SeccompCmpOp::Ne, 0)])?;
    let rules = BTreeMap::from([(SYS_clone3, Vec::new()), (SYS_sched_getaffinity, vec![of_an_id])]);
    apply(rules, SeccompAction::Allow, missing)
}

/// Installs a filter that refuses sockets of all families but these, and netlink sockets that do not
/// configure networks.
///
/// The error is that of a kernel without the family, so that a program goes on without the socket.
pub(crate) fn refuse_other_families(
    families: &[i32],
    mode: SeccompMode,
) -> Result<(), seccompiler::Error> {
    let others = families.iter().map(|family| (0, SeccompCmpOp::Ne, family.unsigned_abs().into()));
    let netlink = [
        (0, SeccompCmpOp::Eq, libc::AF_NETLINK.unsigned_abs().into()),
        (2, SeccompCmpOp::Ne, libc::NETLINK_ROUTE.unsigned_abs().into()),
    ];
    let refused = match mode {
        SeccompMode::Enforce => SeccompAction::Errno(libc::EAFNOSUPPORT.unsigned_abs()),
        SeccompMode::Log => SeccompAction::Log,
    };
    let rules = BTreeMap::from([(SYS_socket, vec![all(others)?, all(netlink)?])]);
    apply(rules, SeccompAction::Allow, refused)
}

fn apply(
    rules: Rules,
    mismatch: SeccompAction,
    matching: SeccompAction,
) -> Result<(), seccompiler::Error> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, mismatch, matching, architecture)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}

/// Returns the rule of mmap(2) and mprotect(2) that the memory is not executable.
pub(crate) fn not_executable() -> Result<SeccompRule, BackendError> {
    bits(2, u64::from(libc::PROT_EXEC.unsigned_abs()), 0)
}

/// Returns the rule of connect(2) that its address is this pinned one.
pub(crate) fn pinned(address: &PinnedAddress) -> Result<SeccompRule, BackendError> {
    let pointer = SeccompCondition::new(
        1,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::Eq,
        address.pointer as u64,
    )?;
    let length =
        SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, address.length.into())?;
    SeccompRule::new(vec![pointer, length])
}

/// Returns the condition that the memory at the argument `index` is above the pinned addresses. A
/// range of memory that begins there contains none of them.
pub(crate) fn above_pinned(index: u8) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Ge, PAGE_END as u64)
}

/// Returns the condition that the argument at `index` has none of these bits.
pub(crate) fn without(index: u8, flags: i32) -> Result<SeccompCondition, BackendError> {
    let flags = SeccompCmpOp::MaskedEq(flags.unsigned_abs().into());
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, flags, 0)
}

/// Returns the rule that the argument at `index` is a null pointer.
pub(crate) fn null(index: u8) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(
        index,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::Eq,
        0,
    )?])
}

/// Returns the rule that the argument at `index` is `value`.
pub(crate) fn equal(index: u8, value: u64) -> Result<SeccompRule, BackendError> {
    all([(index, SeccompCmpOp::Eq, value)])
}

/// Returns the rule that the argument at `index` has the bits of `value` among those of `mask`.
pub(crate) fn bits(index: u8, mask: u64, value: u64) -> Result<SeccompRule, BackendError> {
    all([(index, SeccompCmpOp::MaskedEq(mask), value)])
}

/// Returns the rule of `clock_gettime(2)` and `clock_nanosleep(2)` that the clock is one of the system
/// or of the caller. A clock of another process is a negative number, which contains its id.
pub(crate) fn own_clock() -> Result<SeccompRule, BackendError> {
    all([(0, SeccompCmpOp::Lt, MAX_CLOCKS)])
}

/// Returns the rule of socket(2) and socketpair(2) that the family and the type are these, and that
/// the protocol is the default one. The flags of the type are free.
pub(crate) fn socket(family: i32, kind: i32) -> Result<SeccompRule, BackendError> {
    all([
        (0, SeccompCmpOp::Eq, family.unsigned_abs().into()),
        (1, SeccompCmpOp::MaskedEq(SOCKET_TYPES), kind.unsigned_abs().into()),
        (2, SeccompCmpOp::Eq, 0),
    ])
}

/// Returns the rule of getsockopt(2) and setsockopt(2) that the option is this one of `SOL_SOCKET`.
pub(crate) fn socket_option(name: i32) -> Result<SeccompRule, BackendError> {
    all([
        (1, SeccompCmpOp::Eq, libc::SOL_SOCKET.unsigned_abs().into()),
        (2, SeccompCmpOp::Eq, name.unsigned_abs().into()),
    ])
}

/// Returns the rule of sendto(2) that the flags are these, and that there is no address, so that a
/// socket can send to its peer only.
pub(crate) fn send_to_peer(flags: i32) -> Result<SeccompRule, BackendError> {
    let argument =
        |index, length, value| SeccompCondition::new(index, length, SeccompCmpOp::Eq, value);
    SeccompRule::new(vec![
        argument(3, SeccompCmpArgLen::Dword, flags.unsigned_abs().into())?,
        // The address is a pointer, all of which must be zero.
        argument(4, SeccompCmpArgLen::Qword, 0)?,
    ])
}

/// Returns the rule that all conditions hold. A condition is the index of an argument, the
/// comparison and the value.
fn all(
    conditions: impl IntoIterator<Item = (u8, SeccompCmpOp, u64)>,
) -> Result<SeccompRule, BackendError> {
    // All arguments that are compared here are of 32 bits in the kernel, which ignores the upper
    // half of the register. A comparison of 64 bits would refuse a call whose upper half is not
    // zero.
    let conditions = conditions.into_iter().map(|(index, operator, value)| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}
