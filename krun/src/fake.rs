//! A libkrun without a VM, for tests: a process plays the guest.
//!
//! The calls have libkrun's signatures and record what they are given. `krun_start_enter` starts
//! the program in `A3S_BOX_FAKE_GUEST` and ends as libkrun would:
//!
//! | the program | the "VM" |
//! |---|---|
//! | gets each vsock port as `VSOCK_<port>=<socket path>` in its environment | |
//! | reads the content of the last overlay file on stdin | |
//! | writes to the console ports as stdout and stderr | |
//! | is preceded by a line on fd 1, as a library that prints, and by a record of a thread | |
//! | exits with n | `_exit(n)` |
//! | is killed by a signal | `abort()`, as a panicking worker of libkrun |

use std::ffi::{CStr, c_char, c_int};
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

#[derive(Default)]
struct Recorded {
    config: Vec<u8>,
    ports: Vec<(String, String)>,
    console: Option<(OwnedFd, OwnedFd)>,
}

static RECORDED: Mutex<Option<Recorded>> = Mutex::new(None);

fn record(change: impl FnOnce(&mut Recorded)) -> i32 {
    change(RECORDED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default());
    0
}

pub(crate) extern "C" fn krun_create_ctx() -> i32 {
    record(|_| {})
}

pub(crate) extern "C" fn krun_get_max_vcpus() -> i32 {
    16
}

pub(crate) extern "C" fn krun_set_vm_config(_ctx: u32, _vcpus: u8, _mib: u32) -> i32 {
    0
}

pub(crate) extern "C" fn krun_disable_implicit_init(_ctx: u32) -> i32 {
    0
}

pub(crate) unsafe extern "C" fn krun_add_virtiofs3(
    _ctx: u32,
    _tag: *const c_char,
    _path: *const c_char,
    _shm_bytes: u64,
    _read_only: bool,
) -> i32 {
    0
}

pub(crate) unsafe extern "C" fn krun_fs_add_overlay_file(
    _ctx: u32,
    _tag: *const c_char,
    _path: *const c_char,
    data: *const u8,
    length: usize,
    _mode: u32,
    _one_shot: bool,
) -> i32 {
    // SAFETY: the caller passes a live buffer of this length, as libkrun's contract demands.
    let content = unsafe { std::slice::from_raw_parts(data, length) };
    record(|recorded| recorded.config = content.to_vec())
}

pub(crate) extern "C" fn krun_disable_implicit_vsock(_ctx: u32) -> i32 {
    0
}

pub(crate) extern "C" fn krun_add_vsock(_ctx: u32, _tsi: u32) -> i32 {
    0
}

pub(crate) unsafe extern "C" fn krun_add_vsock_port2(
    _ctx: u32,
    port: u32,
    path: *const c_char,
    _listen: bool,
) -> i32 {
    // SAFETY: the caller passes a string that ends in NUL, as libkrun's contract demands.
    let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
    record(|recorded| recorded.ports.push((format!("VSOCK_{port}"), path)))
}

pub(crate) extern "C" fn krun_disable_implicit_console(_ctx: u32) -> i32 {
    0
}

pub(crate) unsafe extern "C" fn krun_add_virtio_console_default(
    _ctx: u32,
    _input: c_int,
    output: c_int,
    error: c_int,
) -> i32 {
    let duplicate = |fd| {
        // SAFETY: the caller passes an open fd, which it does not close (libkrun's contract).
        unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
    };
    match (duplicate(output), duplicate(error)) {
        (Ok(output), Ok(error)) => record(|recorded| recorded.console = Some((output, error))),
        _ => -libc::EBADF,
    }
}

pub(crate) extern "C" fn krun_start_enter(_ctx: u32) -> i32 {
    let recorded = RECORDED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (Some(recorded), Some(program)) = (recorded, std::env::var_os("A3S_BOX_FAKE_GUEST")) else {
        return -libc::ENOENT;
    };
    let noise = b"a library prints to standard output\n";
    // SAFETY: the buffer is live and of this length. What becomes of the line is not our matter.
    unsafe { libc::write(libc::STDOUT_FILENO, noise.as_ptr().cast(), noise.len()) };
    // As a worker of libkrun does it.
    let worker = std::thread::spawn(|| log::info!(target: "krun_devices::fake", "a worker logs"));
    // It does not panic.
    let _joined = worker.join();
    let mut command = Command::new(program);
    command.envs(recorded.ports).stdin(Stdio::piped());
    if let Some((output, error)) = recorded.console {
        command.stdout(output).stderr(error);
    }
    // SAFETY: prctl with these arguments is async-signal-safe and touches no memory.
    let dies_with_us = || match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: the closure only makes the system call above.
    unsafe { command.pre_exec(dies_with_us) };
    let Ok(mut guest) = command.spawn() else { return -libc::ENOENT };
    if let Some(mut stdin) = guest.stdin.take() {
        // A guest that does not read its config is one of the cases to test.
        let _ignored = stdin.write_all(&recorded.config);
    }
    match guest.wait().map(|status| status.code()) {
        // SAFETY: does not return; this is how libkrun ends.
        Ok(Some(code)) => unsafe { libc::_exit(code) },
        Ok(None) => std::process::abort(),
        Err(_) => -libc::EINVAL,
    }
}
