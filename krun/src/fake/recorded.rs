//! What the calls of the fake libkrun were given.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// The calls of one VM.
#[derive(Default)]
pub(super) struct Recorded {
    pub(super) config: Vec<u8>,
    pub(super) shares: Vec<(String, bool)>,
    pub(super) ports: Vec<(String, String)>,
    pub(super) console: Option<(OwnedFd, OwnedFd)>,
}

/// What was recorded so far; nothing before the first call.
pub(super) static RECORDED: Mutex<Option<Recorded>> = Mutex::new(None);

/// Changes the record, and returns libkrun's code for success.
pub(super) fn record(change: impl FnOnce(&mut Recorded)) -> i32 {
    change(RECORDED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default());
    0
}
