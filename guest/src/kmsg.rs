//! Logs lines of the guest program to the guest kernel's log. The kernel prints them to the console
//! `hvc0`, from which the shim reads them.
//!
//! A line never contains arguments, environment or output of the workload, which can be secret. If
//! this process is not PID 1, nothing is logged, so that tests do not write to the kernel's log of
//! the host.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;
use nix::unistd::Pid;

/// Prefix of a record with the severity `err`. The kernel's command line contains `quiet`, which
/// keeps less severe records from the console.
const PRIORITY: &str = "<3>";

/// Maximum length of a line in bytes. The kernel cuts a record at about 1 KiB
/// (`PRINTKRB_RECORD_MAX`).
const LINE_BYTES: usize = 900;

/// Logs one line.
pub(crate) fn line(text: &str) {
    if Pid::this().as_raw() != 1 {
        return;
    }
    let text = &text[..text.floor_char_boundary(LINE_BYTES)];
    // Opened for each line: lines are rare, and the file exists only after devtmpfs is mounted.
    let kmsg = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
    let written = match kmsg {
        Ok(mut kmsg) => kmsg.write_all(format!("{PRIORITY}a3s-box-guest: {text}\n").as_bytes()),
        // Before devtmpfs is mounted, standard error is the console, which the kernel has opened
        // for PID 1.
        Err(_) => std::io::stderr().write_all(format!("a3s-box-guest: {text}\r\n").as_bytes()),
    };
    // There is no other place to report that the log cannot be written.
    drop(written);
}

/// Logs an error with its causes in one line.
pub(crate) fn error(error: &dyn Error) {
    line(&chain(error));
}

/// Returns the error and its causes as one line, separated by colons.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn joins_an_error_and_its_causes() {
        assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
    }
}
