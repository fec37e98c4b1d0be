//! The environment of the process, which `/proc/self/environ` and the process's memory keep.
//!
//! A supervisor may have put secrets into it. The VMM must not hold them, because a guest that has
//! taken the VMM over can read its memory.

use std::ffi::CStr;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

unsafe extern "C" {
    /// environ(7): pointers to `NAME=value`, with a null pointer at the end.
    static mut environ: *mut *mut libc::c_char;
}

/// Longest wait for threads that have been joined to leave `/proc/self/task`. They take microseconds,
/// or as long as they wait for a CPU.
const THREAD_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two reads of `/proc/self/task`.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

fn is_single_threaded() -> bool {
    fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

/// Overwrites every variable whose name `is_kept` rejects, in memory and thus also in
/// `/proc/self/environ`, and removes it from `environ(7)`. Returns whether it did.
///
/// It changes nothing in a process with several threads, because another thread may be reading the
/// environment. A thread that was joined can be listed a moment longer, so the check is repeated
/// for a bounded time.
pub fn forget(is_kept: impl Fn(&[u8]) -> bool) -> bool {
    let deadline = Instant::now() + THREAD_EXIT_TIMEOUT;
    while !is_single_threaded() && Instant::now() < deadline {
        thread::sleep(POLL_INTERVAL);
    }
    let is_single_threaded = is_single_threaded();
    // SAFETY: this is the only thread, so no other thread writes the pointer while it is read.
    let mut from = unsafe { environ };
    if !is_single_threaded || from.is_null() {
        return is_single_threaded;
    }
    let mut to = from;
    loop {
        // SAFETY: `from` points into the array of libc: it starts at its first element and the loop
        // ends at the null pointer that terminates the array.
        let variable = unsafe { *from };
        // SAFETY: `to` never passes `from`, so it points into the array. No other thread exists that
        // could read the element.
        unsafe { *to = variable };
        if variable.is_null() {
            return true;
        }
        // SAFETY: each variable is a string that ends in NUL. It is not written to while `text`
        // borrows it.
        let text = unsafe { CStr::from_ptr(variable) }.to_bytes();
        let (length, name) = (text.len(), text.split(|byte| *byte == b'=').next());
        if is_kept(name.unwrap_or_default()) {
            // SAFETY: the element after `to` exists, because `to` never passes `from` and `from` is
            // not at the terminating null pointer.
            to = unsafe { to.add(1) };
        } else {
            // SAFETY: the memory belongs to this process and is writable: the kernel puts the first
            // environment on the stack, and libc puts later variables on the heap. `length` does
            // not include the NUL, which therefore stays.
            unsafe { variable.write_bytes(0, length) };
        }
        // SAFETY: `from` is not at the terminating null pointer, so the next element exists.
        from = unsafe { from.add(1) };
    }
}
