//! The host's kernel: its version, and what it has to confine a shim with.

use std::fmt;

use a3s_box_core::doctor::DoctorCheck;
use nix::unistd::geteuid;

use super::read;

/// `openat2(2)`, by which nothing in an image leads out of its folder.
const OLDEST: Version = Version { major: 5, minor: 6 };

/// `volatile` of overlayfs came with 5.10, overlayfs for ordinary users with 5.11.
const OVERLAY: Version = Version { major: 5, minor: 11 };

/// Which kernel brought which ABI of Landlock (landlock(7)).
const LANDLOCK: [(Version, u32); 7] = [
    (Version { major: 6, minor: 15 }, 7),
    (Version { major: 6, minor: 12 }, 6),
    (Version { major: 6, minor: 10 }, 5),
    (Version { major: 6, minor: 7 }, 4),
    (Version { major: 6, minor: 2 }, 3),
    (Version { major: 5, minor: 19 }, 2),
    (Version { major: 5, minor: 13 }, 1),
];

/// Version of a kernel, as far as features go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// None if the kernel does not say it in a known form.
    pub(super) fn of_host() -> Option<Self> {
        Self::parse(&read("/proc/sys/kernel/osrelease")?)
    }

    /// Reads `6.18.44-fc`, or `5.10` or `6.1-rc3`.
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

/// Whether the kernel has what the shim is built on.
pub(super) fn version(kernel: Option<Version>) -> DoctorCheck {
    const NAME: &str = "kernel";
    match kernel {
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
            format!("Linux {found}: overlayfs is not for ordinary users, or slower"),
            format!("use Linux {OVERLAY} or later"),
        ),
        Some(found) => DoctorCheck::ok(NAME, format!("Linux {found}")),
    }
}

/// Whether Landlock is among the active security modules. Its ABI is that of the kernel's version:
/// only a system call tells it for sure.
pub(super) fn landlock(kernel: Option<Version>) -> DoctorCheck {
    judge_landlock(read("/sys/kernel/security/lsm").as_deref(), kernel)
}

fn judge_landlock(modules: Option<&str>, kernel: Option<Version>) -> DoctorCheck {
    const NAME: &str = "landlock";
    let Some(abi) = landlock_abi(kernel) else {
        let found = "not in this kernel: it came with Linux 5.13";
        return DoctorCheck::degraded(NAME, found, "use Linux 6.2 or later");
    };
    match modules {
        None => DoctorCheck::degraded(
            NAME,
            "unknown: `/sys/kernel/security/lsm` cannot be read",
            "mount securityfs: `mount -t securityfs securityfs /sys/kernel/security`",
        ),
        Some(modules) if modules.trim().split(',').any(|module| module == "landlock") => {
            DoctorCheck::ok(NAME, format!("active, ABI {abi} by the kernel's version"))
        }
        Some(modules) => DoctorCheck::degraded(
            NAME,
            format!("not among the active security modules (`{}`)", modules.trim()),
            "add `landlock` to `lsm=` on the kernel's command line",
        ),
    }
}

fn landlock_abi(kernel: Option<Version>) -> Option<u32> {
    LANDLOCK
        .iter()
        .find(|(since, _)| kernel.is_some_and(|kernel| kernel >= *since))
        .map(|row| row.1)
}

/// Whether a filter of system calls can end the process, and log.
pub(super) fn seccomp() -> DoctorCheck {
    judge_seccomp(read("/proc/sys/kernel/seccomp/actions_avail").as_deref())
}

fn judge_seccomp(actions: Option<&str>) -> DoctorCheck {
    const NAME: &str = "seccomp";
    let remedy = "use a kernel with CONFIG_SECCOMP_FILTER, Linux 4.14 or later";
    let Some(actions) = actions else {
        return DoctorCheck::degraded(NAME, "no filters in this kernel", remedy);
    };
    let has = |action: &&str| actions.split_whitespace().any(|word| word == *action);
    match ["kill_process", "log"].iter().find(|action| !has(action)) {
        None => DoctorCheck::ok(NAME, "filters, with `kill_process` and `log`"),
        Some(action) => DoctorCheck::degraded(NAME, format!("filters, without `{action}`"), remedy),
    }
}

/// Whether this process is root, as the shim sees it.
pub(super) fn is_root() -> bool {
    geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use a3s_box_core::doctor::DoctorStatus::{Degraded, Failed, Ok};

    use super::*;

    fn kernel(release: &str) -> Option<Version> {
        Version::parse(release)
    }

    #[test]
    fn version_is_read_or_unknown() {
        let read = |release| kernel(release).map(|version| (version.major, version.minor));
        assert_eq!(read("6.18.44-fc-v657\n"), Some((6, 18)));
        assert_eq!(read("5.10"), Some((5, 10)));
        assert_eq!(read("6.1-rc3+"), Some((6, 1)));
        for odd in ["", "6", "six.1", "6.x", "-1.2", "99999999999.1", ".", "6..1"] {
            assert_eq!(kernel(odd), None, "{odd}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
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
    fn landlock_is_active_when_it_is_in_the_list() {
        let modules = Some("lockdown,capability,landlock,yama\n");
        let found = |modules, release| {
            let check = judge_landlock(modules, kernel(release));
            (check.status, check.found)
        };
        let active = |abi| (Ok, format!("active, ABI {abi} by the kernel's version"));
        for (release, abi) in
            [("5.13", 1), ("5.19", 2), ("6.1", 2), ("6.2", 3), ("6.9", 4), ("6.12", 6), ("7.0", 7)]
        {
            assert_eq!(found(modules, release), active(abi), "{release}");
        }
        assert_eq!(found(modules, "5.12").0, Degraded);
        assert_eq!(found(modules, "odd").0, Degraded);
        assert_eq!(found(None, "6.1").0, Degraded);
        for odd in ["", "capability", "landlocked,capability", "\n,,\n"] {
            assert_eq!(found(Some(odd), "6.1").0, Degraded, "{odd:?}");
        }
    }

    #[test]
    fn seccomp_needs_both_actions() {
        let status = |actions| judge_seccomp(actions).status;
        assert_eq!(status(Some("kill_process kill_thread trap errno trace log allow\n")), Ok);
        for odd in ["", "kill_process", "log", "kill_thread logs kill_process"] {
            assert_eq!(status(Some(odd)), Degraded, "{odd}");
        }
        assert_eq!(status(None), Degraded);
    }
}
