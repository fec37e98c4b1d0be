//! The end of the process.
//!
//! libkrun ends a VM with `libc::_exit(code)` (krun-vmm 1.19.7, `src/lib.rs`, `Vmm::stop`) on the
//! thread that entered it. No destructor and no `atexit` handler runs. A function `_exit` that the
//! executable defines takes precedence over the one of libc, so this module sees the code and can
//! replace it before the process ends.

use std::ffi::c_int;
use std::sync::OnceLock;

type Hook = Box<dyn Fn(i32) -> u8 + Send + Sync>;

static HOOK: OnceLock<Hook> = OnceLock::new();

/// Registers `hook`, which receives libkrun's exit code when libkrun ends the process and returns
/// the exit status that the process then ends with.
///
/// The hook must return in bounded time, because the process cannot end before it does. Only the
/// first call of this function has an effect.
pub fn intercept(hook: impl Fn(i32) -> u8 + Send + Sync + 'static) {
    // A linker takes an object out of an archive only if a symbol of it is referenced. This
    // reference makes it take the object with our `_exit`.
    let ours: extern "C" fn(c_int) -> ! = _exit;
    std::hint::black_box(ours);
    // A second hook would mean a second VM in this process, which libkrun does not allow.
    let _first_wins = HOOK.set(Box::new(hook));
}

/// Replaces `_exit(2)` of libc in this executable.
// SAFETY: an exported symbol must have the signature and the contract of the symbol that it
// replaces. Both `_exit` take one `int`, do not return, and may be called by any thread at any
// time. This one reads a `OnceLock`, which is safe on every thread.
#[unsafe(no_mangle)]
extern "C" fn _exit(code: c_int) -> ! {
    // Without a hook the status is the low byte of the code, as `_exit(2)` defines it.
    let low_byte = code.to_le_bytes()[0];
    a3s_box_sys::exit::now(HOOK.get().map_or(low_byte, |hook| hook(code)))
}
