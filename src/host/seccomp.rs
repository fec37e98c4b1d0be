//! Filters of system calls (`seccomp(2)`).
//!
//! A call that is not allowed kills the whole process. Killing only the thread would leave a
//! process that hangs, because other threads wait for it.

use std::collections::BTreeMap;

use a3s_box_core::config::SeccompMode;
use libc::SYS_clone3;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// Rules by the number of the call. A call without rules always matches; otherwise one rule must
/// hold.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The calls that a process may make.
#[derive(Debug)]
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

/// Installs a filter that makes clone3(2) fail with ENOSYS. glibc then starts threads with
/// clone(2).
///
/// clone3(2) takes its flags in memory, which a filter cannot read. clone(2) takes them in a
/// register, so that a later filter can allow threads and refuse processes and namespaces.
pub(crate) fn hide_clone3() -> Result<(), seccompiler::Error> {
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    apply(BTreeMap::from([(SYS_clone3, Vec::new())]), SeccompAction::Allow, missing)
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

/// Returns the rule that the argument at `index` is `value`.
pub(crate) fn equal(index: u8, value: u64) -> Result<SeccompRule, BackendError> {
    condition(index, SeccompCmpOp::Eq, value)
}

/// Returns the rule that the argument at `index` has the bits of `value` among those of `mask`.
pub(crate) fn bits(index: u8, mask: u64, value: u64) -> Result<SeccompRule, BackendError> {
    condition(index, SeccompCmpOp::MaskedEq(mask), value)
}

fn condition(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    // All arguments that are compared here are of 32 bits in the kernel, which ignores the upper
    // half of the register. A comparison of 64 bits would refuse a call whose upper half is not
    // zero.
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}
