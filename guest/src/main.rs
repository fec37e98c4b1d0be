//! PID 1 of a box: prepares the guest, runs the workload, reports to the shim, reboots.
//!
//! One static program over whatever root file system the box has, an empty one included.
//! Nothing of the image is needed, and nothing in it is trusted. The phases:
//!
//! ```text
//! connect control ─► Hello ─► config ─► mounts ─► agent and notify socket listen ─► workload
//!                                                                                      │
//!   ┌── Exited ◄── Notified, as often as the workload says something new ◄── Started ◄───┘
//!   │
//!   └──► kill the rest ─► Drained ─► Acknowledged ─► reboot
//! ```
//!
//! # Invariants
//!
//! PID 1 never returns from `main`: the kernel would panic. Every end is a reboot, because
//! x86 guests without ACPI hang on power-off. Only [`children`] calls `waitpid`. Only
//! [`syscall`] has `unsafe`.

mod account;
mod agent;
mod children;
mod config;
mod control;
mod executable;
mod kmsg;
mod launch;
mod life;
mod machine;
mod metrics;
mod mounts;
mod names;
mod network;
mod notify;
mod plan;
mod ports;
mod power;
mod relay;
mod syscall;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use tokio::runtime::Builder;

use crate::life::LifeError;
use crate::machine::Guest;

fn main() -> ExitCode {
    let started = Instant::now();
    if Pid::this().as_raw() != 1 {
        // A failed write leaves the exit status, which says the same.
        drop(writeln!(std::io::stderr(), "a3s-box-guest: only runs as PID 1 of a box"));
        return ExitCode::FAILURE;
    }
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let code = live(started).unwrap_or_else(|error| {
        kmsg::error(&error);
        power::EXIT_CODE_FAILURE
    });
    power::reboot(code)
}

/// Runs the box until its end, and says with which code.
fn live(started: Instant) -> Result<u8, LifeError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(LifeError::Runtime)?;
    let code = runtime.block_on(async {
        let mut control = control::connect().await?;
        life::run(&mut control, &mut Guest::new(started)).await
    });
    // Dropping the runtime could wait for a blocked task; the reboot does not.
    runtime.shutdown_background();
    code
}
