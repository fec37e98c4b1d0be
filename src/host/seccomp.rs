//! Filters of system calls for seccomp(2). A call that a filter does not allow kills the whole process,
//! because a process that loses one thread may hang.

use std::collections::BTreeMap;

use a3s_box_core::config::SeccompMode;
use libc::SYS_clone3;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// The allowed calls. A call without rules is always allowed, others if one of their rules matches.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A filter, by the calls that it allows.
#[derive(Debug)]
pub(crate) struct Filter(Rules);

impl Filter {
    /// Makes a filter that allows `calls`.
    pub(crate) fn allowing(calls: &[i64]) -> Self {
        Self(calls.iter().map(|call| (*call, Vec::new())).collect())
    }

    /// Allows one more call.
    pub(crate) fn allow(&mut self, call: i64) {
        self.allow_if(call, Vec::new());
    }

    /// Allows one more call if one of the conditions holds.
    pub(crate) fn allow_if(&mut self, call: i64, conditions: Vec<SeccompRule>) {
        self.0.insert(call, conditions);
    }

    /// Installs the filter for this thread and the threads that it starts later. A filter cannot be
    /// removed.
    pub(crate) fn install(self, mode: SeccompMode) -> Result<(), seccompiler::Error> {
        let refusal = match mode {
            SeccompMode::Enforce => SeccompAction::KillProcess,
            SeccompMode::Log => SeccompAction::Log,
        };
        apply(self.0, refusal, SeccompAction::Allow)
    }
}

/// Makes clone3(2) fail with ENOSYS, so that glibc starts threads with clone(2) instead. The flags of
/// clone3 are in memory, where a filter cannot check them. The flags of clone are an argument.
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

/// Returns the rule for mmap(2) and mprotect(2) that the memory is not executable.
pub(crate) fn not_executable() -> Result<SeccompRule, BackendError> {
    bits(2, u64::from(libc::PROT_EXEC.unsigned_abs()), 0)
}

/// Returns the rule that the argument `index` is `value`.
pub(crate) fn equal(index: u8, value: u64) -> Result<SeccompRule, BackendError> {
    condition(index, SeccompCmpOp::Eq, value)
}

/// Returns the rule that the argument `index` has the bits of `value` in the bits of `mask`.
pub(crate) fn bits(index: u8, mask: u64, value: u64) -> Result<SeccompRule, BackendError> {
    condition(index, SeccompCmpOp::MaskedEq(mask), value)
}

fn condition(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    // The kernel uses only the lower 32 bits of each argument that has a rule, so the filter must
    // ignore the upper half of the register, too.
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}
