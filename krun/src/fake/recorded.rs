//! The arguments of the calls to the fake libkrun.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// A disk, as `krun_add_disk3` received it.
pub(super) struct RecordedDisk {
    pub(super) id: String,
    pub(super) path: String,
    pub(super) format: u32,
    pub(super) read_only: bool,
}

/// A share, as `krun_add_virtiofs4` received it.
pub(super) struct RecordedShare {
    pub(super) path: String,
    pub(super) read_only: bool,
    /// Only the tests of this crate read it, because the fake has no guest that keeps attributes.
    #[cfg_attr(not(test), expect(dead_code, reason = "see above"))]
    pub(super) semantics: u32,
}

/// The arguments of the calls that configured one VM.
#[derive(Default)]
pub(super) struct Recorded {
    /// Content of the last overlay file, which is the config of the guest program.
    pub(super) config: Vec<u8>,
    /// The shares, in the order of the calls.
    pub(super) shares: Vec<RecordedShare>,
    /// The disks, in the order of the calls.
    pub(super) disks: Vec<RecordedDisk>,
    /// `VSOCK_<port>` and the path of the socket, for each vsock port.
    pub(super) ports: Vec<(String, String)>,
    /// Duplicates of the fds of the console ports `krun-stdout` and `krun-stderr`.
    pub(super) console: Option<(OwnedFd, OwnedFd)>,
}

/// The record of this process. It is `None` before the first call and after `krun_start_enter`.
/// libkrun keeps its contexts in a global table as well, because its functions take a number and no
/// pointer.
pub(super) static RECORDED: Mutex<Option<Recorded>> = Mutex::new(None);

/// Changes the record, and returns 0, which is the success of a libkrun function and the id of its
/// first context.
pub(super) fn record(change: impl FnOnce(&mut Recorded)) -> i32 {
    change(RECORDED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default());
    0
}
