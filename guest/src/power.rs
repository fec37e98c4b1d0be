//! Reboots the guest, which ends the VM.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot as reboot_kernel};
use nix::unistd::{pause, sync, syncfs};

use crate::{kmsg, syscall};

/// Exit code for libkrun if there is no status of the workload. It is the shim's own exit status
/// for a failure that the workload has not caused.
pub(crate) const EXIT_CODE_FAILURE: u8 = 125;

/// Maximum time for the last file operations. They use a file system of the host, which can hang.
/// The shim has a deadline of its own for the whole end.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The file systems whose dirty data is written back at the end.
#[derive(Debug)]
pub(crate) enum Outlasting {
    /// All of them.
    All,
    /// The ones at these mount points. The root ends with the box, and writing it to a disk that is
    /// then removed would only take time.
    Mounts(Vec<PathBuf>),
}

/// Kills all processes, writes dirty data back, and reboots with `reboot(2)`. Under libkrun this
/// ends the VMM, with `code` as its exit status.
///
/// `initial_root` is the root in which this process started, or `None` if that is still `/`.
pub(crate) fn reboot(code: u8, initial_root: Option<File>, outlasting: Outlasting) -> ! {
    syscall::kill_everything();
    // Another thread makes the calls that can hang, so that this one can stop waiting for them.
    let (done, settled) = mpsc::channel();
    let started = thread::Builder::new().stack_size(64 * 1024).spawn(move || {
        set_exit_code(code, initial_root);
        write_back(&outlasting);
        // The send fails only after the timeout, when its result does not matter.
        let _ = done.send(());
    });
    if started.is_err() || settled.recv_timeout(SETTLE_TIMEOUT).is_err() {
        kmsg::line("the root file system did not settle before the reboot");
    }
    // A power-off would stop the virtual CPU of an x86 guest without an end of the VM.
    let failed = reboot_kernel(RebootMode::RB_AUTOBOOT);
    kmsg::line(&format!("cannot reboot: {failed:?}"));
    // The end of PID 1 would be a kernel panic. The shim's deadline ends the VM instead.
    loop {
        pause();
    }
}

/// Writes dirty data back. An error has no receiver any more, because the workload has ended.
fn write_back(outlasting: &Outlasting) {
    let Outlasting::Mounts(targets) = outlasting else { return sync() };
    for target in targets {
        // The workload may have unmounted it, which has written its data.
        if let Ok(directory) = File::open(target) {
            let _no_receiver = syncfs(directory);
        }
    }
}

/// Passes the exit code to libkrun. An error is only logged, because the shim takes the status of
/// the workload from the control connection.
fn set_exit_code(code: u8, initial_root: Option<File>) {
    let root = initial_root.map_or_else(|| File::open("/"), Ok);
    let result = root.and_then(|root| syscall::set_exit_code(root.as_fd(), code));
    if let Err(error) = result {
        kmsg::line(&format!("cannot set the exit status of the VMM: {error}"));
    }
}
