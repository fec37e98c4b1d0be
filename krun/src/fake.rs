//! A libkrun without a VM, for tests: a process plays the guest.
//!
//! The calls have libkrun's signatures and record what they are given. The program in
//! `A3S_BOX_FAKE_GUEST` is started with the guest kernel, since a shim that has confined itself starts none;
//! `krun_start_enter` tells it what was recorded, and ends as libkrun would:
//!
//! | the program | the "VM" |
//! |---|---|
//! | reads lines `VSOCK_<port>=<socket path>` and `CONFIG_BYTES=<n>`, an empty line, and the last overlay file, of n bytes, on stdin | |
//! | ends when its stdin does | |
//! | writes to the console ports as stdout and stderr | |
//! | is preceded by a line on fd 1, as a library that prints | |
//! | exits with n | `_exit(n)` |
//! | is killed by a signal | `abort()`, as a panicking worker of libkrun |
//!
//! With `A3S_BOX_FAKE_PROBE` there is no guest: the VMM itself tries to break out ([`probe`]).

mod probe;
mod recorded;

use std::ffi::{CStr, c_char, c_int};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use self::recorded::{RECORDED, record};

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
    tag: *const c_char,
    path: *const c_char,
    _shm_bytes: u64,
    read_only: bool,
) -> i32 {
    // SAFETY: the caller passes a string that ends in NUL, as libkrun's contract demands.
    let tag = unsafe { CStr::from_ptr(tag) };
    // SAFETY: as above.
    let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
    if tag == c"/dev/root" {
        return 0;
    }
    record(|recorded| recorded.shares.push((path, read_only)))
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

pub(crate) unsafe extern "C" fn krun_add_net_unixstream(
    _ctx: u32,
    _path: *const c_char,
    socket: c_int,
    _mac: *const u8,
    _features: u32,
    _flags: u32,
) -> i32 {
    // It stays open until the process ends, as with libkrun.
    if socket < 0 { -libc::EINVAL } else { 0 }
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

static GUEST: Mutex<Option<Child>> = Mutex::new(None);

/// Starts the program that plays the guest, if there is one.
pub(crate) fn start_guest() -> io::Result<()> {
    let Some(program) = std::env::var_os("A3S_BOX_FAKE_GUEST") else { return Ok(()) };
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let guest = command.spawn()?;
    GUEST.lock().unwrap_or_else(PoisonError::into_inner).replace(guest);
    Ok(())
}

pub(crate) extern "C" fn krun_start_enter(_ctx: u32) -> i32 {
    if let Some(name) = std::env::var_os("A3S_BOX_FAKE_PROBE") {
        probe::run(&name.to_string_lossy());
    }
    let recorded = RECORDED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let guest = GUEST.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (Some(recorded), Some(mut guest)) = (recorded, guest) else { return -libc::ENOENT };
    let noise = b"a library prints to standard output\n";
    // SAFETY: the buffer is live and of this length. What becomes of the line is not our matter.
    unsafe { libc::write(libc::STDOUT_FILENO, noise.as_ptr().cast(), noise.len()) };
    // As a worker of libkrun does it.
    let worker = std::thread::spawn(|| log::info!(target: "krun_devices::fake", "a worker logs"));
    // It does not panic.
    let _joined = worker.join();
    // Open for as long as this process lives: the guest ends with it.
    let stdin = guest.stdin.take();
    if let Some(mut stdin) = stdin.as_ref() {
        let ports: String =
            recorded.ports.iter().map(|(name, path)| format!("{name}={path}\n")).collect();
        let bytes = recorded.config.len();
        // A guest that does not read its config is one of the cases to test.
        let _ignored = stdin.write_all(format!("{ports}CONFIG_BYTES={bytes}\n\n").as_bytes());
        let _ignored = stdin.write_all(&recorded.config);
    }
    if let Some((output, error)) = recorded.console {
        relay(&mut guest, output, error);
    }
    match guest.wait().map(|status| status.code()) {
        // SAFETY: does not return; this is how libkrun ends.
        Ok(Some(code)) => unsafe { libc::_exit(code) },
        Ok(None) => std::process::abort(),
        Err(_) => -libc::EINVAL,
    }
}

/// Copies what the guest writes to the console's ports, until it has ended.
fn relay(guest: &mut Child, output: OwnedFd, error: OwnedFd) {
    let stdout = guest.stdout.take().map(|from| copy(from, output));
    let stderr = guest.stderr.take().map(|from| copy(from, error));
    for thread in [stdout, stderr].into_iter().flatten() {
        // A thread that failed lost output, which the tests see.
        let _joined = thread.join();
    }
}

fn copy(mut from: impl Read + Send + 'static, to: OwnedFd) -> JoinHandle<io::Result<u64>> {
    let mut to = File::from(to);
    std::thread::spawn(move || {
        // Not `io::copy`, whose splice is a call of its own.
        let (mut buffer, mut copied) = (vec![0; 64 * 1024], 0);
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(copied);
            }
            to.write_all(buffer.get(..count).unwrap_or_default())?;
            copied += count as u64;
        }
    })
}
