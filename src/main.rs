//! `a3s-box-shim`: the process that becomes a microVM.
//!
//! This file maps the command line to a mode and the mode to a function. `boot` has one function
//! for each mode that reads a config and emits events, and a drawing of the phases of a box.

mod boot;
mod confine;
mod console;
mod control;
mod doctor;
mod ending;
mod error;
mod guest_program;
mod host;
mod input;
mod machine;
mod maintenance;
mod network;
mod report;
mod rootfs;
mod share;
mod spec;
mod state;
mod workload;

use std::io;
use std::process::ExitCode;

use a3s_box_core::{exit, schema};

use crate::host::process::stdout;
use crate::input::arguments::{Arguments, Mode, USAGE, VERSION};
use crate::report::terminal::print;

fn main() -> ExitCode {
    // The gate and the connector of a guest's network and the unpacker of images are this executable,
    // too, so that an installation has three files less. They have command lines of their own.
    if let Some(status) = network::run_if_asked().or_else(rootfs::run_if_asked) {
        return status;
    }
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => return print(io::stderr(), &format!("{error}\n\n{USAGE}"), exit::FAILED),
    };
    match arguments.mode {
        Mode::Run => boot::start(&arguments, boot::run),
        Mode::Check => boot::start(&arguments, boot::check),
        Mode::Prepare => boot::start(&arguments, boot::prepare),
        Mode::Gc => boot::start(&arguments, boot::gc),
        Mode::Verify => boot::start(&arguments, boot::verify),
        Mode::Doctor => doctor::run(&arguments),
        Mode::Help => print(stdout(), USAGE, 0),
        Mode::Version => print(stdout(), VERSION, 0),
        Mode::PrintSchema => print(stdout(), schema::BOX_CONFIG, 0),
    }
}
