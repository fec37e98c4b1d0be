//! The process that started the shim, whose end can be the box's.
//!
//! The kernel signals the end of the parent (`PR_SET_PDEATHSIG`, prctl(2)), but also the end of the
//! thread of it that forked: only a change of the parent's pid counts. A new user namespace keeps the
//! setting; a change of user would lose it (`commit_creds`, Linux 6.12).
//!
//! Between the fork and the first call here the parent may have ended already. A parent that says
//! its own pid (`--parent`) closes that gap.

use a3s_box_sys::HostError;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::unistd::{Pid, getppid};

/// What the kernel sends. Nobody else has a reason to send it, and it changes nothing if they do.
pub(super) const PARENT_SIGNAL: Signal = Signal::SIGUSR2;

/// The parent, as it was when the shim began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parent(Pid);

impl Parent {
    /// Asks for the signal, and blocks it. To be called first of all, before any thread exists.
    /// `expected` is the pid that the parent says it has.
    pub(crate) fn watch(expected: Option<u32>) -> Result<Self, HostError> {
        let set: SigSet = [PARENT_SIGNAL].into_iter().collect();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)
            .map_err(HostError::of("block a signal"))?;
        set_pdeathsig(PARENT_SIGNAL)
            .map_err(HostError::of("ask for a signal at the parent's end"))?;
        // A pid that is none is nobody's parent.
        let expected = expected.map(|pid| Pid::from_raw(i32::try_from(pid).unwrap_or(-1)));
        let parent = Self(expected.unwrap_or_else(getppid));
        if parent.is_gone() {
            // To the process: another thread than this one may read it.
            kill(Pid::this(), PARENT_SIGNAL).map_err(HostError::of("signal the parent's end"))?;
        }
        Ok(parent)
    }

    /// Takes the wish for the signal back.
    pub(super) fn ignore() -> Result<(), HostError> {
        set_pdeathsig(None).map_err(HostError::of("take a signal at the parent's end back"))
    }

    /// Whether another process has adopted this one.
    pub(super) fn is_gone(self) -> bool {
        getppid() != self.0
    }
}
