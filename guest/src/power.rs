//! The end of the machine.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot as reboot_kernel};
use nix::unistd::{pause, sync};

use crate::{kmsg, syscall};

/// Exit code for libkrun when the box ended without a status of its workload. The shim has the same
/// code for a failure that is not the workload's.
pub(crate) const EXIT_CODE_FAILURE: u8 = 125;

/// How long the last file operations may take: they need the host's file system, which may
/// hang, and the shim has a deadline of its own for that.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Kills what still runs, writes back what is dirty, and reboots: under libkrun that ends
/// the VMM, with this exit status.
pub(crate) fn reboot(code: u8) -> ! {
    syscall::kill_everything();
    let (done, settled) = mpsc::channel();
    let started = thread::Builder::new().stack_size(64 * 1024).spawn(move || {
        set_exit_code(code);
        sync();
        // Nobody waits any longer if this fails.
        let _ = done.send(());
    });
    if started.is_err() || settled.recv_timeout(SETTLE_TIMEOUT).is_err() {
        kmsg::line("the root file system did not settle before the reboot");
    }
    // A reboot, not a power-off: that one would stop the processor for ever on x86.
    let failed = reboot_kernel(RebootMode::RB_AUTOBOOT);
    kmsg::line(&format!("cannot reboot: {failed:?}"));
    loop {
        pause();
    }
}

fn set_exit_code(code: u8) {
    let result = File::open("/").and_then(|root| syscall::set_exit_code(root.as_fd(), code));
    if let Err(error) = result {
        kmsg::line(&format!("cannot set the exit status of the VMM: {error}"));
    }
}
