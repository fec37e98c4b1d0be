//! The guest program, PID 1 of a box. The library of the same name has all of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    a3s_box_guest::run_box()
}
