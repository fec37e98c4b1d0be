//! A user namespace with a range of the host's ids.
//!
//! Only a process outside of a user namespace can map more than one id into it
//! (`user_namespaces(7)`), so a process cannot enter a namespace of its own making and map a range
//! there. A child makes the namespace instead, and this process writes the maps:
//!
//! ```text
//!  this process ── clone(CLONE_NEWUSER) ──► child in the new namespace
//!       │ opens /proc/<child>/ns/user            │ waits
//!       │ writes /proc/<child>/{uid,gid}_map     │
//!       └ closes the pipe ──────────────────────►└ exits
//! ```

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// The ids of a user namespace: 0 and the following ids inside are `first` and the following ids
/// outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// The first id of the host.
    pub first: u32,
    /// Number of ids, at least 1.
    pub count: u32,
}

/// Makes a user namespace that no process is in, with this map for user ids and for group ids. The
/// namespace exists as long as the fd.
///
/// Callers must have one thread only, because the child has a copy of this process in which locks
/// of other threads are never released.
///
/// # Errors
///
/// Those of `clone(2)` and of writing the maps (`user_namespaces(7)`): `EPERM` without
/// `CAP_SYS_ADMIN`, `CAP_SETUID` or `CAP_SETGID`, `ENOSPC` beyond
/// `/proc/sys/user/max_user_namespaces`.
pub fn make(map: IdMap) -> io::Result<OwnedFd> {
    let (waits, proceed) = io::pipe()?;
    let child = start_child(waits.as_raw_fd(), proceed.as_raw_fd())?;
    let made = map_ids(child, map);
    // The child reads the end of the pipe and exits.
    drop(proceed);
    reap(child);
    made
}

fn map_ids(child: libc::pid_t, map: IdMap) -> io::Result<OwnedFd> {
    let directory = format!("/proc/{child}");
    let namespace = File::open(format!("{directory}/ns/user"))?;
    let IdMap { first, count } = map;
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("{directory}/{file}"), format!("0 {first} {count}\n"))?;
    }
    Ok(namespace.into())
}

/// Starts a child in a new user namespace. It exits once every `proceed` is closed except for its
/// own copy, which it closes first.
fn start_child(waits: i32, proceed: i32) -> io::Result<libc::pid_t> {
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: without CLONE_VM and with no stack, clone(2) copies the process as fork(2) does. The
    // copy runs `wait_and_exit` only, which takes no lock of the C library and never returns, so no
    // destructor of this process runs twice.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    match libc::pid_t::try_from(child) {
        Ok(0) => wait_and_exit(waits, proceed),
        Ok(child @ 1..) => Ok(child),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until the parent closes its end of the pipe, and ends this process, by system calls alone.
fn wait_and_exit(waits: i32, proceed: i32) -> ! {
    // SAFETY: the fd is this process's copy, which nothing else in it uses.
    unsafe { libc::syscall(libc::SYS_close, proceed) };
    let mut byte = 0_u8;
    loop {
        // SAFETY: the kernel writes at most one byte to the pointer, which refers to a local one.
        let read = unsafe { libc::syscall(libc::SYS_read, waits, &raw mut byte, 1_usize) };
        // A signal interrupts the call with -1.
        if read >= 0 {
            crate::exit::now(0)
        }
    }
}

fn reap(child: libc::pid_t) {
    // SAFETY: the status pointer is null, which waitpid(2) permits.
    while unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}
