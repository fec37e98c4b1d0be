//! The parent process, whose death stops the box if `die_with_parent` is set.
//!
//! The kernel signals the death of the parent (`PR_SET_PDEATHSIG`, prctl(2)). It also sends that
//! signal when only the thread of the parent that forked the shim ends, so the shim compares the
//! parent's pid after each signal. The setting survives a new user namespace, but a change of user
//! clears it (`commit_creds`, Linux 6.12).
//!
//! The parent can die between its fork and the first call in this module. Then the kernel has no
//! death left to signal, and `getppid(2)` already returns the pid of the adopting process. A parent
//! that passes its own pid (`--parent`) closes this gap.

use a3s_box_sys::HostError;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::unistd::{Pid, getppid};

/// Signal that the kernel sends when the parent dies. SIGUSR2 has no other use in the shim. If
/// another process sends it, the pid of the parent has not changed and nothing happens.
pub(super) const PARENT_SIGNAL: Signal = Signal::SIGUSR2;

/// Pid of the parent at the start of the shim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parent(Pid);

impl Parent {
    /// Blocks the signal, and requests it from the kernel. `expected` is the value of `--parent`.
    ///
    /// Callers must call it early, because the shim does not notice a death before this call unless
    /// there is an `expected` pid, and before they start a thread, because threads inherit the
    /// mask.
    pub(crate) fn watch(expected: Option<u32>) -> Result<Self, HostError> {
        let set: SigSet = [PARENT_SIGNAL].into_iter().collect();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)
            .map_err(HostError::of("block a signal"))?;
        // A number beyond the range of pids matches no process, so the parent counts as dead.
        let expected = expected.map(|pid| Pid::from_raw(i32::try_from(pid).unwrap_or(-1)));
        let parent = Self(expected.unwrap_or_else(getppid));
        parent.watch_again()?;
        Ok(parent)
    }

    /// Requests the signal from the kernel, which forgets the request when this process changes its
    /// user. A parent that has died before counts as well.
    ///
    /// The kernel checks the permission to send the signal as if the parent sent it. A parent of
    /// another user therefore needs `CAP_KILL`, which root has by default.
    pub(super) fn watch_again(self) -> Result<(), HostError> {
        set_pdeathsig(PARENT_SIGNAL)
            .map_err(HostError::of("ask for a signal at the parent's end"))?;
        if self.is_gone() {
            // The signal goes to the process and not to this thread, so that the control thread can
            // read it from its signalfd.
            kill(Pid::this(), PARENT_SIGNAL).map_err(HostError::of("signal the parent's end"))?;
        }
        Ok(())
    }

    /// Revokes the request for the signal.
    pub(super) fn ignore() -> Result<(), HostError> {
        set_pdeathsig(None).map_err(HostError::of("take a signal at the parent's end back"))
    }

    /// Returns whether the parent has died: another process has then adopted this one.
    pub(super) fn is_gone(self) -> bool {
        getppid() != self.0
    }
}
