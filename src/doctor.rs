//! `--doctor`: checks whether this host meets the requirements of boxes, and names a remedy for
//! each that it does not meet.
//!
//! Namespaces, the root and the boot are tried rather than computed, because they depend on too
//! many settings of the host. Children of this executable prepare and boot a box in a temporary
//! directory, which is removed afterwards. Everything else is read from files and system calls.
//! Nothing on the host is changed.
//!
//! ```text
//!   --doctor ─┬─ host kernel, hardware, identity, limits, directories, installation: read
//!             ├─ trial ──► a3s-box-shim --prepare   a tiny image: namespaces, overlayfs
//!             └─ trial ──► a3s-box-shim             boots until it is ready, and is stopped
//! ```
//!
//! Unlike the process of a box, this process never enters a VM. It may therefore rely on `Drop` to
//! end children and to remove directories.

mod directories;
mod hardware;
mod host_kernel;
mod identity;
mod installation;
mod kernel_file;
mod limits;
mod sample;
mod trial;
mod trials;

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use a3s_box_core::config::{ConfinementLevel, PathsConfig};
use a3s_box_core::doctor::{DoctorCheck, DoctorReport, DoctorStatus};
use a3s_box_core::{BoxConfig, exit, one_line};
use a3s_box_sys::HostError;

use crate::host::process::{self, Signals, StopRequest};
use crate::input::arguments::Arguments;
use crate::input::config::{self, InputError};
use crate::report::printable::{MESSAGE_CHARS, printable};
use crate::report::terminal;
use crate::spec::VmSpec;

/// Why the doctor has no report.
#[derive(Debug, thiserror::Error)]
enum DoctorError {
    #[error("cannot begin")]
    Input(#[from] InputError),
    #[error("cannot set the process up")]
    Host(#[from] HostError),
    #[error("cannot write the report")]
    Json(#[from] serde_json::Error),
    #[error("interrupted by {0}")]
    Interrupted(StopRequest),
}

/// Examines this host, prints the report, and returns the exit status.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let written = examine(arguments).and_then(|report| {
        let text = match arguments.json {
            true => serde_json::to_string_pretty(&report)?,
            false => to_text(&report),
        };
        Ok((text, report.exit_status()))
    });
    match written {
        Ok((text, status)) => terminal::print(process::stdout(), &text, status),
        Err(error) => {
            let status = match &error {
                // 128 plus the number of the signal, as a shell reports it.
                DoctorError::Interrupted(request) => exit::for_signal(request.signal_number()),
                _ => exit::FAILED,
            };
            terminal::print(io::stderr(), &one_line(&error), status)
        }
    }
}

fn examine(arguments: &Arguments) -> Result<DoctorReport, DoctorError> {
    let config = match &arguments.config {
        Some(path) => config::read(Some(path))?,
        // Without `--config`, the doctor does not wait for a config on standard input, because it
        // is meant for a user at a terminal.
        None => BoxConfig::default(),
    };
    let spec = VmSpec::try_from(config).map_err(InputError::from)?;
    let signals = Signals::block(None)?;
    let version = host_kernel::Version::of_host();
    let mut checks = vec![host_kernel::version(version), hardware::kvm()];
    checks.extend(installation::guest_kernel(&spec));
    checks.push(installation::guest_program(&spec));
    // The first check is left out: the version of the host kernel alone does not prevent a boot.
    let can_boot = checks.iter().skip(1).all(|check| check.status != DoctorStatus::Failed);
    checks.extend([identity::user_namespaces(), identity::sub_ids()]);
    checks.extend(trials::root(&signals).map_err(DoctorError::Interrupted)?);
    // A layer that is missing prevents a box only if the config requires all layers.
    let missing = match spec.confinement {
        ConfinementLevel::Required => DoctorStatus::Failed,
        ConfinementLevel::BestEffort | ConfinementLevel::None => DoctorStatus::Degraded,
    };
    checks.extend([host_kernel::landlock(missing), host_kernel::seccomp(missing)]);
    checks.extend([limits::cgroup(), limits::open_files(), limits::locked_memory()]);
    checks.extend(directories(&spec.paths, arguments));
    checks.extend([installation::passt(&spec), installation::service_manager()]);
    let boot = match can_boot {
        true => trials::boot(&spec.paths, &signals).map_err(DoctorError::Interrupted)?,
        false => trials::boot_not_tried(),
    };
    // This check stands beside `kvm` in the report, but depends on the result of the boot.
    checks.insert(2, hardware::virtualization(&boot));
    checks.push(boot);
    Ok(DoctorReport::new(checks))
}

/// Checks the directories. Without a config, they are only defaults, which a config can replace, so
/// that a directory that cannot be used does not fail the report.
fn directories(paths: &PathsConfig, arguments: &Arguments) -> [DoctorCheck; 2] {
    let missing = match &arguments.config {
        Some(_) => DoctorStatus::Failed,
        None => DoctorStatus::Degraded,
    };
    [directories::state(&paths.state_dir, missing), directories::cache(&paths.cache_dir, missing)]
}

/// Formats the report as text, with one line for each check.
fn to_text(report: &DoctorReport) -> String {
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for DoctorCheck { name, status, found, remedy } in &report.checks {
        let status = match status {
            DoctorStatus::Ok => "ok",
            DoctorStatus::Degraded => "degraded",
            DoctorStatus::Failed => "failed",
        };
        let remedy = remedy.as_ref().map(|remedy| format!("; remedy: {remedy}"));
        let line = format!("{status:8}  {name:width$}  {found}{}", remedy.unwrap_or_default());
        // Writing to a `String` cannot fail.
        let _written = writeln!(text, "{}", printable(&line, MESSAGE_CHARS));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_one_line_for_each_check_with_its_remedy() {
        let report = DoctorReport::new(vec![
            DoctorCheck::ok("a", "fine\nreally\u{1b}"),
            DoctorCheck::degraded("long", "less", "more"),
            DoctorCheck::failed("b", "none", "one"),
        ]);
        let expected = "ok        a     fine\u{fffd}really\u{fffd}\n\
                        degraded  long  less; remedy: more\n\
                        failed    b     none; remedy: one\n";
        assert_eq!(to_text(&report), expected);
    }
}
