//! What belongs to an installation beside the shim: the guest kernel, the guest program, passt, and a
//! service manager for who wants one.

use std::path::Path;

use a3s_box_core::doctor::DoctorCheck;
use a3s_box_core::one_line;
use a3s_box_krun::kernel::Kernel;

use crate::guest_program;
use crate::host::process;
use crate::network;
use crate::spec::{NetworkSpec, VmSpec};

/// Whether the guest kernel is found and is one, as it is for a box.
pub(super) fn kernel(spec: &VmSpec) -> DoctorCheck {
    const NAME: &str = "libkrunfw";
    let general_remedy = "install libkrunfw 5 for this architecture";
    let executable = match process::executable() {
        Ok(executable) => executable,
        Err(error) => return DoctorCheck::failed(NAME, one_line(&error), general_remedy),
    };
    match Kernel::load(spec.paths.libkrunfw.as_deref(), &executable) {
        Ok(kernel) => DoctorCheck::ok(NAME, place(&kernel)),
        Err(error) => {
            let remedy = error.hint().unwrap_or(general_remedy);
            DoctorCheck::failed(NAME, one_line(&error), remedy)
        }
    }
}

fn place(kernel: &Kernel) -> String {
    match kernel.path() {
        path if path.is_absolute() => format!("`{}`", path.display()),
        // The tests' libkrun has none.
        path if path == Path::new("") => "not needed: a process plays the guest".to_owned(),
        path => format!("`{}`, of the system's libraries", path.display()),
    }
}

/// Whether the program that is PID 1 in a box is found.
pub(super) fn guest_program(spec: &VmSpec) -> DoctorCheck {
    const NAME: &str = "guest_program";
    match guest_program::find(spec) {
        Ok((path, program)) => {
            DoctorCheck::ok(NAME, format!("`{}`, {} KiB", path.display(), program.len() >> 10))
        }
        Err(error) => {
            let remedy = "install a3s-box-guest beside the shim, or set `paths.guest`";
            DoctorCheck::failed(NAME, one_line(&error), remedy)
        }
    }
}

/// Whether guests can have a network. Boxes without one need nothing for it.
pub(super) fn passt(spec: &VmSpec) -> DoctorCheck {
    const NAME: &str = "passt";
    match network::find_passt() {
        Some(path) => DoctorCheck::ok(NAME, format!("`{}`", path.display())),
        None => {
            let found = format!("not found in {}", network::searched_for_passt());
            let remedy = "install the package `passt`, for boxes with `network.mode` `passt`";
            match spec.network {
                NetworkSpec::Passt(_) => DoctorCheck::failed(NAME, found, remedy),
                NetworkSpec::None | NetworkSpec::Tsi => DoctorCheck::degraded(NAME, found, remedy),
            }
        }
    }
}

/// Tells which service manager and journal there are; boxes need neither.
pub(super) fn service_manager() -> DoctorCheck {
    let has = |path| Path::new(path).exists();
    let found = match (has("/run/systemd/system"), has("/run/systemd/journal/socket")) {
        (true, true) => "systemd, with its journal",
        (true, false) => "systemd, without a journal",
        (false, true) => "a journal, without systemd",
        (false, false) => "none",
    };
    DoctorCheck::ok("service_manager", format!("{found}; boxes need none"))
}
