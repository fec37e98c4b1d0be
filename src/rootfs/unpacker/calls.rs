//! The system calls that are left to an unpacker, each with the reason why its arguments can be free:
//! what the call cannot reach, or what else limits it. [`filter`] has the calls with conditions. Any
//! other call kills the process.
//!
//! An unpacker that reads a layer into a layer file, or merges layer files, works on open files
//! alone. One that makes a tree also names files, in a root that has nothing but its staging
//! directory (`root.rs`).
//!
//! `tests/wire/unpacker_calls.rs` compares these lists with the calls that unpackers make, and gives
//! a reason for each call that it does not see.

use a3s_box_core::config::SeccompMode;
use libc::{
    SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close,
    SYS_copy_file_range, SYS_exit, SYS_exit_group, SYS_fchmod, SYS_fchmodat, SYS_fchown,
    SYS_fchownat, SYS_fcntl, SYS_flistxattr, SYS_fremovexattr, SYS_fsetxattr, SYS_fstat,
    SYS_ftruncate, SYS_futex, SYS_getdents64, SYS_getpid, SYS_getrandom, SYS_gettid, SYS_linkat,
    SYS_lseek, SYS_lsetxattr, SYS_madvise, SYS_mkdirat, SYS_mknodat, SYS_mmap, SYS_mprotect,
    SYS_mremap, SYS_munmap, SYS_newfstatat, SYS_openat, SYS_openat2, SYS_prctl, SYS_pread64,
    SYS_pwrite64, SYS_read, SYS_readlinkat, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction,
    SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield,
    SYS_set_robust_list, SYS_sigaltstack, SYS_statx, SYS_symlinkat, SYS_tgkill, SYS_unlinkat,
    SYS_utimensat, SYS_write, SYS_writev,
};

use crate::host::seccomp::{Filter, bits, equal, not_executable, own_clock, pretend_missing};

/// The number of a call, and the reason why its arguments are free.
type Call = (i64, &'static str);

/// The lists for each unpacker.
const OF_EACH: [&[Call]; 2] = [&PROCESS, &OPEN_FILES];

/// Further lists for an unpacker that makes a tree.
const OF_TREES: [&[Call]; 3] = [&ATTRIBUTES, &NAMES, &OLD];

/// Calls on memory and threads. Two of them fail in the filter of [`pretend_missing`].
const PROCESS: [Call; 20] = [
    (SYS_brk, "the heap of this process"),
    (SYS_clone3, "the first filter makes it fail"),
    (SYS_exit, "ends this thread"),
    (SYS_exit_group, "ends this process"),
    (SYS_futex, "wakes only processes that share memory with this one"),
    (SYS_getpid, "no arguments"),
    (SYS_getrandom, "random bytes"),
    (SYS_gettid, "no arguments"),
    (SYS_madvise, "memory of this process"),
    (SYS_mremap, "memory of this process, whose protection it keeps"),
    (SYS_munmap, "memory of this process"),
    (SYS_restart_syscall, "no arguments: and resumes a call that was allowed"),
    (SYS_rseq, "memory of this thread"),
    (SYS_rt_sigaction, "handlers of this process"),
    (SYS_rt_sigprocmask, "the mask of this thread"),
    (SYS_rt_sigreturn, "no arguments: and restores registers of this thread"),
    (SYS_sched_getaffinity, "the first filter makes it fail for all threads but the caller"),
    (SYS_sched_yield, "no arguments"),
    (SYS_set_robust_list, "memory of this thread"),
    (SYS_sigaltstack, "memory of this thread"),
];

/// Calls on open files: the socket and the pipes to the shim, and the files of the task. A layer file
/// in the cache is open for reading only.
const OPEN_FILES: [Call; 9] = [
    (SYS_close, "fds of this process"),
    (SYS_copy_file_range, "bytes of files that are open for reading and for writing"),
    (SYS_fstat, "the attributes of an open file"),
    (SYS_lseek, "a position in an open file"),
    (SYS_pread64, "bytes of an open file"),
    (SYS_read, "bytes of an open file"),
    (SYS_statx, "attributes of files in the root, or of open files; they are not changed"),
    (SYS_write, "bytes of a file that is open for writing"),
    (SYS_writev, "bytes of a file that is open for writing"),
];

/// Calls on mode, owner, size and attributes of open files. All that an unpacker of a tree has open,
/// apart from sockets, pipes and its lock, is in its staging directory.
const ATTRIBUTES: [Call; 8] = [
    (SYS_fchmod, "files of the tree, and the lock of the layer"),
    (SYS_fchown, "files of the tree, and the lock of the layer"),
    (SYS_flistxattr, "the attributes of an open file"),
    (SYS_fremovexattr, "files of the tree, and the lock of the layer"),
    (SYS_fsetxattr, "files of the tree, and the lock of the layer"),
    (SYS_ftruncate, "files of the tree, and the lock of the layer"),
    (SYS_getdents64, "the names in an open directory"),
    (SYS_pwrite64, "bytes of a file that is open for writing"),
];

/// Calls that name files. The root of the process has no files but those of its staging directory.
const NAMES: [Call; 12] = [
    (SYS_fchmodat, "the root has the staging directory only"),
    (SYS_fchownat, "the root has the staging directory only"),
    (SYS_linkat, "the root has the staging directory only, which Landlock repeats"),
    (SYS_lsetxattr, "the root has the staging directory only"),
    (SYS_mkdirat, "the root has the staging directory only, which Landlock repeats"),
    (SYS_newfstatat, "the root has the staging directory only"),
    (SYS_openat, "the root has the staging directory only, which Landlock repeats"),
    (SYS_openat2, "the root has the staging directory only, which Landlock repeats"),
    (SYS_readlinkat, "the root has the staging directory only"),
    (SYS_symlinkat, "its target is text, and leads to nothing but the root of this process"),
    (SYS_unlinkat, "the root has the staging directory only, which Landlock repeats"),
    (SYS_utimensat, "the root has the staging directory only"),
];

/// Old calls that glibc still makes on x86-64, in place of newer ones in the lists above.
#[cfg(target_arch = "x86_64")]
const OLD: [Call; 1] = [(libc::SYS_chmod, "as `fchmodat`")];
#[cfg(not(target_arch = "x86_64"))]
const OLD: [Call; 0] = [];

/// Commands of fcntl(2): duplicates of fds; flags of the fd of a directory, by fdopendir(3); and whether
/// an fd is open, which Rust's debug builds ask before they close it.
const COMMANDS: [i32; 4] = [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_GETFL, libc::F_SETFD];

/// Installs the filter, which cannot be removed again. The caller must have one thread only.
///
/// `names_files` adds the calls of an unpacker that makes a tree.
pub(super) fn restrict(mode: SeccompMode, names_files: bool) -> Result<(), seccompiler::Error> {
    // The order is fixed: the second filter does not allow the call that installs another one.
    pretend_missing()?;
    filter(names_files)?.install(mode)
}

/// Returns the lists of the calls with free arguments.
fn free_calls(names_files: bool) -> impl Iterator<Item = &'static Call> {
    let of_trees = OF_TREES.into_iter().filter(move |_| names_files);
    OF_EACH.into_iter().chain(of_trees).flatten()
}

fn filter(names_files: bool) -> Result<Filter, seccompiler::Error> {
    let free: Vec<i64> = free_calls(names_files).map(|(call, _)| *call).collect();
    let mut filter = Filter::allowing(&free);
    filter.allow_if(SYS_mmap, vec![not_executable()?]);
    filter.allow_if(SYS_mprotect, vec![not_executable()?]);
    // CLONE_THREAD allows threads and excludes processes.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    filter.allow_if(SYS_clone, vec![bits(0, thread, thread)?]);
    // abort(3) signals its own thread.
    filter.allow_if(SYS_tgkill, vec![equal(0, std::process::id().into())?]);
    let options = [libc::PR_SET_NAME, libc::PR_SET_VMA];
    let options = options.map(|option| equal(0, option.unsigned_abs().into()));
    filter.allow_if(SYS_prctl, options.into_iter().collect::<Result<_, _>>()?);
    filter.allow_if(SYS_clock_gettime, vec![own_clock()?]);
    filter.allow_if(SYS_clock_nanosleep, vec![own_clock()?]);
    let commands = COMMANDS.map(|command| equal(1, command.unsigned_abs().into()));
    filter.allow_if(SYS_fcntl, commands.into_iter().collect::<Result<_, _>>()?);
    if names_files {
        // Whiteouts have the device 0, and named pipes none.
        filter.allow_if(SYS_mknodat, vec![equal(3, 0)?]);
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_call_with_free_arguments_has_a_reason() {
        for names_files in [false, true] {
            let listed: Vec<&Call> = free_calls(names_files).collect();
            let with_reason: BTreeSet<i64> = listed
                .iter()
                .filter(|(_, reason)| !reason.trim().is_empty())
                .map(|(call, _)| *call)
                .collect();
            // A call in two lists, or without a reason, makes the numbers differ.
            assert_eq!(with_reason.len(), listed.len());
            // A condition takes the place of an entry in a list.
            assert_eq!(filter(names_files).unwrap().free_calls(), with_reason);
        }
    }

    #[test]
    fn unpacker_of_a_layer_file_has_no_call_that_names_files() {
        let filter = filter(false).unwrap();
        let of_trees = OF_TREES.into_iter().flatten().map(|(call, _)| *call);
        for call in of_trees.chain([SYS_mknodat]) {
            assert!(!filter.has(call), "call {call}");
        }
    }
}
