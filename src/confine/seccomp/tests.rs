use std::collections::BTreeSet;

use super::*;
use crate::spec::{EgressSpec, PasstSpec};

/// Calls `check` with the needs of each kind of box.
fn for_each_box(check: impl Fn(Needs<'_>)) {
    let passt = PasstSpec {
        egress: EgressSpec::Deny,
        not_host: false,
        publish: Vec::new(),
        dns: Vec::new(),
    };
    for network in [NetworkSpec::None, NetworkSpec::Tsi, NetworkSpec::Passt(passt)] {
        for (has_directories, has_journal) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            check(Needs { network: &network, has_directories, has_journal, sockets: &[] });
        }
    }
}

#[test]
fn each_call_with_free_arguments_has_a_reason() {
    for_each_box(|needs| {
        let listed = free_calls(needs).into_iter().flatten();
        let with_reason: BTreeSet<i64> =
            listed.filter(|(_, reason)| !reason.trim().is_empty()).map(|(call, _)| *call).collect();
        let free = filter(needs).unwrap().free_calls();
        let without_reason: Vec<i64> = free.difference(&with_reason).copied().collect();
        assert!(without_reason.is_empty(), "numbers of the calls: {without_reason:?}; {needs:?}");
        // A condition takes the place of an entry in a list, which would then be wrong.
        let limited: Vec<i64> = with_reason.difference(&free).copied().collect();
        assert!(limited.is_empty(), "the arguments of these calls are not free: {limited:?}");
    });
}

/// Calls that take the id of a process or thread, or a file that stands for one. Those that are
/// allowed with a condition are not among them.
const CALLS_ON_PROCESSES: [i64; 31] = [
    libc::SYS_get_robust_list,
    libc::SYS_getpgid,
    libc::SYS_getpriority,
    libc::SYS_getsid,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_kcmp,
    libc::SYS_kill,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_tkill,
];

#[test]
fn no_call_on_other_processes_is_allowed() {
    for_each_box(|needs| {
        let filter = filter(needs).unwrap();
        let allowed: Vec<&i64> =
            CALLS_ON_PROCESSES.iter().filter(|call| filter.has(**call)).collect();
        assert!(allowed.is_empty(), "numbers of the calls: {allowed:?}; {needs:?}");
    });
}

#[test]
fn box_without_directories_changes_no_attributes_and_links() {
    for_each_box(|needs| {
        let filter = filter(needs).unwrap();
        for (call, _) in calls::DIRECTORIES {
            assert_eq!(filter.has(call), needs.has_directories, "call {call}; {needs:?}");
        }
    });
}

#[test]
fn requests_of_kvm_are_distinct_and_have_its_type() {
    let all = [&requests::KVM[..], &requests::KVM_OF_ARCHITECTURE].concat();
    let numbers: BTreeSet<u64> = all.iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers.len(), all.len());
    for (name, number) in all {
        // The type of a request is its second byte (`asm-generic/ioctl.h`).
        assert_eq!(number >> 8 & 0xff, 0xae, "{name}");
    }
}
