//! Mounts the file systems of the guest: the standard ones first, then those of the config.
//!
//! An image can have any kind of file at a mount point. A mount point of a required file system
//! that is not a directory is an error. `/run` and `/tmp` get a tmpfs only if they are missing or
//! empty in the image: images ship directories there (`/run/mysqld`) that their programs need, and
//! a mount would hide them.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use a3s_box_proto::control::{Mount, mount};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount as mount_kernel};

/// Mount point of the cgroups.
pub(crate) const CGROUP: &str = "/sys/fs/cgroup";

/// Mode of a mount point that was missing.
const TARGET_MODE: u32 = 0o755;

/// The reason why a file system is not mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// The target is not a directory.
    #[error("mount target `{path}`: found {found}, expected a directory", path = path.display())]
    NotADirectory {
        /// The target.
        path: PathBuf,
        /// The kind of file that is there.
        found: &'static str,
    },
    /// The target cannot be examined or created.
    #[error("cannot make mount target `{path}`", path = path.display())]
    MakeTarget {
        /// The target.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// `mount(2)` failed.
    #[error("cannot mount {what} at `{path}`", path = path.display())]
    Mount {
        /// Type of the file system, with the tag of the device if it has one.
        what: String,
        /// The target.
        path: PathBuf,
        /// Error of the kernel.
        source: Errno,
    },
    /// The target of a mount in the config is relative, or is the root itself.
    #[error("mount target `{found}`: expected an absolute path below `/`")]
    BadTarget {
        /// The target as the config has it.
        found: String,
    },
    /// A mount in the config has no source, or one of a kind that this version does not implement.
    #[error("mount target `{target}`: found no source, expected virtiofs or tmpfs")]
    NoSource {
        /// The target as the config has it.
        target: String,
    },
    /// A symbolic link in `/dev` cannot be created.
    #[error("cannot link `{path}`", path = path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
}

/// The condition for a standard mount.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// Only if the target is missing or an empty directory.
    Unused,
}

/// A mount that every box has. The fields are arguments of `mount(2)`.
struct Standard {
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    data: &'static str,
    when: When,
}

const NOSUID: MsFlags = MsFlags::MS_NOSUID;
const NODEV: MsFlags = MsFlags::MS_NODEV;
const NOEXEC: MsFlags = MsFlags::MS_NOEXEC;

const fn standard(
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    data: &'static str,
) -> Standard {
    Standard { target, kind, flags, data, when: When::Always }
}

/// Returns the standard mounts in the order in which they are made. Some targets are in a file
/// system that comes earlier in the list.
fn standards() -> [Standard; 8] {
    let quiet = NOSUID.union(NODEV).union(NOEXEC);
    let private = NOSUID.union(NODEV);
    [
        // Not nodev, because the file system consists of device nodes.
        standard("/dev", "devtmpfs", NOSUID, "mode=755"),
        standard("/proc", "proc", quiet, ""),
        standard("/sys", "sysfs", quiet, ""),
        standard(CGROUP, "cgroup2", quiet, ""),
        // `ptmxmode` must be set: the default 0000 keeps users from `/dev/pts/ptmx`. Group 5 is
        // `tty` in most distributions, and mode 0620 lets its members write to terminals.
        standard(
            "/dev/pts",
            "devpts",
            NOSUID.union(NOEXEC),
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        standard("/dev/shm", "tmpfs", private, "mode=1777"),
        Standard { when: When::Unused, ..standard("/run", "tmpfs", private, "mode=755") },
        Standard { when: When::Unused, ..standard("/tmp", "tmpfs", private, "mode=1777") },
    ]
}

/// Symbolic links in `/dev` that programs expect. devtmpfs does not contain them.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Mounts the file systems that every box has, and creates the links in `/dev`.
///
/// Stops at the first error. The mounts that were made until then stay, because the box ends.
pub(crate) fn mount_standard() -> Result<(), MountError> {
    for entry in standards() {
        let path = Path::new(entry.target);
        if matches!(entry.when, When::Unused) && !is_unused(path) {
            continue;
        }
        make_directory(path)?;
        mount_at(entry.kind, path, entry.kind, entry.flags, entry.data)?;
    }
    for (path, target) in LINKS {
        match symlink(target, path) {
            // EEXIST: the name is in `/dev` already and stays as it is.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(MountError::Link { path: path.into(), source: error });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes the mounts of the config in the order of the config. Stops at the first error.
pub(crate) fn mount_configured(mounts: &[Mount]) -> Result<(), MountError> {
    for entry in mounts {
        let path = Path::new(&entry.target);
        // Only `/` is absolute and has no parent. A mount there would have no effect on processes,
        // because their root stays the directory below the mount.
        if !path.is_absolute() || path.parent().is_none() {
            return Err(MountError::BadTarget { found: entry.target.clone() });
        }
        let source = entry
            .source
            .as_ref()
            .ok_or_else(|| MountError::NoSource { target: entry.target.clone() })?;
        make_target(path)?;
        // A share or a tmpfs is no part of the image, so no set-user-id program and no device node
        // is expected in it.
        let private = NOSUID | NODEV;
        match source {
            mount::Source::Virtiofs(device) if device.read_only => {
                mount_at(&device.tag, path, "virtiofs", private | MsFlags::MS_RDONLY, "")?;
            }
            mount::Source::Virtiofs(device) => {
                mount_at(&device.tag, path, "virtiofs", private, "")?;
            }
            mount::Source::Tmpfs(memory) => {
                mount_at("tmpfs", path, "tmpfs", private, &tmpfs_data(memory.size_mib))?;
            }
        }
    }
    Ok(())
}

/// Returns the mount options of a tmpfs. The mode is Docker's default. Without a size, the kernel
/// limits a tmpfs to half of the memory (`tmpfs(5)`).
fn tmpfs_data(size_mib: u64) -> String {
    match size_mib {
        0 => "mode=1777".to_owned(),
        size_mib => format!("mode=1777,size={size_mib}m"),
    }
}

/// Calls `mount(2)`. An existing mount of the same file system is no error, unless it is a
/// virtio-fs device.
fn mount_at(
    source: &str,
    path: &Path,
    kind: &str,
    flags: MsFlags,
    data: &str,
) -> Result<(), MountError> {
    match mount_kernel(Some(source), path, Some(kind), flags, Some(data)) {
        Ok(()) => Ok(()),
        // mount(2) reports EBUSY if the file system is already mounted at the target. A kernel with
        // CONFIG_DEVTMPFS_MOUNT has done so for devtmpfs. virtio-fs is never mounted in advance, so
        // its error is reported.
        Err(Errno::EBUSY) if kind != "virtiofs" => Ok(()),
        Err(errno) => {
            let what = if source == kind { kind.to_owned() } else { format!("{kind} `{source}`") };
            Err(MountError::Mount { what, path: path.to_path_buf(), source: errno })
        }
    }
}

/// Makes the mount point of a standard file system. A symbolic link is an error: following it would
/// mount the file system over another directory of the image.
fn make_directory(path: &Path) -> Result<(), MountError> {
    let failed = |source| MountError::MakeTarget { path: path.to_path_buf(), source };
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(metadata) => Err(MountError::NotADirectory {
            path: path.to_path_buf(),
            found: kind_of(metadata.file_type()),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().mode(TARGET_MODE).create(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Makes the mount point of a mount in the config, with its parents. Follows symbolic links of the
/// image, as container engines do. They cannot leave the guest.
fn make_target(path: &Path) -> Result<(), MountError> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(metadata) => Err(MountError::NotADirectory {
            path: path.to_path_buf(),
            found: kind_of(metadata.file_type()),
        }),
        // Usually ENOENT. For any other error `create` fails, too, and reports it.
        Err(_) => DirBuilder::new()
            .recursive(true)
            .mode(TARGET_MODE)
            .create(path)
            .map_err(|source| MountError::MakeTarget { path: path.to_path_buf(), source }),
    }
}

/// Returns whether `path` is missing or an empty directory. A directory that cannot be read counts
/// as used.
fn is_unused(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(metadata) => {
            metadata.is_dir() && path.read_dir().is_ok_and(|mut entries| entries.next().is_none())
        }
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Returns the kind of a file that is no directory, as text for an error.
fn kind_of(kind: std::fs::FileType) -> &'static str {
    if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_file() {
        "a file"
    } else if kind.is_fifo() || kind.is_socket() {
        "a pipe or socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use a3s_box_proto::control::TmpfsMount;

    use super::*;

    #[test]
    fn reports_the_path_and_kind_of_a_standard_target_that_is_not_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let proc = directory.path().join("proc");
        symlink("/etc", &proc).unwrap();
        let message = make_directory(&proc).unwrap_err().to_string();
        assert_eq!(
            message,
            format!(
                "mount target `{}`: found a symbolic link, expected a directory",
                proc.display()
            )
        );
        std::fs::remove_file(&proc).unwrap();
        std::fs::write(&proc, "").unwrap();
        assert!(make_directory(&proc).unwrap_err().to_string().contains("found a file"));
        std::fs::remove_file(&proc).unwrap();
        make_directory(&proc).unwrap();
        make_directory(&proc).unwrap();
        assert!(proc.is_dir());
    }

    #[test]
    fn only_a_missing_or_empty_directory_is_unused() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        assert!(is_unused(&run));
        std::fs::create_dir(&run).unwrap();
        assert!(is_unused(&run));
        std::fs::create_dir(run.join("mysqld")).unwrap();
        assert!(!is_unused(&run));
        let link = directory.path().join("tmp");
        symlink("/nonexistent", &link).unwrap();
        assert!(!is_unused(&link));
    }

    #[test]
    fn makes_a_configured_target_with_its_parents_and_follows_links() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("real")).unwrap();
        symlink("real", directory.path().join("link")).unwrap();
        make_target(&directory.path().join("link/a/b")).unwrap();
        assert!(directory.path().join("real/a/b").is_dir());
        std::fs::write(directory.path().join("file"), "").unwrap();
        let error = make_target(&directory.path().join("file")).unwrap_err();
        assert!(matches!(error, MountError::NotADirectory { found: "a file", .. }), "{error}");
    }

    #[test]
    fn refuses_an_invalid_mount_before_it_makes_the_target() {
        let source = Some(mount::Source::Tmpfs(TmpfsMount { size_mib: 1 }));
        for target in ["", "/", "relative"] {
            let entry = Mount { target: target.into(), source: source.clone() };
            let error = mount_configured(&[entry]).unwrap_err();
            assert!(matches!(error, MountError::BadTarget { .. }), "{target}: {error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x");
        let entry = Mount { target: target.display().to_string(), source: None };
        assert!(matches!(mount_configured(&[entry]), Err(MountError::NoSource { .. })));
        assert!(!target.exists());
    }

    #[test]
    fn a_tmpfs_has_a_size_option_only_if_the_config_has_a_size() {
        assert_eq!(tmpfs_data(0), "mode=1777");
        assert_eq!(tmpfs_data(64), "mode=1777,size=64m");
    }
}
