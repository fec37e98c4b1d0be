//! The state directory and the layer cache: whether they are usable, on what, and how much room is left.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use a3s_box_core::doctor::{DoctorCheck, DoctorStatus};
use nix::unistd::geteuid;
use rustix::fs::{Access, AtFlags, CWD, accessat, statfs};

/// The unpacked layers of a common image with a language in it take about that.
const ROOM_FOR_LAYERS: u64 = 1 << 30;

/// Logs of two boxes at their default limit (64 MiB each).
const ROOM_FOR_STATE: u64 = 128 << 20;

/// File systems by their magic numbers (statfs(2)), and whether overlayfs keeps what a box writes on
/// them (Documentation/filesystems/overlayfs.rst: xattrs, `d_type`, no overlay itself).
const FILESYSTEMS: [(u64, &str, Upper); 10] = [
    (0xef53, "ext4", Upper::Taken),
    (0x5846_5342, "xfs", Upper::Taken),
    (0x9123_683e, "btrfs", Upper::Taken),
    (0x0102_1994, "tmpfs", Upper::Taken),
    (0x2fc1_2fc1, "zfs", Upper::Taken),
    (0xf2f5_2010, "f2fs", Upper::Taken),
    (0x794c_7630, "overlay", Upper::Refused),
    (0x6969, "nfs", Upper::Refused),
    (0x0102_1997, "9p", Upper::Refused),
    (0x6573_5546, "fuse", Upper::Refused),
];

/// Whether overlayfs takes a writable layer there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upper {
    Taken,
    Refused,
}

/// What is needed of a directory.
struct Need {
    name: &'static str,
    setting: &'static str,
    /// Permissions that nobody else may have.
    forbidden: u32,
    room_bytes: u64,
    holds_upper: bool,
}

/// Examines the directory of the boxes. `unusable` is what it counts when it cannot be used.
pub(super) fn state(path: &Path, unusable: DoctorStatus) -> DoctorCheck {
    let need = Need {
        name: "state_dir",
        setting: "paths.state_dir",
        forbidden: 0o077,
        room_bytes: ROOM_FOR_STATE,
        holds_upper: true,
    };
    examine(path, &need, unusable)
}

/// Examines the directory of the layers.
pub(super) fn cache(path: &Path, unusable: DoctorStatus) -> DoctorCheck {
    let need = Need {
        name: "cache_dir",
        setting: "paths.cache_dir",
        // Its own directories inside are closed to everybody else.
        forbidden: 0o022,
        room_bytes: ROOM_FOR_LAYERS,
        holds_upper: false,
    };
    examine(path, &need, unusable)
}

fn examine(path: &Path, need: &Need, unusable: DoctorStatus) -> DoctorCheck {
    let Need { name, setting, .. } = need;
    let remedy = format!("set `{setting}` in the config to a directory of this user");
    let existing = match usable_part(path, need.forbidden) {
        Ok(existing) => existing,
        Err(complaint) => {
            let check = DoctorCheck::failed(name, complaint, remedy);
            return DoctorCheck { status: unusable, ..check };
        }
    };
    let (filesystem, upper, free_bytes) = match statfs(existing) {
        Ok(found) => {
            // Neither is negative.
            let (kind, upper) = filesystem(u64::try_from(found.f_type).unwrap_or_default());
            let block = u64::try_from(found.f_bsize).unwrap_or_default();
            (kind, upper, found.f_bavail.saturating_mul(block))
        }
        Err(errno) => {
            let found = format!("`{}`: {}", existing.display(), io::Error::from(errno));
            return DoctorCheck::degraded(name, found, remedy);
        }
    };
    let mib = free_bytes >> 20;
    let found = format!("`{}`: {filesystem}, {mib} MiB free", path.display());
    if need.holds_upper && upper == Upper::Refused {
        let found = format!("{found}; overlayfs takes no writable layer there: images are copied");
        return DoctorCheck::degraded(
            name,
            found,
            format!("{remedy} on ext4, xfs, btrfs or tmpfs"),
        );
    }
    match free_bytes < need.room_bytes {
        true => DoctorCheck::degraded(name, found, format!("make room, or {remedy}")),
        false => DoctorCheck::ok(name, found),
    }
}

/// The directory, or the nearest one above it in which it can be made; else what is wrong.
fn usable_part(path: &Path, forbidden: u32) -> Result<&Path, String> {
    let complain =
        |path: &Path, what: &dyn std::fmt::Display| format!("`{}`: {what}", path.display());
    for part in path.ancestors() {
        let found = match fs::metadata(part) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(complain(part, &error)),
        };
        if !found.is_dir() {
            return Err(complain(part, &"not a directory"));
        }
        let (user, mode) = (geteuid().as_raw(), found.mode() & 0o7777);
        if part == path && (found.uid() != user || mode & forbidden != 0) {
            let what = format!(
                "of user {} with mode {mode:04o}, expected user {user} and mode 0700",
                found.uid()
            );
            return Err(complain(part, &what));
        }
        let access = Access::WRITE_OK | Access::EXEC_OK;
        return match accessat(CWD, part, access, AtFlags::EACCESS) {
            Ok(()) => Ok(part),
            Err(errno) if part == path => Err(complain(part, &io::Error::from(errno))),
            Err(errno) => {
                let what =
                    format!("cannot be made in `{}`: {}", part.display(), io::Error::from(errno));
                Err(complain(path, &what))
            }
        };
    }
    Err(complain(path, &"not absolute"))
}

fn filesystem(magic: u64) -> (String, Upper) {
    match FILESYSTEMS.iter().find(|(known, ..)| *known == magic) {
        Some((_, name, upper)) => ((*name).to_owned(), *upper),
        // Whether overlayfs takes it, a box will see.
        None => (format!("file system {magic:#x}"), Upper::Taken),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_is_used_or_made_in_the_nearest_one_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        assert_eq!(usable_part(&own.join("a/b"), 0o077), Ok(dir.path()));
        fs::create_dir(&own).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(usable_part(&own, 0o022), Ok(own.as_path()));
        let complaint = usable_part(&own, 0o077).unwrap_err();
        assert!(complaint.contains("mode 0755, expected user"), "{complaint}");
        // Not the directory itself, but one above it: no matter.
        assert_eq!(usable_part(&own.join("a"), 0o077), Ok(own.as_path()));
        fs::write(own.join("file"), "").unwrap();
        for path in ["file", "file/a"] {
            let complaint = usable_part(&own.join(path), 0o077).unwrap_err();
            assert!(complaint.contains("older") || complaint.contains("irectory"), "{complaint}");
        }
        let complaint = usable_part(Path::new("relative/nowhere"), 0o077).unwrap_err();
        assert_eq!(complaint, "`relative/nowhere`: not absolute");
    }

    #[test]
    fn what_cannot_be_used_counts_as_the_caller_says() {
        for unusable in [DoctorStatus::Degraded, DoctorStatus::Failed] {
            let check = state(Path::new("/dev/null"), unusable);
            assert_eq!(check.status, unusable);
            assert!(check.remedy.unwrap().contains("paths.state_dir"));
            assert_eq!(cache(Path::new("/dev/null"), unusable).status, unusable);
        }
    }

    #[test]
    fn room_and_file_system_decide_over_a_usable_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let need = |room_bytes| Need {
            name: "n",
            setting: "paths.n",
            forbidden: 0o077,
            room_bytes,
            holds_upper: false,
        };
        let failed = DoctorStatus::Failed;
        let check = examine(dir.path(), &need(0), failed);
        assert_eq!(check.status, DoctorStatus::Ok, "{check:?}");
        assert!(check.found.contains(" MiB free"), "{check:?}");
        let check = examine(dir.path(), &need(u64::MAX), failed);
        assert_eq!(check.status, DoctorStatus::Degraded, "{check:?}");
        assert_eq!(filesystem(0x794c_7630), ("overlay".to_owned(), Upper::Refused));
        assert_eq!(filesystem(0xef53), ("ext4".to_owned(), Upper::Taken));
        assert_eq!(filesystem(1), ("file system 0x1".to_owned(), Upper::Taken));
    }
}
