//! Exit statuses of the shim, which are a part of the contract.
//!
//! | status | meaning |
//! |---|---|
//! | 0 to 255 | the workload's own exit status, as the guest reported it |
//! | 124 | `resources.timeout_ms` has elapsed |
//! | 125 | the shim failed, or the guest was lost or unhealthy; the `error` event has the cause |
//! | 126 | the workload's executable was found and cannot be executed |
//! | 127 | the workload's executable was not found |
//! | 128 + n | signal n ended the workload |
//! | 128 + n | signal n requested the stop, and the guest did not report the end of a workload |
//!
//! `--doctor` has its own statuses, see [`doctor`](crate::doctor).
//!
//! A workload may itself exit with 124 or more, so the status alone is ambiguous. The event
//! `box.stopped` distinguishes the cases by its `reason` and `signal`.
//!
//! ```
//! use a3s_box_core::exit;
//!
//! fn describe(status: u8) -> String {
//!     match status {
//!         0 => "success".to_owned(),
//!         exit::TIMEOUT => "out of time".to_owned(),
//!         exit::FAILED => "no workload ran to its end".to_owned(),
//!         exit::NOT_EXECUTABLE | exit::NOT_FOUND => "no such command".to_owned(),
//!         status if status > 128 => format!("signal {}", status - 128),
//!         status => format!("status {status}"),
//!     }
//! }
//!
//! assert_eq!(describe(exit::for_signal(9)), "signal 9");
//! assert_eq!(describe(124), "out of time");
//! assert_eq!(describe(3), "status 3");
//! ```

/// Exit status if `resources.timeout_ms` has elapsed.
pub const TIMEOUT: u8 = 124;
/// Exit status if the shim failed, or if the guest was lost or unhealthy.
pub const FAILED: u8 = 125;
/// Exit status if the workload's executable was found and cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// Exit status if the workload's executable was not found.
pub const NOT_FOUND: u8 = 127;

/// Returns the exit status for a workload that the signal of this number ended: 128 + `signal`, as
/// a shell reports it.
///
/// The numbers of Linux signals end at 64, so the sum fits. It saturates at 255 for a larger
/// number, which a hostile guest can report.
#[must_use]
pub fn for_signal(signal: u8) -> u8 {
    128_u8.saturating_add(signal)
}
