//! The few lines that PID 1 logs: to the kernel's log, which reaches the shim over hvc0.
//!
//! Never arguments, environment or anything else of the workload. Silent outside a box,
//! so that tests do not write to the log of the machine they run on.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;
use nix::unistd::Pid;

/// Severity `err`: the kernel's command line says `quiet`, which hides all above it.
const PRIORITY: &str = "<3>";

/// Longest line; the kernel cuts a record at about 1 KiB (`PRINTKRB_RECORD_MAX`).
const LINE_BYTES: usize = 900;

/// Logs one line.
pub(crate) fn line(text: &str) {
    if Pid::this().as_raw() != 1 {
        return;
    }
    let text = &text[..text.floor_char_boundary(LINE_BYTES)];
    let kmsg = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
    let written = match kmsg {
        Ok(mut kmsg) => kmsg.write_all(format!("{PRIORITY}a3s-box-guest: {text}\n").as_bytes()),
        // Before devtmpfs is mounted: the console that the kernel opened for PID 1.
        Err(_) => std::io::stderr().write_all(format!("a3s-box-guest: {text}\r\n").as_bytes()),
    };
    // A log that cannot be written has nowhere to say so.
    drop(written);
}

/// Logs an error with its causes.
pub(crate) fn error(error: &dyn Error) {
    line(&chain(error));
}

/// The error and its causes, as one line.
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
    fn an_error_is_told_with_its_causes() {
        assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
    }
}
