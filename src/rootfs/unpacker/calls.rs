//! The system calls that are left to the unpacker. Any other call kills it.
//!
//! It reads and writes files, and starts threads. It has no call that reaches another process, a
//! network or a device, mounts a file system, or runs a program.

use a3s_box_core::config::SeccompMode;
use libc::{
    SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close,
    SYS_copy_file_range, SYS_exit, SYS_exit_group, SYS_fallocate, SYS_fchmod, SYS_fchmodat,
    SYS_fchmodat2, SYS_fchown, SYS_fchownat, SYS_fcntl, SYS_fdatasync, SYS_fgetxattr,
    SYS_flistxattr, SYS_flock, SYS_fremovexattr, SYS_fsetxattr, SYS_fstat, SYS_fstatfs, SYS_fsync,
    SYS_ftruncate, SYS_futex, SYS_getdents64, SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getpid,
    SYS_getrandom, SYS_gettid, SYS_getuid, SYS_lgetxattr, SYS_linkat, SYS_llistxattr,
    SYS_lremovexattr, SYS_lseek, SYS_lsetxattr, SYS_madvise, SYS_mkdirat, SYS_mknodat, SYS_mmap,
    SYS_mprotect, SYS_mremap, SYS_munmap, SYS_newfstatat, SYS_openat, SYS_openat2, SYS_ppoll,
    SYS_prctl, SYS_pread64, SYS_pwrite64, SYS_read, SYS_readlinkat, SYS_readv, SYS_renameat,
    SYS_renameat2, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask,
    SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield, SYS_set_robust_list, SYS_sigaltstack,
    SYS_statfs, SYS_statx, SYS_symlinkat, SYS_sync_file_range, SYS_syncfs, SYS_tgkill,
    SYS_unlinkat, SYS_utimensat, SYS_write, SYS_writev,
};

use crate::host::seccomp::{Filter, bits, equal, not_executable, own_clock, pretend_missing};

/// Calls on memory and threads of this process. mmap(2), mprotect(2), clone(2) and prctl(2) have
/// conditions. Two calls fail in the filter of [`pretend_missing`].
const PROCESS: [i64; 25] = [
    SYS_brk,
    SYS_clone3,
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_getuid,
    SYS_madvise,
    SYS_mremap,
    SYS_munmap,
    SYS_ppoll,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
];

/// Calls on open files.
const OPEN_FILES: [i64; 29] = [
    SYS_close,
    SYS_copy_file_range,
    SYS_fallocate,
    SYS_fchmod,
    SYS_fchown,
    SYS_fdatasync,
    SYS_fgetxattr,
    SYS_flistxattr,
    SYS_flock,
    SYS_fremovexattr,
    SYS_fsetxattr,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    SYS_getdents64,
    SYS_lgetxattr,
    SYS_llistxattr,
    SYS_lremovexattr,
    SYS_lseek,
    SYS_lsetxattr,
    SYS_pread64,
    SYS_pwrite64,
    SYS_read,
    SYS_readv,
    SYS_sync_file_range,
    SYS_syncfs,
    SYS_write,
    SYS_writev,
];

/// Calls that name files. Landlock limits what they reach.
const NAMES: [i64; 17] = [
    SYS_fchmodat2,
    SYS_fchmodat,
    SYS_fchownat,
    SYS_linkat,
    SYS_mkdirat,
    SYS_mknodat,
    SYS_newfstatat,
    SYS_openat,
    SYS_openat2,
    SYS_readlinkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_statfs,
    SYS_statx,
    SYS_symlinkat,
    SYS_unlinkat,
    SYS_utimensat,
];

/// Old calls that glibc still makes on x86-64, in place of newer ones in the lists above.
#[cfg(target_arch = "x86_64")]
const OLD: [i64; 2] = [libc::SYS_chmod, libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const OLD: [i64; 0] = [];

/// Commands of fcntl(2): duplicates of fds and their flags, and locks on layers. `F_OFD_GETLK` and
/// `F_OFD_SETLK` are such locks.
const COMMANDS: [i32; 7] = [
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_GETFL,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_SETFD,
    libc::F_SETFL,
];

/// Installs the filter, which cannot be removed again. The caller must have one thread only.
pub(super) fn restrict(mode: SeccompMode) -> Result<(), seccompiler::Error> {
    let mut filter = Filter::allowing(&[&PROCESS[..], &OPEN_FILES, &NAMES, &OLD].concat());
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
    // The order is fixed: the second filter does not allow the call that installs another one.
    pretend_missing()?;
    filter.install(mode)
}
