//! System calls of attempts, with the error that the host kernel returns.

use std::ffi::CString;
use std::io;

/// An attempt. `Ok` means that it succeeded, although the confinement should prevent it.
pub(super) type Attempt = fn() -> io::Result<()>;

/// Converts the result of a system call: a negative value means that `errno` has the error.
pub(super) fn result(value: i64) -> io::Result<()> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(super) fn raw(call: i64, arguments: [i64; 5]) -> io::Result<()> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the arguments are numbers and null pointers. The host kernel checks pointers and
    // returns EFAULT for bad ones, so no call accesses memory of this process. A call that succeeds
    // can change the process (`fork`, `unshare`). The caller then only writes one line and ends the
    // process.
    result(unsafe { libc::syscall(call, a, b, c, d, e) })
}

pub(super) fn path_call(call: i64, path: &str, argument: i64) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: the path must end in NUL and outlive the call, which a local `CString` does. The
    // other arguments are numbers or null pointers.
    result(unsafe { libc::syscall(call, path.as_ptr(), argument, 0_i64) })
}

/// Makes a call whose first two arguments are a directory and a path.
pub(super) fn at_call(call: i64, path: &str, [a, b]: [i64; 2]) -> io::Result<()> {
    let path = CString::new(path)?;
    let directory = i64::from(libc::AT_FDCWD);
    // SAFETY: the path must end in NUL and outlive the call, which a local `CString` does. The
    // other arguments are numbers or null pointers.
    result(unsafe { libc::syscall(call, directory, path.as_ptr(), a, b, 0_i64) })
}

pub(super) fn open(path: &str, flags: i32) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: the path must end in NUL and outlive the call, which a local `CString` does.
    result(i64::from(unsafe { libc::open(path.as_ptr(), flags, 0o600) }))
}

pub(super) fn open_at(directory: i32, path: &str, flags: i32) -> io::Result<i32> {
    let path = CString::new(path)?;
    // SAFETY: the path must end in NUL and outlive the call, which a local `CString` does. A number
    // that is no fd of a directory makes the call fail with EBADF or ENOTDIR.
    let fd = unsafe { libc::openat(directory, path.as_ptr(), flags, 0o600) };
    result(i64::from(fd)).map(|()| fd)
}

pub(super) fn parent() -> i64 {
    // SAFETY: the function takes no argument and cannot fail.
    i64::from(unsafe { libc::getppid() })
}
