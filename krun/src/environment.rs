//! The environment of the process: what it was given, and what a guest that has taken it over would
//! find in its memory.

use std::ffi::CStr;
use std::fs;

unsafe extern "C" {
    /// environ(7): pointers to `NAME=value`, with a null pointer at the end.
    static mut environ: *mut *mut libc::c_char;
}

/// Overwrites all variables but those whose name `is_kept` says yes to, also in `/proc/self/environ`.
/// Does nothing in a process with more than one thread, which another one may be reading them in; says
/// whether it did.
pub fn forget(is_kept: impl Fn(&[u8]) -> bool) -> bool {
    let is_alone = fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    // SAFETY: this is the only thread, so nobody writes the pointer while it is read.
    let mut from = unsafe { environ };
    if !is_alone || from.is_null() {
        return is_alone;
    }
    let mut to = from;
    loop {
        // SAFETY: `from` walks over the array that libc keeps, and stops at its end below.
        let variable = unsafe { *from };
        // SAFETY: `to` is never behind `from`, so it is in the array; nobody else reads it now.
        unsafe { *to = variable };
        if variable.is_null() {
            return true;
        }
        // SAFETY: each variable is a string that ends in NUL, and is not changed while it is borrowed.
        let text = unsafe { CStr::from_ptr(variable) }.to_bytes();
        let (length, name) = (text.len(), text.split(|byte| *byte == b'=').next());
        if is_kept(name.unwrap_or_default()) {
            // SAFETY: not at the end of the array yet.
            to = unsafe { to.add(1) };
        } else {
            // SAFETY: the memory is this process's own and writable: the kernel puts the first environment on
            // the stack, and libc puts what was set later on the heap. The NUL stays.
            unsafe { variable.write_bytes(0, length) };
        }
        // SAFETY: not at the end of the array yet.
        from = unsafe { from.add(1) };
    }
}
