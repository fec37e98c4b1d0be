//! Prints the outcome of each attempt in a line: `refused NAME ERRNO` or `REACHED NAME`.
//!
//! The test reads the lines on the host. Every attempt must be refused.

use std::io::{self, Write};

/// Prints the outcome of an attempt. The errno is -1 if the error has none.
pub(crate) fn attempt<T>(name: &str, outcome: io::Result<T>) {
    match outcome {
        Ok(_) => print_line(&format!("REACHED {name}")),
        Err(error) => print_line(&format!("refused {name} {}", error.raw_os_error().unwrap_or(-1))),
    }
}

/// Prints a line for the test.
#[expect(clippy::disallowed_methods, reason = "no event is written here")]
pub(crate) fn print_line(line: &str) {
    // Without a console, there is no place to report the error either.
    let _printed = writeln!(io::stdout(), "{line}");
}
