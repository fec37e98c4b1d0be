//! Checks that try a box: whether it gets its namespaces and its root, and whether it boots.

use std::time::{Duration, Instant};

use a3s_box_core::config::{ImageConfig, ImageLimits, PathsConfig, RootKind};
use a3s_box_core::doctor::DoctorCheck;
use a3s_box_core::event::{EventKind, RootMethod, StopReason};
use a3s_box_core::{BoxConfig, ErrorCode, one_line};
use a3s_box_sys::HostError;

use super::identity::is_root;
use super::sample;
use super::trial::{Directory, Trial, TrialError};
use crate::host::process::{Signals, StopRequest};

/// Time limit of the trial of the root. It takes milliseconds, and seconds on an emulated host.
const ROOT_TIMEOUT: Duration = Duration::from_secs(20);

/// Time limit of the boot. It takes a quarter of a second on hardware, and some seconds on an
/// emulated host.
const BOOT_TIMEOUT: Duration = Duration::from_secs(20);

/// Time limit of everything else in the trial of the boot: the root before it, and the stop after
/// it with its own timeouts (15 s).
const REST_TIMEOUT: Duration = Duration::from_secs(25);

/// Tries to make the root of a tiny image in the namespaces of a box. The error is a request to
/// stop.
pub(super) fn root(signals: &Signals) -> Result<[DoctorCheck; 2], StopRequest> {
    match make_root(signals) {
        Err(TrialError::Interrupted(request)) => Err(request),
        tried => Ok(judge_root(tried)),
    }
}

fn make_root(signals: &Signals) -> Result<RootMethod, TrialError> {
    let directory = Directory::make()?;
    let layout = directory.path().join("image");
    sample::write(&layout).map_err(HostError::of("write an image"))?;
    let mut config = config(&directory);
    let limits = ImageLimits::default();
    config.image = Some(ImageConfig { layout, reference: None, platform: None, limits });
    // A block root needs less of the host, and would not show whether overlayfs is available.
    config.root.kind = Some(RootKind::Shared);
    // The guest program must be a file, but `--prepare` does not run it. `guest_program` is another
    // check.
    config.paths.guest = Some("/dev/null".into());
    let mut trial = Trial::start(&["--prepare"], &config, ROOT_TIMEOUT)?;
    let root = trial.wait_for(signals, |event| match event {
        EventKind::RootfsReady { root, .. } => Some(*root),
        _ => None,
    })?;
    trial.wait_for(signals, |event| matches!(event, EventKind::PrepareDone {}).then_some(()))?;
    // The child must exit before the temporary directory, which contains its mounts, is removed.
    trial.wait()?;
    Ok(root)
}

fn judge_root(tried: Result<RootMethod, TrialError>) -> [DoctorCheck; 2] {
    const NAMESPACES: &str = "namespaces";
    const OVERLAYFS: &str = "overlayfs";
    let namespace = if is_root() { "a mount namespace" } else { "a user namespace" };
    let namespaces = DoctorCheck::ok(NAMESPACES, format!("a box gets {namespace}"));
    let see_others = "see the other checks";
    match tried {
        Ok(RootMethod::Overlay) => [
            namespaces,
            DoctorCheck::ok(OVERLAYFS, format!("layers can be mounted in {namespace}")),
        ],
        Ok(method) => {
            let verb = if method == RootMethod::Reflink { "cloned" } else { "copied" };
            let found = format!("is not available in {namespace}: images are {verb} for each box");
            let remedy = "load the module `overlay`; without root, use Linux 5.11 or later";
            [namespaces, DoctorCheck::degraded(OVERLAYFS, found, remedy)]
        }
        // This code means that the child could not enter its namespaces.
        Err(TrialError::Reported(report)) if report.code == ErrorCode::ProcessSetup => {
            let remedy = report.hint.clone().unwrap_or_else(|| "run as root".to_owned());
            let found = one_line(&TrialError::Reported(report));
            let untried =
                DoctorCheck::failed(OVERLAYFS, "not tried, without namespaces", see_others);
            [DoctorCheck::failed(NAMESPACES, found, remedy), untried]
        }
        // After any other error, the namespaces exist, because they come before the root.
        Err(error) => {
            let remedy = match &error {
                TrialError::Reported(report) => report.hint.clone(),
                _ => None,
            };
            let remedy = remedy.unwrap_or_else(|| see_others.to_owned());
            let found = format!("no root: {}", one_line(&error));
            [namespaces, DoctorCheck::failed(OVERLAYFS, found, remedy)]
        }
    }
}

/// Tries to boot and stop a box without an image. The error is a request to stop.
pub(super) fn boot(paths: &PathsConfig, signals: &Signals) -> Result<DoctorCheck, StopRequest> {
    match boot_and_stop(paths, signals) {
        Err(TrialError::Interrupted(request)) => Err(request),
        tried => Ok(judge_boot(tried)),
    }
}

/// Returns the check for a host on which a box cannot boot anyway.
pub(super) fn boot_not_tried() -> DoctorCheck {
    DoctorCheck::failed(
        BOOT,
        "not tried, because something that it requires is missing",
        "see above",
    )
}

const BOOT: &str = "boot";

/// Times of a box that booted.
#[derive(Clone, Copy, Debug)]
struct Booted {
    ready_after: Duration,
    stopped_after: Duration,
}

fn boot_and_stop(paths: &PathsConfig, signals: &Signals) -> Result<Booted, TrialError> {
    let directory = Directory::make()?;
    let mut config = config(&directory);
    // Of the given config, only the installation is used. The state and cache directories have
    // checks of their own, and this box must not leave files in them.
    config.paths.libkrunfw.clone_from(&paths.libkrunfw);
    config.paths.guest.clone_from(&paths.guest);
    config.agent.boot_timeout_ms = 1000 * BOOT_TIMEOUT.as_secs();
    let start = Instant::now();
    let mut trial = Trial::start(&[], &config, BOOT_TIMEOUT + REST_TIMEOUT)?;
    trial.wait_for(signals, |event| matches!(event, EventKind::AgentReady { .. }).then_some(()))?;
    let ready_after = start.elapsed();
    trial.stop()?;
    let stopped = Instant::now();
    // A box that stops for another reason, such as an exit of its guest, has not passed the trial.
    trial.wait_for(signals, |event| match event {
        EventKind::BoxStopped { reason: StopReason::Stopped, .. } => Some(()),
        _ => None,
    })?;
    trial.wait()?;
    Ok(Booted { ready_after, stopped_after: stopped.elapsed() })
}

fn judge_boot(tried: Result<Booted, TrialError>) -> DoctorCheck {
    match tried {
        Ok(Booted { ready_after, stopped_after }) => {
            let (ready, stopped) = (ready_after.as_millis(), stopped_after.as_millis());
            let found =
                format!("a box was ready after {ready} ms, and gone {stopped} ms after a stop");
            DoctorCheck::ok(BOOT, found)
        }
        Err(error) => {
            let remedy = match &error {
                TrialError::Reported(report) => report.hint.clone(),
                _ => None,
            };
            let remedy = remedy.unwrap_or_else(|| {
                "see `virtualization`, and the host kernel's log (dmesg); `A3S_BOX_LOG=info` with a box \
                 logs the messages of its guest kernel"
                    .to_owned()
            });
            DoctorCheck::failed(BOOT, one_line(&error), remedy)
        }
    }
}

/// Returns the config of a box whose state and cache are in `directory`.
fn config(directory: &Directory) -> BoxConfig {
    let paths = PathsConfig {
        state_dir: directory.state_dir(),
        cache_dir: directory.cache_dir(),
        ..PathsConfig::default()
    };
    BoxConfig { id: Some("doctor".to_owned()), paths, ..BoxConfig::default() }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use a3s_box_core::ErrorReport;
    use a3s_box_core::doctor::DoctorStatus::{Degraded, Failed, Ok as Fine};

    use super::*;

    fn reported(code: ErrorCode, hint: Option<&str>) -> TrialError {
        let report = ErrorReport::new(code, &io::Error::other("no such luck"));
        TrialError::Reported(report.with_hint(hint.map(str::to_owned)))
    }

    fn ended() -> TrialError {
        TrialError::Ended(ExitStatus::from_raw(9))
    }

    #[test]
    fn trial_of_the_root_reports_on_namespaces_and_overlayfs() {
        let cases = [
            (Ok(RootMethod::Overlay), Fine, Fine),
            (Ok(RootMethod::Reflink), Fine, Degraded),
            (Ok(RootMethod::Copy), Fine, Degraded),
            (Err(reported(ErrorCode::ProcessSetup, Some("a hint"))), Failed, Failed),
            (Err(reported(ErrorCode::RootfsFailed, None)), Fine, Failed),
            (Err(ended()), Fine, Failed),
        ];
        for (tried, namespaces, overlayfs) in cases {
            let text = format!("{tried:?}");
            let checks = judge_root(tried);
            assert_eq!(checks.clone().map(|check| check.status), [namespaces, overlayfs], "{text}");
            for check in checks {
                assert_eq!(check.remedy.is_some(), check.status != Fine, "{check:?}");
            }
        }
    }

    #[test]
    fn failed_boot_is_reported_with_its_reason_and_a_remedy() {
        let check = judge_boot(Err(reported(ErrorCode::VmFailed, Some("a hint"))));
        let expected = (Failed, "no such luck", Some("a hint"));
        assert_eq!((check.status, check.found.as_str(), check.remedy.as_deref()), expected);
        let check = judge_boot(Err(ended()));
        assert!(check.found.contains("signal: 9"), "{check:?}");
        assert!(check.remedy.unwrap().contains("`virtualization`"));
        let ms = Duration::from_millis;
        let check = judge_boot(Ok(Booted { ready_after: ms(312), stopped_after: ms(40) }));
        let expected = "a box was ready after 312 ms, and gone 40 ms after a stop";
        assert_eq!((check.status, check.found.as_str()), (Fine, expected));
    }
}
