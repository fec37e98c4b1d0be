//! Checks of the limits of this process: its cgroup, open files and locked memory.

use std::path::{Path, PathBuf};

use a3s_box_core::doctor::DoctorCheck;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::kernel_file::read;

/// Number of open files that is enough. libkrun keeps a file open for each inode that the guest has
/// cached, and a walk through a large image (Debian with a compiler) caches some 50,000. systemd's
/// default hard limit is 524288.
const ENOUGH_FILES: u64 = 65536;

/// Controllers that the shim uses to limit a box.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Checks whether the shim may make a cgroup with limits for a box below its own cgroup.
pub(super) fn cgroup() -> DoctorCheck {
    let mounts = read("/proc/self/mountinfo").unwrap_or_default();
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let Some(directory) = own_cgroup(&mounts, &own) else {
        return DoctorCheck::degraded(
            "cgroup",
            "version 2 is not mounted",
            "boot with `systemd.unified_cgroup_hierarchy=1`, or mount cgroup2",
        );
    };
    let controllers = read(&directory.join("cgroup.controllers").to_string_lossy());
    let writable = |name: &str| is_writable(&directory.join(name));
    let is_delegated = is_writable(&directory)
        && ["cgroup.procs", "cgroup.subtree_control"].into_iter().all(writable);
    let control = if is_delegated { Control::Delegated } else { Control::Denied };
    judge_cgroup(&directory, &controllers.unwrap_or_default(), control)
}

/// Whether this user may make cgroups below the cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Delegated,
    Denied,
}

fn judge_cgroup(directory: &Path, controllers: &str, control: Control) -> DoctorCheck {
    const NAME: &str = "cgroup";
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|name| !controllers.split_whitespace().any(|word| word == *name))
        .collect();
    let directory = directory.display();
    match (missing.is_empty(), control) {
        (_, Control::Denied) => DoctorCheck::degraded(
            NAME,
            format!("`{directory}` is not delegated"),
            "`Delegate=yes` in the unit, or `systemd-run --user --scope -p Delegate=yes`",
        ),
        (false, Control::Delegated) => DoctorCheck::degraded(
            NAME,
            format!("`{directory}` is without {}", missing.join(", ")),
            "use version 2 alone (`systemd.unified_cgroup_hierarchy=1`), and have its controllers \
             delegated",
        ),
        (true, Control::Delegated) => DoctorCheck::ok(
            NAME,
            format!("`{directory}` is delegated, with {}", CONTROLLERS.join(", ")),
        ),
    }
}

/// Returns the directory of this process's cgroup of version 2, from the texts of
/// `/proc/self/mountinfo` and `/proc/self/cgroup` (proc(5), cgroups(7)).
fn own_cgroup(mounts: &str, own: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let (root, point) = mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (filesystem.split(' ').next() == Some("cgroup2")).then_some((root, point))
    })?;
    // A bind mount shows only the part of the hierarchy below its root.
    let below = Path::new("/").join(path);
    let below = below.strip_prefix(root).ok()?;
    if path.split('/').any(|part| part == "..") {
        // The cgroup of the process is outside of its cgroup namespace, and has no path in it.
        return None;
    }
    // `components` removes the slash that `join` adds for an empty path.
    Some(Path::new(point).join(below).components().collect())
}

fn is_writable(path: &Path) -> bool {
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// Checks whether a guest can cache as many inodes as a large image has.
pub(super) fn open_files() -> DoctorCheck {
    const NAME: &str = "open_files";
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return DoctorCheck::degraded(NAME, "the limit cannot be read", "see `ulimit -Hn`");
    };
    judge_open_files(hard)
}

fn judge_open_files(hard: u64) -> DoctorCheck {
    const NAME: &str = "open_files";
    match hard >= ENOUGH_FILES {
        true => DoctorCheck::ok(NAME, format!("at most {}", to_text(hard))),
        false => DoctorCheck::degraded(
            NAME,
            format!("at most {hard}, one for each inode that the guest has cached"),
            "raise the hard limit: `LimitNOFILE=524288` in the unit, or /etc/security/limits.conf",
        ),
    }
}

/// Reports the limit of locked memory. Every value is good, because a box locks no memory.
pub(super) fn locked_memory() -> DoctorCheck {
    let found = match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((soft, _)) => format!("at most {} bytes; boxes lock none", to_text(soft)),
        Err(_) => "unknown; boxes lock none".to_owned(),
    };
    DoctorCheck::ok("locked_memory", found)
}

fn to_text(value: u64) -> String {
    if value == RLIM_INFINITY { "unlimited".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use a3s_box_core::doctor::DoctorStatus::{Degraded, Ok};

    use super::*;

    const UNIFIED: &str = "25 1 0:22 / /proc rw - proc proc rw\n\
                           30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";

    #[test]
    fn own_cgroup_is_below_the_mount_of_version_2() {
        let hybrid = "31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let part = "30 25 0:26 /user.slice /mnt rw - cgroup2 cgroup2 rw\n";
        let cases = [
            (UNIFIED, "0::/user.slice/a.scope\n", Some("/sys/fs/cgroup/user.slice/a.scope")),
            (UNIFIED, "0::/\n", Some("/sys/fs/cgroup")),
            (hybrid, "4:memory:/x\n0::/y\n", Some("/sys/fs/cgroup/unified/y")),
            (part, "0::/user.slice/a\n", Some("/mnt/a")),
            (part, "0::/system.slice/a\n", None),
            (UNIFIED, "4:memory:/x\n", None),
            (UNIFIED, "0::/../../x\n", None),
            (UNIFIED, "", None),
            ("", "0::/\n", None),
            ("cgroup2\n - cgroup2\n1 2 3 - cgroup2 x\n\u{fffd}", "0::/\n", None),
        ];
        for (mounts, own, expected) in cases {
            let found = own_cgroup(mounts, own);
            let found = found.as_deref().and_then(Path::to_str);
            assert_eq!(found, expected, "{mounts:?} {own:?}");
        }
    }

    #[test]
    fn cgroup_must_be_delegated_with_all_controllers() {
        let judge = |controllers, control| judge_cgroup(Path::new("/c"), controllers, control);
        let all = "cpuset cpu io memory pids\n";
        assert_eq!(judge(all, Control::Delegated).status, Ok);
        assert_eq!(judge(all, Control::Denied).status, Degraded);
        let check = judge("cpuset memory", Control::Delegated);
        assert_eq!((check.status, check.found.as_str()), (Degraded, "`/c` is without cpu, pids"));
        assert_eq!(judge("", Control::Delegated).status, Degraded);
    }

    #[test]
    fn few_open_files_are_degraded() {
        assert_eq!(judge_open_files(ENOUGH_FILES - 1).status, Degraded);
        assert_eq!(judge_open_files(ENOUGH_FILES).status, Ok);
        assert_eq!(judge_open_files(RLIM_INFINITY).found, "at most unlimited");
    }
}
