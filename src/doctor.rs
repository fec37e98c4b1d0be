//! `--doctor`: what boxes need of this host, how it is, and what to do about it.
//!
//! Where a box itself can tell, it is asked: a child of this executable goes through `--prepare`, for
//! the namespaces and the root, and another boots. What they use is in a directory of their own, which is
//! removed. The rest is read from where the kernel says it; nothing on the host is changed.
//!
//! ```text
//!   --doctor ─┬─ kernel, hardware, identity, limits, directories, parts: read
//!             ├─ trial ──► a3s-box-shim --prepare   a tiny image: namespaces, overlayfs
//!             └─ trial ──► a3s-box-shim             boots until it is ready, and is stopped
//! ```
//!
//! This process never enters a VM: unlike elsewhere, here `Drop` ends children and removes directories.

mod directories;
mod hardware;
mod identity;
mod kernel;
mod kernel_file;
mod limits;
mod parts;
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

/// Why there is no report.
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

/// Examines this host, reports to whoever asked, and returns the exit status.
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
                // Linux has 64 signals.
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
        // A person at a terminal gives none.
        None => BoxConfig::default(),
    };
    let spec = VmSpec::try_from(config).map_err(InputError::from)?;
    let signals = Signals::block(None)?;
    let kernel = kernel::Version::of_host();
    let mut checks = vec![kernel::version(kernel), hardware::kvm()];
    checks.extend([parts::kernel(&spec), parts::guest_program(&spec)]);
    let may_boot = checks.iter().skip(1).all(|check| check.status != DoctorStatus::Failed);
    checks.extend([identity::user_namespaces(), identity::sub_ids()]);
    checks.extend(trials::root(&signals).map_err(DoctorError::Interrupted)?);
    let missing = match spec.confinement {
        ConfinementLevel::Required => DoctorStatus::Failed,
        ConfinementLevel::BestEffort | ConfinementLevel::None => DoctorStatus::Degraded,
    };
    checks.extend([kernel::landlock(missing), kernel::seccomp(missing)]);
    checks.extend([limits::cgroup(), limits::open_files(), limits::locked_memory()]);
    checks.extend(directories(&spec.paths, arguments));
    checks.extend([parts::passt(&spec), parts::service_manager()]);
    let boot = match may_boot {
        true => trials::boot(&spec.paths, &signals).map_err(DoctorError::Interrupted)?,
        false => trials::not_booted(),
    };
    checks.insert(2, hardware::virtualization(&boot));
    checks.push(boot);
    Ok(DoctorReport::new(checks))
}

/// Without a config, directories that cannot be used are no more than a default to be replaced.
fn directories(paths: &PathsConfig, arguments: &Arguments) -> [DoctorCheck; 2] {
    let missing = match &arguments.config {
        Some(_) => DoctorStatus::Failed,
        None => DoctorStatus::Degraded,
    };
    [directories::state(&paths.state_dir, missing), directories::cache(&paths.cache_dir, missing)]
}

/// One line for each check, in columns.
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
        // A text cannot fail to take more.
        let _written = writeln!(text, "{}", printable(&line, MESSAGE_CHARS));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_line_for_each_check_and_its_remedy_where_one_is_needed() {
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
