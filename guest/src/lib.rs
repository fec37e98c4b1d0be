//! The guest program, PID 1 of a box: sets up the guest, runs the workload, reports to the shim and
//! reboots.
//!
//! It is a static executable, which needs no file of the image. The root file system can be empty.
//! Files of the image are not trusted. The phases:
//!
//! ```text
//! connect control ─► Hello ─► config ─► root, mounts ─► agent, notify socket listen ─► workload
//!                                                                                       │
//!   ┌── Exited ◄── Notified, when the workload sends notifications ◄──── Started ◄────────┘
//!   │
//!   └──► kill the rest ─► Drained ─► Acknowledged ─► reboot
//! ```
//!
//! # Invariants
//!
//! - PID 1 never returns from `main`, because the kernel panics when PID 1 ends.
//! - Every end is a reboot, because an x86 guest without ACPI hangs on a power-off.
//! - Only `children` reaps children.
//! - Only `syscall` contains `unsafe` code.
//!
//! The crate is a library, too, so that tests without a VM can run the service of the program:
//! [`serve_processes`].

mod account;
mod agent;
mod children;
mod config;
mod control;
mod executable;
mod files;
mod ipv6;
mod kmsg;
mod launch;
mod lifecycle;
mod listener;
mod machine;
mod metrics;
mod mounts;
mod names;
mod network;
mod notify;
mod open_files;
mod plan;
mod ports;
mod power;
mod processes;
mod relay;
mod root;
mod stand_in;
mod syscall;

pub use stand_in::serve_processes;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use tokio::runtime::Builder;

use crate::lifecycle::LifecycleError;
use crate::machine::Guest;

/// Runs the guest program, from its start to the reboot of the VM. Returns only if this process is
/// not PID 1.
pub fn run_box() -> ExitCode {
    let started = Instant::now();
    if Pid::this().as_raw() != 1 {
        // If the write fails, the exit status still reports the failure.
        drop(writeln!(std::io::stderr(), "a3s-box-guest: only runs as PID 1 of a box"));
        return ExitCode::FAILURE;
    }
    // The workload inherits this mask, 0022, which is the default of container engines.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let mut guest = Guest::new(started);
    let code = run(&mut guest).unwrap_or_else(|error| {
        kmsg::error(&error);
        power::EXIT_CODE_FAILURE
    });
    guest.reboot(code)
}

/// Runs the sequence of the box and returns the exit code for `reboot(2)`.
fn run(guest: &mut Guest) -> Result<u8, LifecycleError> {
    // One thread is enough, because all tasks wait most of the time.
    let runtime =
        Builder::new_current_thread().enable_all().build().map_err(LifecycleError::Runtime)?;
    let code = runtime.block_on(async {
        let mut control = control::connect().await?;
        lifecycle::run(&mut control, guest).await
    });
    // A drop of the runtime would wait for tasks that block, and would delay the reboot.
    runtime.shutdown_background();
    code
}
