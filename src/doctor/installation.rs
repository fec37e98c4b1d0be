//! Checks of what is installed beside the shim: the guest kernel, the guest program, passt, and the
//! service manager.

use std::path::Path;

use a3s_box_core::doctor::DoctorCheck;
use a3s_box_core::one_line;
use a3s_box_krun::guest_kernel::{BLOCK_ROOT_REMEDY, GuestKernel};

use crate::guest_program;
use crate::host::process;
use crate::network;
use crate::spec::{NetworkSpec, VmSpec};

/// Checks whether the guest kernel can be loaded, in the same way as for a box, and which kind of
/// root it lets a box have.
pub(super) fn guest_kernel(spec: &VmSpec) -> [DoctorCheck; 2] {
    const NAME: &str = "libkrunfw";
    let general_remedy = "install libkrunfw 5 for this architecture";
    let executable = match process::executable() {
        Ok(executable) => executable,
        Err(error) => {
            return [DoctorCheck::failed(NAME, one_line(&error), general_remedy), root_kind(None)];
        }
    };
    match GuestKernel::load(spec.paths.libkrunfw.as_deref(), &executable) {
        Ok(kernel) => {
            [DoctorCheck::ok(NAME, place(&kernel)), root_kind(Some(&kernel.lacks_for_block_root()))]
        }
        Err(error) => {
            let remedy = error.hint().unwrap_or(general_remedy);
            [DoctorCheck::failed(NAME, one_line(&error), remedy), root_kind(None)]
        }
    }
}

/// Reports the kind of root that a box has by default, from what this installation lacks for a block
/// root. The argument is none if there is no guest kernel.
fn root_kind(lacks: Option<&[&str]>) -> DoctorCheck {
    const NAME: &str = "root_kind";
    match lacks {
        None => DoctorCheck::failed(NAME, "not known, without a guest kernel", "see `libkrunfw`"),
        Some([]) => DoctorCheck::ok(NAME, "`block`: a VM can have a block root"),
        Some(lacks) => DoctorCheck::degraded(
            NAME,
            format!("`shared`: for a block root, this installation lacks {}", lacks.join(", ")),
            BLOCK_ROOT_REMEDY,
        ),
    }
}

/// Describes where the guest kernel was found.
fn place(kernel: &GuestKernel) -> String {
    match kernel.path() {
        path if path.is_absolute() => format!("`{}`", path.display()),
        // The fake VM of the tests has no guest kernel.
        path if path == Path::new("") => "not needed: a process plays the guest".to_owned(),
        path => format!("`{}`, in the search path of the dynamic linker", path.display()),
    }
}

/// Checks whether the guest program is found.
pub(super) fn guest_program(spec: &VmSpec) -> DoctorCheck {
    const NAME: &str = "guest_program";
    match guest_program::find(spec) {
        Ok((path, program)) => DoctorCheck::ok(
            NAME,
            format!("`{}`, {} KiB", path.display(), program.bytes().len() >> 10),
        ),
        Err(error) => {
            let remedy = "install a3s-box-guest beside the shim, or set `paths.guest`";
            DoctorCheck::failed(NAME, one_line(&error), remedy)
        }
    }
}

/// Checks whether passt is installed. Only boxes with `network.mode` `passt` need it.
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

/// Reports whether there are a service manager and a journal. A box needs neither.
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
