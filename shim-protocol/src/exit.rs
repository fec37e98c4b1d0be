//! Exit statuses of the shim, which supervisors may rely on.
//!
//! | status | meaning |
//! |---|---|
//! | 0 to 255 | the workload's own, when the guest reported it |
//! | 124 | `resources.timeout_ms` ran out |
//! | 125 | the shim failed, or the guest was lost or unhealthy; the `error` event says why |
//! | 126 | the program was found and could not be executed |
//! | 127 | the program was not found |
//! | 128 + n | the workload was ended by signal n |
//!
//! `--doctor` has statuses of its own: see [`doctor`](crate::doctor).
//!
//! A workload may itself exit with 124 to 128 + n: the `box.stopped` event says which it was.

/// `resources.timeout_ms` ran out.
pub const TIMEOUT: u8 = 124;
/// The shim failed, or the guest was lost.
pub const FAILED: u8 = 125;
/// The program was found and could not be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The program was not found.
pub const NOT_FOUND: u8 = 127;

/// Status for a workload that signal `signal` ended. Linux has 64 signals, so it never overflows
/// for a real one; anything larger saturates at 255.
#[must_use]
pub fn for_signal(signal: u8) -> u8 {
    128_u8.saturating_add(signal)
}
