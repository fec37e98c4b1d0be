//! Plain text for a person at a terminal, in the modes that have no event stream.

use std::io::Write;
use std::process::ExitCode;

/// Writes `text` as lines to `to` and returns `status`, or [`FAILED`](a3s_box_core::exit::FAILED)
/// if it cannot be written. That failure has no other place to be reported.
pub(crate) fn print(mut to: impl Write, text: &str, status: u8) -> ExitCode {
    match writeln!(to, "{}", text.trim_end()) {
        Ok(()) => ExitCode::from(status),
        Err(_) => ExitCode::from(a3s_box_core::exit::FAILED),
    }
}
