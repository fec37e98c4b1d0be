//! What is mounted in the guest: the standard file systems, then those of the config.
//!
//! A target in an image may be anything. A required one that is no directory is an error
//! that says so; `/run` and `/tmp` get a tmpfs only where the image has nothing there,
//! because images ship directories in them (`/run/mysqld`) that their programs expect.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use a3s_box_proto::control::{Mount, mount};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount as mount_kernel};

/// Mode of a target that was missing.
const TARGET_MODE: u32 = 0o755;

/// Why something is not mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// The target is not a directory.
    #[error("mount target `{path}`: found {found}, expected a directory", path = path.display())]
    NotADirectory {
        /// The target.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The target cannot be looked at or made.
    #[error("cannot make mount target `{path}`", path = path.display())]
    MakeTarget {
        /// The target.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot mount {what} at `{path}`", path = path.display())]
    Mount {
        /// Type of file system, or the device.
        what: String,
        /// The target.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// A mount of the config that makes no sense.
    #[error("mount target `{found}`: expected an absolute path below `/`")]
    BadTarget {
        /// As given.
        found: String,
    },
    /// A mount of the config without content.
    #[error("mount target `{target}`: found no source, expected virtiofs or tmpfs")]
    NoSource {
        /// As given.
        target: String,
    },
    /// A link in `/dev` cannot be made.
    #[error("cannot link `{path}`", path = path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// When a standard file system is mounted.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// The target is missing, or an empty directory.
    Unused,
}

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

/// In this order: a target may lie in one that was mounted before.
fn standards() -> [Standard; 8] {
    let quiet = NOSUID.union(NODEV).union(NOEXEC);
    let private = NOSUID.union(NODEV);
    [
        standard("/dev", "devtmpfs", NOSUID, "mode=755"),
        standard("/proc", "proc", quiet, ""),
        standard("/sys", "sysfs", quiet, ""),
        standard("/sys/fs/cgroup", "cgroup2", quiet, ""),
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

/// Links in `/dev` that programs expect.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Mounts what every box has.
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
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(MountError::Link { path: path.into(), source: error });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Mounts what the config asks for, in its order.
pub(crate) fn mount_configured(mounts: &[Mount]) -> Result<(), MountError> {
    for entry in mounts {
        let path = Path::new(&entry.target);
        if !path.is_absolute() || path.parent().is_none() {
            return Err(MountError::BadTarget { found: entry.target.clone() });
        }
        let source = entry
            .source
            .as_ref()
            .ok_or_else(|| MountError::NoSource { target: entry.target.clone() })?;
        make_target(path)?;
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

/// Docker's mode for a tmpfs, and the size if there is one.
fn tmpfs_data(size_mib: u64) -> String {
    match size_mib {
        0 => "mode=1777".to_owned(),
        size_mib => format!("mode=1777,size={size_mib}m"),
    }
}

fn mount_at(
    source: &str,
    path: &Path,
    kind: &str,
    flags: MsFlags,
    data: &str,
) -> Result<(), MountError> {
    match mount_kernel(Some(source), path, Some(kind), flags, Some(data)) {
        Ok(()) => Ok(()),
        // It is there already: the kernel mounts devtmpfs itself, if built so.
        Err(Errno::EBUSY) if kind != "virtiofs" => Ok(()),
        Err(errno) => {
            let what = if source == kind { kind.to_owned() } else { format!("{kind} `{source}`") };
            Err(MountError::Mount { what, path: path.to_path_buf(), source: errno })
        }
    }
}

/// Makes a directory that a standard file system needs. Follows nothing.
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

/// Makes the target of a mount of the config. Follows the image's links, which lead nowhere
/// but into the image.
fn make_target(path: &Path) -> Result<(), MountError> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(metadata) => Err(MountError::NotADirectory {
            path: path.to_path_buf(),
            found: kind_of(metadata.file_type()),
        }),
        Err(_) => DirBuilder::new()
            .recursive(true)
            .mode(TARGET_MODE)
            .create(path)
            .map_err(|source| MountError::MakeTarget { path: path.to_path_buf(), source }),
    }
}

/// Whether the image has nothing of its own at `path`.
fn is_unused(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(metadata) => {
            metadata.is_dir() && path.read_dir().is_ok_and(|mut entries| entries.next().is_none())
        }
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

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
    fn a_standard_target_that_is_no_directory_is_told_by_name() {
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
    fn only_what_the_image_left_empty_is_unused() {
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
    fn a_configured_target_is_made_with_its_parents_and_through_links() {
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
    fn mounts_that_make_no_sense_are_refused_before_anything_is_made() {
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
    fn a_tmpfs_has_a_size_only_if_asked() {
        assert_eq!(tmpfs_data(0), "mode=1777");
        assert_eq!(tmpfs_data(64), "mode=1777,size=64m");
    }
}
