//! Checks of the state directory and of the cache directory: permissions, file system and free
//! space.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use a3s_box_core::doctor::{DoctorCheck, DoctorStatus};
use nix::unistd::geteuid;
use rustix::fs::{Access, AtFlags, CWD, accessat, statfs};

/// Free space that the cache directory should have: about the size of the unpacked layers of one
/// common image with a language runtime.
const MIN_FREE_FOR_LAYERS: u64 = 1 << 30;

/// Free space that the state directory should have: the console files of two boxes at their default
/// limit of 64 MiB.
const MIN_FREE_FOR_STATE: u64 = 128 << 20;

/// File systems by their magic numbers (statfs(2)), and whether overlayfs accepts them for its
/// writable layer. It requires extended attributes and `d_type`, and no overlay itself
/// (Documentation/filesystems/overlayfs.rst).
const FILE_SYSTEMS: [(u64, &str, UpperLayer); 10] = [
    (0xef53, "ext4", UpperLayer::Accepted),
    (0x5846_5342, "xfs", UpperLayer::Accepted),
    (0x9123_683e, "btrfs", UpperLayer::Accepted),
    (0x0102_1994, "tmpfs", UpperLayer::Accepted),
    (0x2fc1_2fc1, "zfs", UpperLayer::Accepted),
    (0xf2f5_2010, "f2fs", UpperLayer::Accepted),
    (0x794c_7630, "overlay", UpperLayer::Refused),
    (0x6969, "nfs", UpperLayer::Refused),
    (0x0102_1997, "9p", UpperLayer::Refused),
    (0x6573_5546, "fuse", UpperLayer::Refused),
];

/// Whether overlayfs accepts a file system for its writable layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpperLayer {
    Accepted,
    Refused,
}

/// The requirements of one directory.
struct Requirements {
    name: &'static str,
    setting: &'static str,
    /// Mode bits that must not be set, because they give access to other users.
    forbidden_mode: u32,
    min_free_bytes: u64,
    /// Whether the directory contains the writable layers of boxes.
    has_upper_layers: bool,
}

/// Checks the state directory. The status is `unusable` if it cannot be used.
pub(super) fn state(path: &Path, unusable: DoctorStatus) -> DoctorCheck {
    let requirements = Requirements {
        name: "state_dir",
        setting: "paths.state_dir",
        forbidden_mode: 0o077,
        min_free_bytes: MIN_FREE_FOR_STATE,
        has_upper_layers: true,
    };
    examine(path, &requirements, unusable)
}

/// Checks the cache directory. The status is `unusable` if it cannot be used.
pub(super) fn cache(path: &Path, unusable: DoctorStatus) -> DoctorCheck {
    let requirements = Requirements {
        name: "cache_dir",
        setting: "paths.cache_dir",
        // Other users may list it, because its subdirectories have mode 0700.
        forbidden_mode: 0o022,
        min_free_bytes: MIN_FREE_FOR_LAYERS,
        has_upper_layers: false,
    };
    examine(path, &requirements, unusable)
}

fn examine(path: &Path, requirements: &Requirements, unusable: DoctorStatus) -> DoctorCheck {
    let Requirements { name, setting, .. } = requirements;
    let remedy = format!("set `{setting}` in the config to a directory of this user");
    let existing = match usable_ancestor(path, requirements.forbidden_mode) {
        Ok(existing) => existing,
        Err(complaint) => {
            let check = DoctorCheck::failed(name, complaint, remedy);
            return DoctorCheck { status: unusable, ..check };
        }
    };
    // A directory that is made later is on the file system of its ancestor.
    let (file_system, upper, free_bytes) = match statfs(existing) {
        Ok(found) => {
            // Both fields are signed in the kernel's structure, but never negative.
            let (kind, upper) = file_system(u64::try_from(found.f_type).unwrap_or_default());
            let block = u64::try_from(found.f_bsize).unwrap_or_default();
            (kind, upper, found.f_bavail.saturating_mul(block))
        }
        Err(errno) => {
            let found = format!("`{}`: {}", existing.display(), io::Error::from(errno));
            return DoctorCheck::degraded(name, found, remedy);
        }
    };
    let mib = free_bytes >> 20;
    let found = format!("`{}`: {file_system}, {mib} MiB free", path.display());
    if requirements.has_upper_layers && upper == UpperLayer::Refused {
        let found =
            format!("{found}; overlayfs accepts no writable layer there, so images are copied");
        return DoctorCheck::degraded(
            name,
            found,
            format!("{remedy} on ext4, xfs, btrfs or tmpfs"),
        );
    }
    match free_bytes < requirements.min_free_bytes {
        true => DoctorCheck::degraded(name, found, format!("free some space, or {remedy}")),
        false => DoctorCheck::ok(name, found),
    }
}

/// Returns the directory, or else its nearest existing ancestor if the directory can be made there.
/// The error says what is wrong.
fn usable_ancestor(path: &Path, forbidden_mode: u32) -> Result<&Path, String> {
    let complain =
        |path: &Path, problem: &dyn std::fmt::Display| format!("`{}`: {problem}", path.display());
    for ancestor in path.ancestors() {
        let found = match fs::metadata(ancestor) {
            Ok(found) => found,
            // The shim makes missing directories, so the next ancestor decides.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(complain(ancestor, &error)),
        };
        if !found.is_dir() {
            return Err(complain(ancestor, &"not a directory"));
        }
        let (user, mode) = (geteuid().as_raw(), found.mode() & 0o7777);
        if ancestor == path && (found.uid() != user || mode & forbidden_mode != 0) {
            let problem = format!(
                "of user {} with mode {mode:04o}, expected user {user} and mode 0700",
                found.uid()
            );
            return Err(complain(ancestor, &problem));
        }
        let access = Access::WRITE_OK | Access::EXEC_OK;
        // EACCESS asks for the effective user, with which the shim makes the directory.
        return match accessat(CWD, ancestor, access, AtFlags::EACCESS) {
            Ok(()) => Ok(ancestor),
            Err(errno) if ancestor == path => Err(complain(ancestor, &io::Error::from(errno))),
            Err(errno) => {
                let problem = format!(
                    "cannot be made in `{}`: {}",
                    ancestor.display(),
                    io::Error::from(errno)
                );
                Err(complain(path, &problem))
            }
        };
    }
    Err(complain(path, &"not absolute"))
}

fn file_system(magic: u64) -> (String, UpperLayer) {
    match FILE_SYSTEMS.iter().find(|(known, ..)| *known == magic) {
        Some((_, name, upper)) => ((*name).to_owned(), *upper),
        // Overlayfs accepts most file systems. If it refuses this one, a box copies its image.
        None => (format!("file system {magic:#x}"), UpperLayer::Accepted),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn directory_is_usable_or_can_be_made_in_its_nearest_ancestor() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        assert_eq!(usable_ancestor(&own.join("a/b"), 0o077), Ok(dir.path()));
        fs::create_dir(&own).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(usable_ancestor(&own, 0o022), Ok(own.as_path()));
        let complaint = usable_ancestor(&own, 0o077).unwrap_err();
        assert!(complaint.contains("mode 0755, expected user"), "{complaint}");
        // The mode of an ancestor does not matter, only that of the directory itself.
        assert_eq!(usable_ancestor(&own.join("a"), 0o077), Ok(own.as_path()));
        fs::write(own.join("file"), "").unwrap();
        for path in ["file", "file/a"] {
            let complaint = usable_ancestor(&own.join(path), 0o077).unwrap_err();
            assert!(complaint.contains("older") || complaint.contains("irectory"), "{complaint}");
        }
        let complaint = usable_ancestor(Path::new("relative/nowhere"), 0o077).unwrap_err();
        assert_eq!(complaint, "`relative/nowhere`: not absolute");
    }

    #[test]
    fn unusable_directory_has_the_status_of_the_caller() {
        for unusable in [DoctorStatus::Degraded, DoctorStatus::Failed] {
            let check = state(Path::new("/dev/null"), unusable);
            assert_eq!(check.status, unusable);
            assert!(check.remedy.unwrap().contains("paths.state_dir"));
            assert_eq!(cache(Path::new("/dev/null"), unusable).status, unusable);
        }
    }

    #[test]
    fn little_free_space_degrades_a_usable_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let requirements = |min_free_bytes| Requirements {
            name: "n",
            setting: "paths.n",
            forbidden_mode: 0o077,
            min_free_bytes,
            has_upper_layers: false,
        };
        let failed = DoctorStatus::Failed;
        let check = examine(dir.path(), &requirements(0), failed);
        assert_eq!(check.status, DoctorStatus::Ok, "{check:?}");
        assert!(check.found.contains(" MiB free"), "{check:?}");
        let check = examine(dir.path(), &requirements(u64::MAX), failed);
        assert_eq!(check.status, DoctorStatus::Degraded, "{check:?}");
        assert_eq!(file_system(0x794c_7630), ("overlay".to_owned(), UpperLayer::Refused));
        assert_eq!(file_system(0xef53), ("ext4".to_owned(), UpperLayer::Accepted));
        assert_eq!(file_system(1), ("file system 0x1".to_owned(), UpperLayer::Accepted));
    }
}
