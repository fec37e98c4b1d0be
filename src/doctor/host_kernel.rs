//! Checks of the host kernel: its version, Landlock and seccomp. In this file, "kernel" means the
//! host kernel.

use std::fmt;

use a3s_box_core::doctor::{DoctorCheck, DoctorStatus};
use landlock::{AccessFs, LandlockStatus, Ruleset, RulesetAttr};

use super::kernel_file::read;

/// First version with `openat2(2)`, which keeps paths in an image from leading out of its
/// directory.
const OLDEST: Version = Version { major: 5, minor: 6 };

/// First version with overlayfs in user namespaces. The mount option `volatile` of overlayfs, which
/// makes it faster, is in 5.10.
const OVERLAY: Version = Version { major: 5, minor: 11 };

/// Major and minor version of a kernel. The other parts of a release do not add features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// Returns the version of this host, or none if it cannot be read or has an unknown form.
    pub(super) fn of_host() -> Option<Self> {
        Self::parse(&read("/proc/sys/kernel/osrelease")?)
    }

    /// Parses a release such as `6.18.44-fc`, `5.10` or `6.1-rc3`.
    fn parse(release: &str) -> Option<Self> {
        let mut parts = release.trim().split(['.', '-', '+']);
        let major = parts.next()?.parse().ok()?;
        Some(Self { major, minor: parts.next()?.parse().ok()? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Checks whether the version has the features that the shim requires.
pub(super) fn version(kernel: Option<Version>) -> DoctorCheck {
    const NAME: &str = "kernel";
    match kernel {
        // An unknown version is no failure, because the trials show whether a box works.
        None => DoctorCheck::degraded(
            NAME,
            "its version cannot be read",
            format!("mount /proc, and see that it is Linux {OVERLAY} or later"),
        ),
        Some(found) if found < OLDEST => DoctorCheck::failed(
            NAME,
            format!("Linux {found}, without openat2"),
            format!("use Linux {OLDEST} or later; best {OVERLAY} or later"),
        ),
        Some(found) if found < OVERLAY => DoctorCheck::degraded(
            NAME,
            format!(
                "Linux {found}: overlayfs is not available to users other than root, or slower"
            ),
            format!("use Linux {OVERLAY} or later"),
        ),
        Some(found) => DoctorCheck::ok(NAME, format!("Linux {found}")),
    }
}

/// Checks whether Landlock can restrict a thread, and which ABI it has (`landlock(7)`). Without
/// Landlock, the status is `missing`.
pub(super) fn landlock(missing: DoctorStatus) -> DoctorCheck {
    // The crate reports the status only after it has restricted the calling thread. This thread
    // does nothing else, and the other threads are not affected.
    let status = std::thread::spawn(|| {
        let ruleset = Ruleset::default().handle_access(AccessFs::Execute)?.create()?;
        ruleset.restrict_self().map(|restricted| restricted.landlock)
    });
    judge_landlock(status.join().ok().and_then(Result::ok), missing)
}

fn judge_landlock(found: Option<LandlockStatus>, missing: DoctorStatus) -> DoctorCheck {
    const NAME: &str = "landlock";
    let lacking = |found: &str, remedy: &str| DoctorCheck {
        status: missing,
        ..DoctorCheck::degraded(NAME, found, remedy)
    };
    match found {
        // An older ABI is no problem, because the shim applies what the kernel has.
        Some(LandlockStatus::Available { effective_abi, .. }) => {
            DoctorCheck::ok(NAME, format!("ABI {} (a shim makes use of 6)", effective_abi as i32))
        }
        Some(LandlockStatus::NotEnabled) => lacking(
            "in this kernel, but not active",
            "add `landlock` to `lsm=` on the kernel's command line",
        ),
        Some(LandlockStatus::NotImplemented) => lacking(
            "not in this kernel",
            "use Linux 5.13 or later, built with CONFIG_SECURITY_LANDLOCK; best 6.12",
        ),
        None => lacking(
            "a thread could not be restricted",
            "check whether a seccomp filter restricts this process",
        ),
    }
}

/// Checks whether a seccomp filter can kill the process and log. If not, the status is `missing`.
pub(super) fn seccomp(missing: DoctorStatus) -> DoctorCheck {
    judge_seccomp(read("/proc/sys/kernel/seccomp/actions_avail").as_deref(), missing)
}

fn judge_seccomp(actions: Option<&str>, missing: DoctorStatus) -> DoctorCheck {
    const NAME: &str = "seccomp";
    let lacking = |found: String| {
        let remedy = "use a kernel with CONFIG_SECCOMP_FILTER, Linux 4.14 or later";
        DoctorCheck { status: missing, ..DoctorCheck::degraded(NAME, found, remedy) }
    };
    let Some(actions) = actions else { return lacking("no filters in this kernel".to_owned()) };
    let has = |action: &&str| actions.split_whitespace().any(|word| word == *action);
    // The filter uses `kill_process` with `confinement.seccomp` `enforce`, and `log` with `log`.
    match ["kill_process", "log"].iter().find(|action| !has(action)) {
        None => DoctorCheck::ok(NAME, "filters, with `kill_process` and `log`"),
        Some(action) => lacking(format!("filters, without `{action}`")),
    }
}

#[cfg(test)]
mod tests {
    use a3s_box_core::doctor::DoctorStatus::{Degraded, Failed, Ok};

    use super::*;

    fn kernel(release: &str) -> Option<Version> {
        Version::parse(release)
    }

    #[test]
    fn release_is_parsed_or_unknown() {
        let read = |release| kernel(release).map(|version| (version.major, version.minor));
        assert_eq!(read("6.18.44-fc-v657\n"), Some((6, 18)));
        assert_eq!(read("5.10"), Some((5, 10)));
        assert_eq!(read("6.1-rc3+"), Some((6, 1)));
        for odd in ["", "6", "six.1", "6.x", "-1.2", "99999999999.1", ".", "6..1"] {
            assert_eq!(kernel(odd), None, "{odd}");
        }
    }

    #[test]
    fn old_version_is_degraded_or_fails() {
        let cases = [
            ("5.5.19", Failed),
            ("4.19", Failed),
            ("5.6", Degraded),
            ("5.10.200", Degraded),
            ("5.11", Ok),
            ("6.1", Ok),
            ("10.0", Ok),
            ("odd", Degraded),
        ];
        for (release, expected) in cases {
            assert_eq!(version(kernel(release)).status, expected, "{release}");
        }
    }

    #[test]
    fn missing_landlock_has_the_status_of_the_caller() {
        let available =
            LandlockStatus::Available { effective_abi: landlock::ABI::V2, kernel_abi: None };
        let check = judge_landlock(Some(available), Failed);
        assert_eq!((check.status, &*check.found), (Ok, "ABI 2 (a shim makes use of 6)"));
        let lacks = [Some(LandlockStatus::NotEnabled), Some(LandlockStatus::NotImplemented), None];
        for found in lacks {
            for missing in [Degraded, Failed] {
                let check = judge_landlock(found, missing);
                assert!(check.status == missing && check.remedy.is_some(), "{check:?}");
            }
        }
    }

    #[test]
    fn seccomp_requires_both_actions() {
        let status = |actions| judge_seccomp(actions, Failed).status;
        assert_eq!(status(Some("kill_process kill_thread trap errno trace log allow\n")), Ok);
        for odd in ["", "kill_process", "log", "kill_thread logs kill_process"] {
            assert_eq!(status(Some(odd)), Failed, "{odd}");
        }
        assert_eq!(judge_seccomp(None, Degraded).status, Degraded);
    }
}
