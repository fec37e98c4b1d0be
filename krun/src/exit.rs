//! The end of the process.
//!
//! libkrun ends a VM with `libc::_exit` on the thread that entered it: no destructor runs and no
//! `atexit` handler. Defining `_exit` in the executable takes precedence over libc's, so the code
//! can be seen, and replaced, before the process ends.

use std::ffi::c_int;
use std::sync::OnceLock;

type Hook = Box<dyn Fn(i32) -> u8 + Send + Sync>;

static HOOK: OnceLock<Hook> = OnceLock::new();

/// Calls `hook` with libkrun's exit code when libkrun ends the process; the process then ends with
/// what the hook returns. The hook must return in bounded time. Only the first call counts.
pub fn intercept(hook: impl Fn(i32) -> u8 + Send + Sync + 'static) {
    // Names the symbol, so that a linker that takes objects from archives on demand takes ours.
    let ours: extern "C" fn(c_int) -> ! = _exit;
    std::hint::black_box(ours);
    // A second hook would mean a second VM in this process, which libkrun does not allow.
    let _first_wins = HOOK.set(Box::new(hook));
}

/// Stands in front of libc's.
// SAFETY: same signature and contract as the function of libc that it replaces: it does not
// return. It may be called by any thread and reads only a `OnceLock`.
#[unsafe(no_mangle)]
extern "C" fn _exit(code: c_int) -> ! {
    let low_byte = code.to_le_bytes()[0];
    a3s_box_sys::exit::now(HOOK.get().map_or(low_byte, |hook| hook(code)))
}
