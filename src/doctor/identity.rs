//! What an ordinary user needs in root's place: user namespaces and sub-ids.
//!
//! Only the settings are read here: whether this executable really gets its namespaces is tried (see
//! `trials`). `unshare(1)` would not tell: `AppArmor` has rules for each program.

use a3s_box_core::doctor::DoctorCheck;
use nix::unistd::geteuid;

use super::kernel;
use super::kernel_file::read;
use crate::host::user_namespace::{SubIds, has_programs};

/// How many ids the usual image has: those of 16 bits, root being the user.
const USUAL_IDS: u64 = 65535;

/// The kernel's settings; absent where the kernel has no such setting.
#[derive(Clone, Copy, Debug, Default)]
struct Settings {
    /// `user.max_user_namespaces`.
    most: Option<u64>,
    /// `kernel.unprivileged_userns_clone` of Debian's kernels.
    clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns` of Ubuntu's kernels.
    apparmor: Option<u64>,
}

/// Whether ordinary users may make user namespaces.
pub(super) fn user_namespaces() -> DoctorCheck {
    if kernel::is_root() {
        return DoctorCheck::ok("user_namespaces", "not needed: root");
    }
    let number = |path| read(path).and_then(|text| text.trim().parse().ok());
    judge_settings(Settings {
        most: number("/proc/sys/user/max_user_namespaces"),
        clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
        apparmor: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
    })
}

fn judge_settings(settings: Settings) -> DoctorCheck {
    const NAME: &str = "user_namespaces";
    match settings {
        Settings { most: None, .. } => DoctorCheck::failed(
            NAME,
            "not in this kernel, or /proc is not mounted",
            "use a kernel with CONFIG_USER_NS, or run as root",
        ),
        Settings { most: Some(0), .. } => DoctorCheck::failed(
            NAME,
            "user.max_user_namespaces is 0",
            "`sysctl user.max_user_namespaces=15000`, or run as root",
        ),
        Settings { clone: Some(0), .. } => DoctorCheck::failed(
            NAME,
            "kernel.unprivileged_userns_clone is 0",
            "`sysctl kernel.unprivileged_userns_clone=1`, or run as root",
        ),
        Settings { apparmor: Some(1..), .. } => DoctorCheck::degraded(
            NAME,
            "kernel.apparmor_restrict_unprivileged_userns is set: AppArmor decides for each program",
            "give the shim an AppArmor profile with `userns,`, or set it to 0",
        ),
        Settings { most: Some(most), .. } => DoctorCheck::ok(NAME, format!("at most {most}")),
    }
}

/// Whether this user has ids for the files of an image's other users.
pub(super) fn sub_ids() -> DoctorCheck {
    if kernel::is_root() {
        return DoctorCheck::ok("sub_ids", "not needed: root");
    }
    let programs = if has_programs() { Programs::Found } else { Programs::Missing };
    judge_sub_ids(SubIds::of_this_user().counts(), programs)
}

/// Whether `newuidmap` and `newgidmap` are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Programs {
    Found,
    Missing,
}

fn judge_sub_ids((uids, gids): (u64, u64), programs: Programs) -> DoctorCheck {
    const NAME: &str = "sub_ids";
    let found = format!("{uids} user ids and {gids} group ids");
    if programs == Programs::Missing {
        let found =
            format!("{found}, without `newuidmap` and `newgidmap`: images of one owner only");
        let remedy = "install the package `uidmap`";
        return match uids.min(gids) {
            0 => DoctorCheck::degraded(NAME, found, format!("{remedy}, and {}", give_sub_ids())),
            _ => DoctorCheck::degraded(NAME, found, remedy),
        };
    }
    match uids.min(gids) {
        0 => DoctorCheck::degraded(
            NAME,
            format!("{found}: images of one owner only"),
            give_sub_ids(),
        ),
        few if few < USUAL_IDS => DoctorCheck::degraded(
            NAME,
            format!("{found}: images of small ids only"),
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
    fn each_setting_that_forbids_user_namespaces_is_named() {
        let free = Settings { most: Some(96365), clone: None, apparmor: None };
        let cases = [
            (free, Ok, "96365"),
            (Settings { clone: Some(1), apparmor: Some(0), ..free }, Ok, "96365"),
            (Settings { most: Some(0), ..free }, Failed, "max_user_namespaces"),
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
    fn sub_ids_need_both_tables_and_both_programs() {
        let remedy = |counts, programs| {
            let check = judge_sub_ids(counts, programs);
            (check.status, check.remedy.unwrap_or_default())
        };
        assert_eq!(remedy((65536, 65536), Programs::Found), (Ok, String::new()));
        assert_eq!(remedy((USUAL_IDS, u64::MAX), Programs::Found).0, Ok);
        for counts in [(0, 0), (65536, 0), (0, 65536), (65534, 65536)] {
            let (status, remedy) = remedy(counts, Programs::Found);
            assert!(status == Degraded && remedy.contains("/etc/subuid"), "{counts:?} {remedy}");
            assert!(!remedy.contains("`uidmap`"), "{remedy}");
        }
        let (status, text) = remedy((65536, 65536), Programs::Missing);
        assert!(status == Degraded && text.contains("`uidmap`") && !text.contains("subuid"));
        let (_, text) = remedy((65536, 0), Programs::Missing);
        assert!(text.contains("`uidmap`") && text.contains("subuid"));
    }
}
