//! Checks of the requirements of the shim's user: user namespaces, and without root sub-ids.
//!
//! This file only reads the settings. `trials` tries whether this executable gets its namespaces. A
//! run of `unshare(1)` would not show it, because `AppArmor` can have a rule for each executable.

use a3s_box_core::doctor::DoctorCheck;
use nix::unistd::geteuid;

use super::kernel_file::read;
use crate::host::user_namespace::{SubIds, has_programs};

/// Number of sub-ids that common images need: all ids of 16 bits except root, which is mapped to
/// the user.
const USUAL_IDS: u64 = 65535;

/// Settings of the host kernel. A setting that the host kernel does not have is absent.
#[derive(Clone, Copy, Debug, Default)]
struct Settings {
    /// `user.max_user_namespaces`.
    max: Option<u64>,
    /// `kernel.unprivileged_userns_clone` of Debian's kernels.
    clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns` of Ubuntu's kernels.
    apparmor: Option<u64>,
}

/// Returns whether this process runs as root.
pub(super) fn is_root() -> bool {
    geteuid().is_root()
}

/// Checks whether this user may make user namespaces.
pub(super) fn user_namespaces() -> DoctorCheck {
    let number = |path| read(path).and_then(|text| text.trim().parse().ok());
    let max = number("/proc/sys/user/max_user_namespaces");
    // The other settings do not apply to root.
    if is_root() {
        return judge_settings(Settings { max, ..Settings::default() });
    }
    judge_settings(Settings {
        max,
        clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
        apparmor: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
    })
}

fn judge_settings(settings: Settings) -> DoctorCheck {
    const NAME: &str = "user_namespaces";
    // Settings that forbid user namespaces come before one that may only restrict them.
    match settings {
        Settings { max: None, .. } => DoctorCheck::failed(
            NAME,
            "not in this kernel, or /proc is not mounted",
            "use a kernel with CONFIG_USER_NS, and mount /proc",
        ),
        Settings { max: Some(0), .. } => DoctorCheck::failed(
            NAME,
            "user.max_user_namespaces is 0",
            "`sysctl user.max_user_namespaces=15000`",
        ),
        Settings { clone: Some(0), .. } => DoctorCheck::failed(
            NAME,
            "kernel.unprivileged_userns_clone is 0",
            "`sysctl kernel.unprivileged_userns_clone=1`, or run as root",
        ),
        Settings { apparmor: Some(1..), .. } => DoctorCheck::degraded(
            NAME,
            "kernel.apparmor_restrict_unprivileged_userns is set: AppArmor decides for each executable",
            "give the shim an AppArmor profile with `userns,`, or set it to 0",
        ),
        Settings { max: Some(max), .. } => DoctorCheck::ok(NAME, format!("at most {max}")),
    }
}

/// Checks whether this user has sub-ids for the users in images, other than root, that own files.
pub(super) fn sub_ids() -> DoctorCheck {
    if is_root() {
        return DoctorCheck::ok("sub_ids", "not needed: root");
    }
    let helpers = if has_programs() { HelperPrograms::Found } else { HelperPrograms::Missing };
    judge_sub_ids(SubIds::of_this_user().counts(), helpers)
}

/// Whether the helper programs `newuidmap` and `newgidmap` are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HelperPrograms {
    Found,
    Missing,
}

fn judge_sub_ids((uids, gids): (u64, u64), helpers: HelperPrograms) -> DoctorCheck {
    const NAME: &str = "sub_ids";
    let found = format!("{uids} user ids and {gids} group ids");
    // Without the set-user-id helper programs, a user may map only the own id (user_namespaces(7)).
    if helpers == HelperPrograms::Missing {
        let found = format!(
            "{found}, without `newuidmap` and `newgidmap`: images with files of one user only"
        );
        let remedy = "install the package `uidmap`";
        return match uids.min(gids) {
            0 => DoctorCheck::degraded(NAME, found, format!("{remedy}, and {}", give_sub_ids())),
            _ => DoctorCheck::degraded(NAME, found, remedy),
        };
    }
    match uids.min(gids) {
        0 => DoctorCheck::degraded(
            NAME,
            format!("{found}: images with files of one user only"),
            give_sub_ids(),
        ),
        // The guest's ids are mapped from 1 on, so that the largest ids have no mapping.
        few if few < USUAL_IDS => DoctorCheck::degraded(
            NAME,
            format!("{found}: images with small ids only"),
            give_sub_ids(),
        ),
        _ => DoctorCheck::ok(NAME, found),
    }
}

fn give_sub_ids() -> String {
    let uid = geteuid();
    format!(
        "give the user sub-ids: a line `{uid}:100000:65536` in /etc/subuid and in /etc/subgid, or \
         another free range"
    )
}

#[cfg(test)]
mod tests {
    use a3s_box_core::doctor::DoctorStatus::{Degraded, Failed, Ok};

    use super::*;

    #[test]
    fn setting_that_forbids_user_namespaces_is_named() {
        let free = Settings { max: Some(96365), clone: None, apparmor: None };
        let cases = [
            (free, Ok, "96365"),
            (Settings { clone: Some(1), apparmor: Some(0), ..free }, Ok, "96365"),
            (Settings { max: Some(0), ..free }, Failed, "max_user_namespaces"),
            (Settings { clone: Some(0), ..free }, Failed, "unprivileged_userns_clone"),
            (Settings { apparmor: Some(1), ..free }, Degraded, "apparmor"),
            (Settings { apparmor: Some(2), clone: Some(0), ..free }, Failed, "userns_clone"),
            (Settings::default(), Failed, "kernel"),
        ];
        for (settings, expected, word) in cases {
            let check = judge_settings(settings);
            assert_eq!(check.status, expected, "{settings:?}");
            assert!(check.found.contains(word), "{check:?}");
        }
    }

    #[test]
    fn sub_ids_need_both_tables_and_both_helper_programs() {
        let remedy = |counts, helpers| {
            let check = judge_sub_ids(counts, helpers);
            (check.status, check.remedy.unwrap_or_default())
        };
        assert_eq!(remedy((65536, 65536), HelperPrograms::Found), (Ok, String::new()));
        assert_eq!(remedy((USUAL_IDS, u64::MAX), HelperPrograms::Found).0, Ok);
        for counts in [(0, 0), (65536, 0), (0, 65536), (65534, 65536)] {
            let (status, remedy) = remedy(counts, HelperPrograms::Found);
            assert!(status == Degraded && remedy.contains("/etc/subuid"), "{counts:?} {remedy}");
            assert!(!remedy.contains("`uidmap`"), "{remedy}");
        }
        let (status, text) = remedy((65536, 65536), HelperPrograms::Missing);
        assert!(status == Degraded && text.contains("`uidmap`") && !text.contains("subuid"));
        let (_, text) = remedy((65536, 0), HelperPrograms::Missing);
        assert!(text.contains("`uidmap`") && text.contains("subuid"));
    }
}
