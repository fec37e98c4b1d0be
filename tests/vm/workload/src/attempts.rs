//! What a test must see refused, an attempt a line: `refused NAME ERRNO` or `REACHED NAME`.

use std::io::{self, Write};

/// Tells how an attempt ended. A success is what a test looks for.
pub(crate) fn attempt<T>(name: &str, outcome: io::Result<T>) {
    match outcome {
        Ok(_) => say(&format!("REACHED {name}")),
        Err(error) => say(&format!("refused {name} {}", error.raw_os_error().unwrap_or(-1))),
    }
}

/// A line to the test.
#[expect(clippy::disallowed_methods, reason = "no event is written here")]
pub(crate) fn say(line: &str) {
    // Without a console there is nobody to tell.
    let _untold = writeln!(io::stdout(), "{line}");
}
