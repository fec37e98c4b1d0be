//! Filters of system calls, as seccomp(2) takes them on: a call that is not allowed ends the process. A
//! killed thread alone would leave one that hangs.

use std::collections::BTreeMap;

use a3s_box_core::config::SeccompMode;
use libc::SYS_clone3;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// What is allowed, call by call: always, or if one of the rules holds.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The calls that a process may make.
#[derive(Debug)]
pub(crate) struct Filter(Rules);

impl Filter {
    /// Allows these calls.
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

    /// Takes the filter on, with no way back, for this thread and those that it will start.
    pub(crate) fn take_on(self, mode: SeccompMode) -> Result<(), seccompiler::Error> {
        let refusal = match mode {
            SeccompMode::Enforce => SeccompAction::KillProcess,
            SeccompMode::Log => SeccompAction::Log,
        };
        apply(self.0, refusal, SeccompAction::Allow)
    }
}

/// Has glibc start threads with clone(2), whose flags a filter can see: clone3(2) is not there.
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

/// Of mmap(2) and mprotect(2): the memory is not executable.
pub(crate) fn not_executable() -> Result<SeccompRule, BackendError> {
    bits(2, u64::from(libc::PROT_EXEC.unsigned_abs()), 0)
}

/// The argument with this index has this value.
pub(crate) fn equal(index: u8, value: u64) -> Result<SeccompRule, BackendError> {
    condition(index, SeccompCmpOp::Eq, value)
}

/// Of the argument with this index the bits of `mask` are those of `value`.
pub(crate) fn bits(index: u8, mask: u64, value: u64) -> Result<SeccompRule, BackendError> {
    condition(index, SeccompCmpOp::MaskedEq(mask), value)
}

fn condition(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    // The kernel looks at 32 bits of each of these arguments.
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}
