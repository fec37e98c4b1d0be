//! Directories that no other user can enter or replace.
//!
//! The trees of images hold setuid files of any owner, and boxes execute the files in them. A store
//! is therefore a directory of the user of this process with mode 0700. No other user must be able
//! to put another directory in its place. Each directory and symbolic link in its path must belong
//! to this user or to root, and each directory must be writable by others only if it has the sticky
//! bit, as `/tmp` has. The path of the store then leads to the same directory until this user
//! changes it.
//!
//! Each component is opened once and checked by its fd. A second lookup by path could find a
//! different file.

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::unistd::Uid;

use crate::host::directory::OPEN_DIR;

/// Flags to open a component of a path: enough to check it, and without following it.
const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Limit on symbolic links in one path. The kernel follows the same number (`path_resolution(7)`).
const SYMLINKS_LIMIT: usize = 40;

/// Default of `/proc/sys/kernel/overflowuid`, the user id that a user namespace shows for all ids
/// that are not mapped in it (`proc_sys_kernel(5)`).
const OVERFLOW_UID: u32 = 65534;

/// A store that other users could enter or replace, or that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store, or a component of its path, belongs to another user or is writable by others.
    #[error("`{}`: found {found}, expected {expected}", path.display())]
    Exposed {
        /// Path of the directory or link.
        path: PathBuf,
        /// Its owner and mode.
        found: String,
        /// The required owner and mode, and how to set them.
        expected: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Opens a directory that only the user of this process can enter. Creates it if it is missing and
/// its parent exists.
///
/// This does not check the parents; see [`check_parents`].
///
/// # Errors
///
/// When the path is a symbolic link or a file, when the directory belongs to another user or has
/// permissions for group or others, or when it cannot be created or opened.
pub fn private_directory(path: &Path) -> Result<OwnedFd, StoreError> {
    private_directory_in(AT_FDCWD, path, path)
}

/// Opens the private directory `name` in an open directory. `path` is used in errors only.
pub(crate) fn private_directory_in(
    parent: BorrowedFd<'_>,
    name: &Path,
    path: &Path,
) -> Result<OwnedFd, StoreError> {
    match mkdirat(parent, name, Mode::S_IRWXU) {
        // An existing directory is checked below in the same way as a new one.
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(HostError::at("make", path)(errno).into()),
    }
    let user = Uid::effective().as_raw();
    let exposed = |found| StoreError::Exposed {
        path: path.to_owned(),
        found,
        expected: format!("a directory of user {user} with mode 0700"),
    };
    let directory = match openat(parent, name, OPEN_DIR, Mode::empty()) {
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            return Err(exposed("a symbolic link or a file".to_owned()));
        }
        opened => opened.map_err(HostError::at("open", path))?,
    };
    let found = fstat(&directory).map_err(HostError::at("look at", path))?;
    if found.st_uid == user && found.st_mode & 0o077 == 0 {
        return Ok(directory);
    }
    Err(exposed(format!(
        "a directory of user {} with mode {:04o}",
        found.st_uid,
        permissions(&found)
    )))
}

/// Checks that only root and the user of this process can replace the file or directory at `path`.
/// The path does not need to exist yet.
///
/// # Errors
///
/// When another user could replace it. The error names the component of the path and its owner and
/// mode. Also when a component cannot be opened.
pub fn check_parents(path: &Path) -> Result<(), StoreError> {
    let path = std::path::absolute(path).map_err(HostError::at("find", path))?;
    let trusted = Trusted::of_process();
    let mut at = PathBuf::from("/");
    let mut directory = open_root(&at)?;
    let mut steps = steps_of(&path);
    let mut symlinks = 0;
    while let Some(step) = steps.pop() {
        // A directory is checked before a name in it is used, because a user who can write to it
        // could replace the name at any time.
        trusted.check_directory(&directory, &at)?;
        let here = at.join(&step);
        let found = match openat(&directory, step.as_os_str(), LOOK, Mode::empty()) {
            // The component will be created in a directory that has been checked.
            Err(Errno::ENOENT) => return Ok(()),
            found => found.map_err(HostError::at("open", &here))?,
        };
        let stat = fstat(&found).map_err(HostError::at("look at", &here))?;
        if !is(&stat, SFlag::S_IFLNK) {
            (directory, at) = (found, here);
            continue;
        }
        trusted.check_symlink(&stat, &here)?;
        symlinks += 1;
        if symlinks > SYMLINKS_LIMIT {
            return Err(HostError::at("follow", &here)(Errno::ELOOP).into());
        }
        // With an empty path, `readlinkat(2)` reads the link that the fd stands for. A relative
        // target starts at the directory of the link, which is still open.
        let target = PathBuf::from(readlinkat(&found, "").map_err(HostError::at("read", &here))?);
        if target.is_absolute() {
            at = PathBuf::from("/");
            directory = open_root(&at)?;
        }
        steps.extend(steps_of(&target));
    }
    Ok(())
}

/// The users that can own components of the path of a store.
struct Trusted {
    user: u32,
    /// The overflow id, if this process is in a user namespace. It stands for all ids that are not
    /// mapped, often including root, which cannot be distinguished inside the namespace. The
    /// process that creates the namespace must check the path before.
    overflow: Option<u32>,
}

impl Trusted {
    fn of_process() -> Self {
        let number = |text: String| text.trim().parse().ok();
        let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
        let overflow = overflow.and_then(number).unwrap_or(OVERFLOW_UID);
        // The initial user namespace has the map `0 0 4294967295` (`user_namespaces(7)`).
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let is_initial = map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
        Self { user: Uid::effective().as_raw(), overflow: (!is_initial).then_some(overflow) }
    }

    fn includes(&self, user: u32) -> bool {
        user == 0 || user == self.user || Some(user) == self.overflow
    }

    fn check_directory(&self, directory: &OwnedFd, path: &Path) -> Result<(), StoreError> {
        let stat = fstat(directory).map_err(HostError::at("look at", path))?;
        let mode = permissions(&stat);
        // In a sticky directory, only the owner of a file or of the directory can rename or remove
        // the file.
        let is_protected = mode & 0o022 == 0 || mode & 0o1000 != 0;
        if self.includes(stat.st_uid) && is_protected {
            return Ok(());
        }
        Err(StoreError::Exposed {
            path: path.to_owned(),
            found: format!("a parent directory of user {} with mode {mode:04o}", stat.st_uid),
            expected: format!(
                "one of root or of user {} that nobody else can write to, or with the sticky bit: \
                 `chmod go-w` it, or choose another place",
                self.user
            ),
        })
    }

    fn check_symlink(&self, stat: &FileStat, path: &Path) -> Result<(), StoreError> {
        if self.includes(stat.st_uid) {
            return Ok(());
        }
        Err(StoreError::Exposed {
            path: path.to_owned(),
            found: format!("a symbolic link of user {}", stat.st_uid),
            expected: format!("a directory, or a link of root or of user {}", self.user),
        })
    }
}

fn open_root(path: &Path) -> Result<OwnedFd, StoreError> {
    Ok(open(path, LOOK, Mode::empty()).map_err(HostError::at("open", path))?)
}

/// Returns the components of a path in reverse order, for use as a stack. The root and `.` are
/// omitted.
fn steps_of(path: &Path) -> Vec<OsString> {
    // `..` is opened like a name, so that it leads to the parent of the directory that was opened,
    // even after a symbolic link.
    let is_step =
        |step: &Component<'_>| matches!(step, Component::Normal(_) | Component::ParentDir);
    let steps = path.components().filter(is_step).map(|step| step.as_os_str().to_owned());
    steps.collect::<Vec<_>>().into_iter().rev().collect()
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

fn permissions(stat: &FileStat) -> u32 {
    stat.st_mode & 0o7777
}
