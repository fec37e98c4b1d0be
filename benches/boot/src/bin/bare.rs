//! Boots a VM with the bare libkrun calls, as the baseline without a shim.
//!
//! ```text
//! bare MEMORY_MIB ROOT PROGRAM [ARGUMENT...]
//! ```
//!
//! Runs PROGRAM with ROOT as its root file system, as a child of libkrun's own init. The output of
//! PROGRAM goes to standard output. The VM has 1 virtual CPU. The dynamic loader finds libkrunfw.

use std::ffi::CString;
use std::process::ExitCode;
use std::ptr::null;

fn main() -> ExitCode {
    let arguments: Vec<CString> = std::env::args()
        .skip(1)
        .map(|word| CString::new(word).expect("no NUL in an argument"))
        .collect();
    let [memory_mib, root, program, words @ ..] = &arguments[..] else {
        eprintln!("usage: bare MEMORY_MIB ROOT PROGRAM [ARGUMENT...]");
        return ExitCode::from(2);
    };
    let Some(memory_mib) = memory_mib.to_str().ok().and_then(|mib| mib.parse().ok()) else {
        eprintln!("expected a number of MiB, found {memory_mib:?}");
        return ExitCode::from(2);
    };
    let words: Vec<_> = words.iter().map(|word| word.as_ptr()).chain([null()]).collect();
    let environment = [c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".as_ptr(), null()];
    // `krun_start_enter` returns only an error, so the results are for the message below.
    //
    // SAFETY: every string ends in NUL and lives until the end of main, every array ends in NULL,
    // and the fds are the standard ones of the process.
    let failed = unsafe {
        let context = krun::krun_create_ctx().cast_unsigned();
        [
            krun::krun_set_vm_config(context, 1, memory_mib),
            krun::krun_add_virtiofs3(context, c"/dev/root".as_ptr(), root.as_ptr(), 0, false),
            krun::krun_set_exec(context, program.as_ptr(), words.as_ptr(), environment.as_ptr()),
            // This VM needs no vsock. Its console gets the standard fds instead of the implicit one.
            krun::krun_disable_implicit_vsock(context),
            krun::krun_disable_implicit_console(context),
            krun::krun_add_virtio_console_default(context, -1, 1, 2),
            krun::krun_start_enter(context),
        ]
    };
    eprintln!("libkrun returned: {failed:?}");
    ExitCode::FAILURE
}
